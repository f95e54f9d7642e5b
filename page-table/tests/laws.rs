// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laws hold for the test formats, and each is found broken where it is.

mod formats;

use formats::{Eights, Fours, MARKS, R, RW, RWX, RX, Rights, Rule};
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
    let born = Eights {
        born: MARKS.all(),
        ..Eights::tiny()
    };
    assert_eq!(broken(&born, &ALL), None);
    assert_eq!(broken(&Fours::new(), &[RX, RWX]), None);
}

#[test]
fn a_format_that_says_nothing_of_it_leaves_any_other_attributes_stale() {
    let format = Eights::tiny();
    for old in ALL {
        for new in ALL {
            assert_eq!(format.leaves_stale(old, new), old != new);
        }
    }
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
    /// An unmarked leaf is read as another one.
    Unmarked,
    /// Two address bits at once in a table's entry.
    Wide,
    /// This word is read as a table at level 1.
    Word(u64),
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
            Wrong::Unmarked if entry & (1 | MARKS.accessed) == 1 && level == 1 => Entry::Leaf {
                target: 0,
                attributes: R,
            },
            Wrong::Wide if level == 2 && entry & 0x3000 == 0x3000 => Entry::Empty,
            Wrong::Word(word) if level == 1 && entry == word => Entry::Table {
                frame: 0,
                attributes: RWX,
            },
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

#[test]
fn a_leaf_that_is_born_marked_is_tried_without_its_marks() {
    let born = Eights {
        born: MARKS.accessed,
        ..Eights::four_levels()
    };
    let found = broken(&Bent(born, Wrong::Unmarked), &ALL);
    assert!(
        matches!(found, Some(Broken::Leaf { level: 1, entry, .. }) if entry & MARKS.accessed == 0),
        "{found:?}"
    );
}

#[test]
fn address_bits_are_tried_together() {
    let found = broken(&Bent(Eights::four_levels(), Wrong::Wide), &ALL);
    let frame = (1 << 46) - 0x1000;
    assert!(
        matches!(found, Some(Broken::Table { level: 2, frame: all, .. }) if all == frame),
        "{found:?}"
    );
}

#[test]
fn each_bit_is_tried_alone_beside_others_and_left_out() {
    let one = |bit: u32| 1u64 << bit;
    for bit in 0..64 {
        for word in [one(bit), one(bit) | 1, one(bit) | 0x81, !one(bit)] {
            let found = broken(&Bent(Eights::tiny(), Wrong::Word(word)), &ALL);
            // Some are what a leaf or a hole looks like, and so are found before.
            let whole = (46..63).contains(&bit) || word == 0x81;
            assert!(
                if whole {
                    found
                        == Some(Broken::Misplaced {
                            entry: word,
                            level: 1,
                        })
                } else {
                    found.is_some()
                },
                "{word:#x}: {found:?}"
            );
        }
    }
}
