// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! No frames: at each allocation of each operation in turn. Nothing changes, nothing leaks.

mod formats;

use formats::{Eights, Fours, R, RW, RWX, Rights};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{
    Filled, Frames, MapError, Mapper, OwnEntries, ReadEntry, Refused, Shape, Sizes, Stale,
    UpdateEntry, Upper, Width,
};

type Tiny<'a> = Mapper<Eights, &'a FakeTables, &'a FakeTables>;
type View = Vec<Option<(u64, u8, Rights)>>;

const PAGE: u64 = 0x1000;

fn view(mapper: &Tiny<'_>) -> View {
    let look = |page| {
        let there = mapper.translate(page * PAGE).ok()?;
        Some((there.target, there.level, there.attributes))
    };
    (0..64).map(look).collect()
}

fn settle(mapper: &Tiny<'_>, stale: Stale) {
    mapper
        .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
        .unwrap();
}

/// Lets `operation` have 0, 1, 2, ... frames until it is content.
fn starve(
    prepare: impl Fn(&mut Tiny<'_>),
    operation: impl Fn(&mut Tiny<'_>) -> Result<Stale, Refused<Eights>>,
) -> usize {
    for extra in 0.. {
        let memory = FakeTables::new();
        let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
        prepare(&mut mapper);
        let (before, used) = (view(&mapper), memory.frames_in_use());
        memory.checkpoint();
        memory.limit(used.len() + extra);
        match operation(&mut mapper) {
            Err(refused) => {
                assert_eq!(refused, MapError::OutOfFrames);
                assert_eq!(view(&mapper), before);
                assert_eq!(memory.frames_in_use(), used, "{extra} frames leaked");
                let live = memory
                    .journal()
                    .into_iter()
                    .find(|s| used.contains(&(s.at & !0xfff)));
                assert_eq!(live, None, "a table in use was written");
            }
            Ok(stale) => {
                settle(&mapper, stale);
                return extra;
            }
        }
    }
    unreachable!()
}

#[test]
fn each_allocation_of_each_operation_fails_in_turn() {
    let none = |_: &mut Tiny<'_>| ();
    let large = |m: &mut Tiny<'_>| m.map(0..64 * PAGE, 0x10_0000, RWX).unwrap();
    let small = |m: &mut Tiny<'_>| {
        m.set_sizes(Sizes::SMALLEST);
        m.map(0..64 * PAGE, 0x10_0000, RWX).unwrap();
        m.set_sizes(Sizes::ANY);
    };
    let holes = |m: &mut Tiny<'_>| {
        small(m);
        for block in [0, 2, 5] {
            let stale = m.unmap(block * 4 * PAGE..(block + 1) * 4 * PAGE).unwrap();
            settle(m, stale);
        }
        let stale = m.unmap(32 * PAGE..48 * PAGE).unwrap();
        settle(m, stale);
    };
    let owed = |m: &Tiny<'_>, ()| Ok(m.nothing_stale());
    let unaligned = 0x10_1000;
    // A level 2 table for each 16 pages, a level 1 table for each 4.
    let needed = starve(none, |m| {
        m.map(0..64 * PAGE, unaligned, RW).and_then(|d| owed(m, d))
    });
    assert_eq!(needed, 4 + 16);
    let needed = starve(none, |m| {
        m.map(PAGE..63 * PAGE, PAGE, RW).and_then(|d| owed(m, d))
    });
    assert_eq!(needed, 4);
    assert_eq!(starve(large, |m| m.unmap(PAGE..63 * PAGE)), 4);
    assert_eq!(starve(large, |m| m.unmap(PAGE..2 * PAGE)), 2);
    assert_eq!(starve(large, |m| m.unmap(0..64 * PAGE)), 0);
    assert_eq!(starve(large, |m| m.protect(7 * PAGE..55 * PAGE, |_| R)), 4);
    assert_eq!(starve(large, |m| m.split(0..64 * PAGE, 1)), 20);
    assert_eq!(
        starve(large, |m| m.remap(PAGE..63 * PAGE, 0x10_2000, RW)),
        20
    );
    assert_eq!(
        starve(holes, |m| m.remap(0..64 * PAGE, unaligned, RW)),
        3 + 5
    );
    // Each of 4 level 3 entries becomes a leaf: two ledgers of 3.
    assert_eq!(starve(small, |m| m.merge(0..64 * PAGE)), 2);
    let needed = starve(holes, |m| {
        let filled = m.fault_in(33 * PAGE..34 * PAGE, unaligned, RW)?;
        assert_eq!(
            filled,
            Filled {
                added: PAGE,
                ..Filled::default()
            }
        );
        Ok(m.nothing_stale())
    });
    assert_eq!(needed, 2);
}

#[test]
fn no_frame_no_root() {
    let memory = FakeTables::new();
    memory.limit(0);
    assert!(matches!(
        Mapper::new(Eights::tiny(), &memory, &memory),
        Err(MapError::OutOfFrames)
    ));
}

/// A pool whose frames no table can be in.
struct Odd(u64);

impl Frames for Odd {
    fn allocate(&self) -> Option<u64> {
        Some(self.0)
    }

    fn free(&self, frame: u64) {
        assert_eq!(frame, self.0, "given back");
    }
}

#[test]
fn a_frame_that_no_entry_can_name_is_refused() {
    let memory = FakeTables::new();
    for frame in [1 << 32, 0x1800] {
        let refused = Mapper::new(Fours::new(), &memory, Odd(frame)).map(|_| ());
        assert_eq!(refused, Err(MapError::BadFrame { frame, bits: 32 }));
    }
}

/// Memory in which somebody else is quicker.
struct Raced<'a> {
    memory: &'a FakeTables,
    /// What is there just before we store, if anybody puts it there, of what we expect.
    theirs: &'a dyn Fn(u64) -> Option<u64>,
}

impl ReadEntry for Raced<'_> {
    type Error = std::convert::Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        self.memory.read(at, width)
    }
}

impl UpdateEntry for Raced<'_> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Self::Error> {
        if let Some(entry) = (self.theirs)(current) {
            self.memory.write(at, width, entry);
        }
        self.memory.compare_exchange(at, width, current, new)
    }
}

impl OwnEntries for Raced<'_> {
    fn write(&self, at: u64, width: Width, entry: u64) {
        self.memory.write(at, width, entry);
    }
}

#[test]
fn who_loses_the_race_uses_what_the_winner_linked() {
    let memory = FakeTables::new();
    let link = std::cell::Cell::new(None);
    let raced = Raced {
        memory: &memory,
        theirs: &|_| link.take(),
    };
    let mapper = Mapper::new(Eights::tiny(), &raced, &memory).unwrap();
    let mapper = mapper.with_sizes(Sizes::SMALLEST);
    let theirs = memory.allocate().unwrap();
    (0..4).for_each(|i| memory.write(theirs + i * 8, Width::Eight, 0));
    link.set(Some(theirs | 3));
    let filled = mapper.fault_in(0..PAGE, 0x5000, RW).unwrap();
    assert_eq!(filled.added, PAGE);
    assert_eq!(mapper.walk(0).steps()[1].at, Some(theirs));
    assert_eq!(
        memory.in_use(),
        3,
        "root, theirs, and one leaf table; ours went back"
    );
    // The winner mapped the very page.
    link.set(Some(0x9001));
    let filled = mapper.fault_in(PAGE..3 * PAGE, 0x9000, R).unwrap();
    assert_eq!(
        (filled.added, filled.same, filled.other),
        (PAGE, 0, PAGE),
        "NX differs"
    );
    let again = mapper.fault_in(0..4 * PAGE, 0x8000, R).unwrap();
    assert_eq!(
        (again.added, again.same, again.other),
        (PAGE, PAGE, 2 * PAGE)
    );
}

#[test]
fn a_slot_that_does_not_come_to_rest_is_counted_too() {
    let memory = FakeTables::new();
    let turns = std::cell::Cell::new(0u32);
    // So many times, and then it leaves the entry empty.
    let again = |current| {
        turns.set(turns.get().checked_sub(1)?);
        Some(current ^ 0x2000)
    };
    let restless = Raced {
        memory: &memory,
        theirs: &again,
    };
    let mapper = Mapper::new(Eights::tiny(), &restless, &memory).unwrap();
    mapper.fault_in(3 * PAGE..4 * PAGE, 0x3000, RW).unwrap();
    // 64 turns are as many as it is tried. What is found then is a hole, and is left alone.
    turns.set(64);
    let filled = mapper.fault_in(0..2 * PAGE, 0, RW).unwrap();
    let counted = |filled: Filled| (filled.added, filled.same, filled.other);
    assert_eq!(counted(filled), (PAGE, 0, PAGE));
    assert!(mapper.translate(0).is_err() && mapper.translate(PAGE).is_ok());
    turns.set(63);
    let filled = mapper.fault_in(0..2 * PAGE, 0, RW).unwrap();
    assert_eq!(counted(filled), (PAGE, PAGE, 0));
}

#[test]
fn a_fault_in_range_lies_in_one_table() {
    let memory = FakeTables::new();
    let mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    let refused = mapper.fault_in(3 * PAGE..5 * PAGE, 0x3000, RW);
    let (start, length) = (3 * PAGE, 2 * PAGE);
    assert_eq!(
        refused,
        Err(MapError::Straddles {
            start,
            length,
            level: 1
        })
    );
    // Nor are four pages a leaf of four where neither end is a multiple of that.
    let refused = mapper.fault_in(PAGE..5 * PAGE, 0x4000, RW);
    let (start, length) = (PAGE, 4 * PAGE);
    assert_eq!(
        refused,
        Err(MapError::Straddles {
            start,
            length,
            level: 1
        })
    );
    // Two leaves of four pages do.
    let filled = mapper.fault_in(4 * PAGE..12 * PAGE, 0x4000, RW).unwrap();
    assert_eq!(filled.added, 8 * PAGE);
    assert_eq!(mapper.translate(4 * PAGE).unwrap().level, 2);
    // Under a larger leaf that is there already.
    assert_eq!(
        mapper
            .fault_in(5 * PAGE..6 * PAGE, 0x5000, RW)
            .unwrap()
            .same,
        PAGE
    );
    assert_eq!(
        mapper
            .fault_in(5 * PAGE..6 * PAGE, 0x6000, RW)
            .unwrap()
            .other,
        PAGE
    );
}

#[test]
fn a_large_page_is_faulted_in_around_small_ones() {
    let memory = FakeTables::new();
    let mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    let filled = |added, same, other| Filled {
        added: added * PAGE,
        same: same * PAGE,
        other: other * PAGE,
    };
    // Page 5 as a large page would have it, page 6 not.
    mapper.fault_in(5 * PAGE..6 * PAGE, 0x5000, RW).unwrap();
    mapper.fault_in(6 * PAGE..7 * PAGE, 0x6000, R).unwrap();
    let all = 4 * PAGE..8 * PAGE;
    assert_eq!(
        mapper.fault_in(all.clone(), 0x4000, RW),
        Ok(filled(2, 1, 1))
    );
    for (page, rights) in [(4, RW), (5, RW), (6, R), (7, RW)] {
        let there = mapper.translate(page * PAGE).unwrap();
        assert_eq!((there.target, there.level), (page * PAGE, 1));
        assert_eq!(there.attributes, rights);
    }
    assert_eq!(mapper.fault_in(all, 0x4000, RW), Ok(filled(0, 3, 1)));
    // A whole block at the level above: a table with the table from before, and three holes for pages of
    // four.
    assert_eq!(mapper.fault_in(0..16 * PAGE, 0, RW), Ok(filled(12, 3, 1)));
    assert_eq!(mapper.translate(12 * PAGE).unwrap().level, 2);
}

#[test]
fn pages_are_faulted_in_up_to_the_last_that_the_format_leads_to() {
    let memory = FakeTables::new();
    let mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    mapper.fault_in(0..PAGE, 0, RW).unwrap();
    // Two, in a table that is there.
    let top = (1 << 46) - 2 * PAGE;
    let filled = mapper.fault_in(PAGE..3 * PAGE, top, RW).unwrap();
    assert_eq!((filled.added, filled.other), (2 * PAGE, 0));
    let last = mapper.translate(2 * PAGE).unwrap();
    assert_eq!((last.target, last.level), (top + PAGE, 1));
}

#[test]
fn a_malformed_entry_below_a_large_page_refuses_all_of_it() {
    let memory = FakeTables::new();
    let mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    mapper.fault_in(6 * PAGE..7 * PAGE, 0x6000, RW).unwrap();
    let leaf = mapper.walk(6 * PAGE).steps()[2].at.unwrap();
    // Not a page's address at this width.
    memory.tamper(leaf + 8, Width::Eight, 1 << 50 | 1);
    let stores = memory.journal().len();
    let refused = mapper.fault_in(4 * PAGE..8 * PAGE, 0x4000, RW);
    assert!(matches!(
        refused,
        Err(MapError::Corrupt { address, level: 1, .. }) if address == 7 * PAGE
    ));
    assert_eq!(
        memory.journal().len(),
        stores,
        "page 4 was not mapped either"
    );
}

#[test]
fn holes_of_a_level_without_pages_are_left_alone() {
    let memory = FakeTables::new();
    let shape = Shape::new(12, &[2, 2, 2], 0b101, Width::Eight, Upper::Zero).unwrap();
    let mapper = Mapper::new(Eights::with(shape), &memory, &memory).unwrap();
    mapper.fault_in(PAGE..2 * PAGE, PAGE, RW).unwrap();
    let filled = mapper.fault_in(0..16 * PAGE, 0, RW).unwrap();
    assert_eq!(
        (filled.added, filled.same, filled.other),
        (3 * PAGE, PAGE, 12 * PAGE)
    );
}
