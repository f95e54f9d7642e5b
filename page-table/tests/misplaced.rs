// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A format that breaks the law: it reads some entries of the lowest tables as tables. The mapper goes
//! no further down, whatever is asked, and says what it found.

mod formats;

use formats::{Eights, MARKS, R, RW, Rights, Rule};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::law::{Broken, broken};
use hvkit_page_table::{
    Encode, Entry, Fault, Filled, Format, MapError, Mapped, Mapper, Marks, Shape, Sizes, Span,
    Stale, Width,
};

const PAGE: u64 = 0x1000;

/// What leads here is read as a table, where there are no tables. No frame is there.
const NOWHERE: u64 = 1 << 40;
/// Such an entry, writable.
const TABLE: u64 = NOWHERE | 3;

/// Four levels of four pages each, as `Eights`, but for that.
struct Bottomless(Eights);

impl Format for Bottomless {
    type Attributes = Rights;
    type Rule = Rule;

    fn shape(&self) -> &Shape {
        &self.0.shape
    }

    fn decode(&self, entry: u64, level: u8) -> Entry<Rights, Rule> {
        match self.0.decode(entry, level.max(1)) {
            Entry::Leaf {
                target: NOWHERE,
                attributes,
            } if level <= 1 => Entry::Table {
                frame: NOWHERE,
                attributes,
            },
            other => other,
        }
    }

    fn fold(&self, above: Rights, here: Rights) -> Rights {
        self.0.fold(above, here)
    }

    fn marks(&self) -> Marks {
        self.0.marks()
    }
}

impl Encode for Bottomless {
    fn table(&self, frame: u64, level: u8) -> u64 {
        self.0.table(frame, level)
    }

    fn leaf(&self, target: u64, attributes: Rights, level: u8) -> u64 {
        self.0.leaf(target, attributes, level)
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

type Subject<'a> = Mapper<Bottomless, &'a FakeTables, &'a FakeTables>;

fn forget(_: &Stale) -> Result<(), ()> {
    Ok(())
}

/// 32 small pages, of which those in `misplaced` are read as tables.
fn subject<'a>(memory: &'a FakeTables, misplaced: &[u64]) -> Subject<'a> {
    let mut mapper = Mapper::new(Bottomless(Eights::tiny()), memory, memory)
        .unwrap()
        .with_sizes(Sizes::SMALLEST);
    mapper.map(0..32 * PAGE, 0x10_0000, RW).unwrap();
    mapper.set_sizes(Sizes::ANY);
    for page in misplaced {
        let at = mapper.walk(page * PAGE).steps()[2].at.unwrap();
        memory.tamper(at, Width::Eight, TABLE);
    }
    memory.checkpoint();
    mapper
}

/// The error for page 5.
const CORRUPT: MapError<Rights, Rule> = MapError::Corrupt {
    address: 5 * PAGE,
    level: 1,
    entry: TABLE,
    rule: None,
};

#[test]
fn the_law_is_broken() {
    assert!(matches!(
        broken(&Bottomless(Eights::tiny()), &[R]),
        Some(Broken::Leaf { level: 1, .. } | Broken::Misplaced { level: 1, .. })
    ));
}

#[test]
fn what_looks_at_each_page_names_it() {
    let memory = FakeTables::new();
    let mut mapper = subject(&memory, &[5]);
    assert_eq!(
        mapper.translate(5 * PAGE),
        Err(Fault::TooDeep {
            level: 1,
            entry: TABLE
        })
    );
    for (lo, hi) in [(5, 6), (5, 7), (3, 9)] {
        let range = || lo * PAGE..hi * PAGE;
        assert_eq!(mapper.protect(range(), |_| R).unwrap_err(), CORRUPT);
        assert_eq!(mapper.remap(range(), 0, R).unwrap_err(), CORRUPT);
        assert_eq!(mapper.split(range(), 1).unwrap_err(), CORRUPT);
        let last = mapper.mappings(range()).unwrap().last();
        assert_eq!(last, Some(Err(CORRUPT)));
    }
    assert_eq!(mapper.map(5 * PAGE..6 * PAGE, 0, R), Err(CORRUPT));
    assert_eq!(mapper.unmap(5 * PAGE..6 * PAGE).unwrap_err(), CORRUPT);
    for (lo, hi) in [(4, 8), (0, 32)] {
        assert_eq!(mapper.merge(lo * PAGE..hi * PAGE).unwrap_err(), CORRUPT);
    }
    assert_eq!(memory.journal(), [], "refused before anything was stored");
}

/// What lies before it is known, and told first.
#[test]
fn a_listing_ends_with_it_and_not_before() {
    let memory = FakeTables::new();
    let mapper = subject(&memory, &[5]);
    let list = |lo: u64, hi: u64| {
        let list = mapper.mappings(lo * PAGE..hi * PAGE).unwrap();
        list.collect::<Vec<_>>()
    };
    let stretch = |lo: u64, hi: u64| {
        Ok(Mapped {
            span: Span::new(lo * PAGE, (hi - lo) * PAGE),
            target: 0x10_0000 + lo * PAGE,
            attributes: RW,
        })
    };
    assert_eq!(list(0, 32), [stretch(0, 5), Err(CORRUPT)]);
    assert_eq!(list(5, 32), [Err(CORRUPT)]);
    assert_eq!(list(6, 32), [stretch(6, 32)]);
}

#[test]
fn a_fault_leaves_it_alone() {
    let memory = FakeTables::new();
    let mapper = subject(&memory, &[5]);
    let filled = Filled {
        same: 3 * PAGE,
        other: PAGE,
        ..Filled::default()
    };
    assert_eq!(
        mapper.fault_in(4 * PAGE..8 * PAGE, 0x10_4000, RW),
        Ok(filled)
    );
}

#[test]
fn a_large_page_whose_part_would_be_one_is_cut_and_marked_but_for_that() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Bottomless(Eights::tiny()), &memory, &memory).unwrap();
    mapper.map(0..4 * PAGE, NOWHERE, RW).unwrap();
    memory.mark_before_exchange(MARKS.dirty);
    let stale = mapper.split(0..4 * PAGE, 1).unwrap();
    mapper.settle(stale, &mut forget).unwrap();
    let dirty = |page: u64| mapper.walk(page * PAGE).steps()[2].entry & MARKS.dirty != 0;
    assert_eq!([0, 1, 2, 3].map(dirty), [false, true, true, true]);
}

#[test]
fn tables_that_begin_with_one_are_unlinked_and_freed() {
    let memory = FakeTables::new();
    // The first page of each of the second four tables.
    let mut mapper = subject(&memory, &[16, 20, 24, 28]);
    let before = memory.in_use();
    let stale = mapper.unmap(16 * PAGE..28 * PAGE).unwrap();
    mapper.settle(stale, &mut forget).unwrap();
    assert_eq!(memory.in_use(), before - 3);
    let stale = mapper.unmap(0..32 * PAGE).unwrap();
    mapper.settle(stale, &mut forget).unwrap();
    assert_eq!(memory.in_use(), 1, "the root");
}
