// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laws hold for the test formats, and each is found broken where it is.

mod formats;

use formats::{Eights, Fours, R, RW, RWX, RX, Rights, Rule};
use hvkit_page_table::law::{Broken, broken};
use hvkit_page_table::{Encode, Entry, Format, Marks, Shape, Upper};

const ALL: [Rights; 4] = [R, RW, RX, RWX];

#[test]
fn the_test_formats_keep_the_laws() {
    assert_eq!(broken(&Eights::four_levels(), &ALL), None);
    assert_eq!(
        broken(
            &Eights {
                empty: 1 << 62,
                ..Eights::tiny()
            },
            &ALL
        ),
        None
    );
    let five = Eights::with(Shape::nines(5, 0b111, Upper::SignExtended).unwrap());
    assert_eq!(broken(&five, &ALL), None);
    assert_eq!(broken(&Fours::new(), &[RX, RWX]), None);
}

/// `Eights` with one method wrong.
#[derive(Clone, Copy)]
enum Wrong {
    Table,
    Leaf,
    Fold,
    Empty,
    EmptyBits,
    Misplaced,
    Marks,
}

struct Bent(Eights, Wrong);

impl Format for Bent {
    type Attributes = Rights;
    type Rule = Rule;

    fn shape(&self) -> &Shape {
        &self.0.shape
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Rights, Rule> {
        match self.1 {
            Wrong::Empty if entry & 0x18 == 0x18 && entry & 1 == 0 => {
                Entry::Malformed(Rule::Misaligned)
            }
            Wrong::Misplaced if level == 1 && entry & 0x81 == 0x81 => Entry::Table {
                frame: 0,
                attributes: RWX,
            },
            Wrong::Marks if entry & MARK != 0 => Entry::Malformed(Rule::Misaligned),
            _ => self.0.decode(entry, level),
        }
    }

    fn fold(&self, above: Rights, here: Rights) -> Rights {
        match self.1 {
            Wrong::Fold => R,
            _ => self.0.fold(above, here),
        }
    }

    fn marks(&self) -> Marks {
        match self.1 {
            Wrong::Marks => Marks {
                accessed: 0,
                dirty: MARK,
            },
            _ => self.0.marks(),
        }
    }
}

const MARK: u64 = 1 << 9;

impl Encode for Bent {
    fn empty(&self) -> u64 {
        match self.1 {
            Wrong::EmptyBits => 0x2000,
            _ => 0,
        }
    }

    fn table(&self, frame: u64, level: u8) -> u64 {
        match self.1 {
            Wrong::Table => self.0.table(frame, level) & !(1 << 40),
            _ => self.0.table(frame, level),
        }
    }

    fn leaf(&self, target: u64, attributes: Rights, level: u8) -> u64 {
        match self.1 {
            Wrong::Leaf if level == 3 => self.0.leaf(target, attributes, level) & !2,
            _ => self.0.leaf(target, attributes, level),
        }
    }

    fn check(&self, attributes: Rights, level: u8) -> Result<(), Rule> {
        self.0.check(attributes, level)
    }

    fn target_bits(&self, level: u8) -> u32 {
        self.0.target_bits(level)
    }

    fn frame_bits(&self) -> u32 {
        self.0.frame_bits()
    }

    fn executable(&self, attributes: Rights) -> bool {
        attributes.execute
    }
}

#[test]
fn each_broken_law_is_found() {
    let check = |wrong| broken(&Bent(Eights::four_levels(), wrong), &ALL).unwrap();
    assert_eq!(
        check(Wrong::Table),
        Broken::Table {
            frame: 1 << 40,
            level: 2,
            entry: 3
        }
    );
    let leaf = check(Wrong::Leaf);
    assert!(
        matches!(
            leaf,
            Broken::Leaf {
                attributes: RW,
                level: 3,
                ..
            }
        ),
        "{leaf:?}"
    );
    let fold = check(Wrong::Fold);
    assert_eq!(
        fold,
        Broken::Fold {
            level: 2,
            attributes: RW,
            folded: R
        }
    );
    assert!(matches!(
        check(Wrong::Empty),
        Broken::Empty {
            level: 1,
            entry: 0x1018
        }
    ));
    assert_eq!(check(Wrong::EmptyBits), Broken::EmptyBits { empty: 0x2000 });
    assert!(matches!(
        check(Wrong::Misplaced),
        Broken::Misplaced { level: 1, .. }
    ));
    let marks = check(Wrong::Marks);
    assert!(
        matches!(marks, Broken::Leaf { level: 1, entry, .. } if entry & MARK != 0),
        "{marks:?}"
    );
}
