// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an operation reads and stores, counted. A quick way that is never taken gives the right answer
//! all the same: only its accesses show it.

mod formats;

use std::cell::Cell;
use std::convert::Infallible;

use formats::{Eights, MARKS, RW, RWX};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::{
    Collect, Filled, Mapper, OwnEntries, ReadEntry, Root, Sizes, Stale, UpdateEntry, Width,
    translate_batch,
};

const PAGE: u64 = 0x1000;
const BLOCK: u64 = 0x20_0000;
/// Above 4 GiB, so that no part of the address is 0 at any level but the root's.
const HERE: u64 = (5 << 30) + 3 * BLOCK;

fn forget(_: &Stale) -> Result<(), ()> {
    Ok(())
}

/// What there was of accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Accesses {
    reads: u64,
    stores: u64,
    exchanges: u64,
    /// Looks with a store after them, for which the entry is found once.
    changes: u64,
}

/// The one access that a page takes whose leaf table is remembered.
const ONE_CHANGE: Accesses = Accesses {
    reads: 0,
    stores: 0,
    exchanges: 0,
    changes: 1,
};

fn accesses(reads: u64, stores: u64, exchanges: u64) -> Accesses {
    Accesses {
        reads,
        stores,
        exchanges,
        changes: 0,
    }
}

/// Memory that counts, and in which somebody else may be quicker with a first few exchanges.
struct Counting<'a> {
    memory: &'a FakeTables,
    seen: Cell<Accesses>,
    /// What is set in the entry just before each of the next exchanges, last first.
    meddling: Cell<Vec<u64>>,
}

impl<'a> Counting<'a> {
    fn new(memory: &'a FakeTables) -> Self {
        Self {
            memory,
            seen: Cell::default(),
            meddling: Cell::default(),
        }
    }

    fn count(&self, one: Accesses) {
        let seen = self.seen.get();
        self.seen.set(Accesses {
            reads: seen.reads + one.reads,
            stores: seen.stores + one.stores,
            exchanges: seen.exchanges + one.exchanges,
            changes: seen.changes + one.changes,
        });
    }

    /// What `operation` comes to, and takes.
    fn of<T>(&self, operation: impl FnOnce() -> T) -> (T, Accesses) {
        self.seen.set(Accesses::default());
        (operation(), self.seen.get())
    }
}

impl ReadEntry for Counting<'_> {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        self.count(accesses(1, 0, 0));
        self.memory.read(at, width)
    }
}

impl UpdateEntry for Counting<'_> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        self.count(accesses(0, 0, 1));
        let mut meddling = self.meddling.take();
        if let Some(bits) = meddling.pop() {
            let entry = self.memory.load(at, width);
            self.memory.tamper(at, width, entry | bits);
        }
        self.meddling.set(meddling);
        self.memory.compare_exchange(at, width, current, new)
    }
}

impl OwnEntries for Counting<'_> {
    fn write(&self, at: u64, width: Width, entry: u64) {
        self.count(accesses(0, 1, 0));
        self.memory.write(at, width, entry);
    }

    fn change(&self, at: u64, width: Width, change: impl FnOnce(u64) -> Option<u64>) -> bool {
        self.count(ONE_CHANGE);
        self.memory.change(at, width, change)
    }
}

type Counted<'a> = Mapper<Eights, &'a Counting<'a>, &'a FakeTables>;

/// A table with one page, at `HERE`: its leaf table is there, and none is remembered.
fn with_one_page<'a>(counting: &'a Counting<'a>) -> Counted<'a> {
    let mut mapper = Mapper::new(Eights::four_levels(), counting, counting.memory).unwrap();
    mapper.map(HERE..HERE + PAGE, 0x7000, RWX).unwrap();
    mapper
}

fn page(index: u64) -> std::ops::Range<u64> {
    HERE + index * PAGE..HERE + (index + 1) * PAGE
}

#[test]
fn a_page_whose_leaf_table_is_remembered_costs_one_look_and_one_store() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mut mapper = with_one_page(&counting);
    // Three tables are gone through to the entry.
    let (done, walked) = counting.of(|| mapper.map(page(1), 0x8000, RWX));
    let after_a_walk = Accesses {
        reads: 3,
        ..ONE_CHANGE
    };
    assert_eq!((done, walked), (Ok(()), after_a_walk));
    let (done, again) = counting.of(|| mapper.map(page(2), 0x9000, RWX));
    assert_eq!((done, again), (Ok(()), ONE_CHANGE));
    let (stale, unmapped) = counting.of(|| mapper.unmap(page(2)).unwrap());
    assert_eq!(unmapped, ONE_CHANGE);
    mapper.settle(stale, &mut forget).unwrap();
    // The first to a new table: three of 512 entries and one link each, of which the last is exchanged.
    let other = HERE + (1 << 40);
    let (done, new) = counting.of(|| mapper.map(other..other + PAGE, 0x9000, RWX));
    assert_eq!(done, Ok(()));
    assert_eq!((new.stores, new.exchanges), (3 * 512 + 2, 1));
}

#[test]
fn thirty_two_neighbouring_leaf_tables_are_remembered() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mut mapper = Mapper::new(Eights::four_levels(), &counting, &memory).unwrap();
    let blocks = || (0..32).map(|block| HERE + block * BLOCK);
    for turn in 0..3 {
        for at in blocks().map(|at| at + turn * PAGE) {
            let (done, took) = counting.of(|| mapper.map(at..at + PAGE, 0x9000, RWX));
            done.unwrap();
            assert!(turn < 2 || took == ONE_CHANGE, "{at:#x}: {took:?}");
        }
    }
    for at in blocks() {
        let (stale, took) = counting.of(|| mapper.unmap(at..at + PAGE).unwrap());
        assert_eq!(took, ONE_CHANGE, "{at:#x}");
        mapper.settle(stale, &mut forget).unwrap();
    }
}

#[test]
fn a_run_is_looked_at_once_and_stored_once() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mut mapper = with_one_page(&counting);
    mapper.map(page(1), 0x8000, RWX).unwrap();
    let runs = [(3, 200), (2, 512), (510, 512)];
    for (from, to) in runs {
        let run = HERE + from * PAGE..HERE + to * PAGE;
        let each = to - from;
        let (done, mapped) = counting.of(|| mapper.map(run.clone(), 0x5_0000, RWX));
        assert_eq!((done, mapped), (Ok(()), accesses(each, each, 0)));
        let (stale, unmapped) = counting.of(|| mapper.unmap(run).unwrap());
        assert_eq!(unmapped, accesses(each, each, 0));
        mapper.settle(stale, &mut forget).unwrap();
    }
}

#[test]
fn a_faulted_page_costs_a_walk_and_an_exchange() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mapper = with_one_page(&counting);
    let all = Filled {
        added: PAGE,
        ..Filled::default()
    };
    for index in [1, 511] {
        let (filled, took) = counting.of(|| mapper.fault_in(page(index), 0x8000, RWX));
        assert_eq!((filled, took), (Ok(all), accesses(4, 0, 1)));
    }
}

#[test]
fn of_a_batch_only_what_faults_is_walked_for_twice() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mut mapper = with_one_page(&counting);
    mapper.map(HERE + BLOCK..HERE + 2 * BLOCK, 0, RWX).unwrap();
    let batch = |addresses| {
        let root = Root::Table(mapper.root());
        let (outcomes, took) =
            counting.of(|| translate_batch(mapper.format(), &counting, root, &addresses));
        (
            outcomes.map(|outcome| outcome.ok().map(|there| there.target)),
            took.reads,
        )
    };
    // Four entries to a small page, three to a large one.
    let (targets, reads) = batch([HERE, HERE + 8, HERE + BLOCK, HERE + BLOCK + 8]);
    assert_eq!(targets, [Some(0x7000), Some(0x7008), Some(0), Some(8)]);
    assert_eq!(reads, 4 + 4 + 3 + 3);
    // None beyond what the table translates; four, and four again, where the leaf is missing.
    let (targets, reads) = batch([1 << 60, HERE + PAGE, HERE, HERE]);
    assert_eq!(targets, [None, None, Some(0x7000), Some(0x7000)]);
    assert_eq!(reads, 4 + 4 + 4 + 4);
}

#[test]
fn a_harvest_exchanges_what_is_marked_and_nothing_else() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mut mapper = with_one_page(&counting);
    mapper.map(page(1), 0x8000, RWX).unwrap();
    mapper.map(page(2), 0x9000, RWX).unwrap();
    let second = *mapper.walk(page(1).start).steps().last().unwrap();
    let leaf = |marks| memory.tamper(second.at.unwrap(), Width::Eight, second.entry | marks);
    for (marks, which, exchanges) in [
        (0, Collect::Both, 0),
        (MARKS.accessed, Collect::Both, 1),
        (MARKS.accessed, Collect::Dirty, 0),
        (MARKS.dirty, Collect::Dirty, 1),
    ] {
        leaf(marks);
        let (stale, took) = counting.of(|| {
            mapper
                .harvest(HERE..HERE + 3 * PAGE, which, |_| ())
                .unwrap()
        });
        // Three tables on the way, and three entries of the fourth.
        assert_eq!(took, accesses(6, 0, exchanges), "{marks:#x}");
        assert_eq!(stale.is_empty(), exchanges == 0);
        mapper.settle(stale, &mut forget).unwrap();
    }
}

#[test]
fn a_cut_page_keeps_its_marks_without_a_second_look() {
    for marks in [0, MARKS.accessed, MARKS.all()] {
        let memory = FakeTables::new();
        let counting = Counting::new(&memory);
        let mut mapper = Mapper::new(Eights::tiny(), &counting, &memory).unwrap();
        mapper.map(0..4 * PAGE, 0x10_0000, RW).unwrap();
        let large = *mapper.walk(0).steps().last().unwrap();
        memory.tamper(large.at.unwrap(), Width::Eight, large.entry | marks);
        let (stale, took) = counting.of(|| mapper.split(0..4 * PAGE, 1).unwrap());
        // The root's entry; the large page's when it is found, decided, planned and applied. No small page's.
        assert_eq!(took, accesses(1 + 4, 4, 1), "{marks:#x}");
        mapper.settle(stale, &mut forget).unwrap();
        for page in 0..4 {
            let leaf = mapper.walk(page * PAGE).steps()[2].entry;
            assert_eq!(leaf, (0x10_0000 + page * PAGE) | marks | 1 << 63 | 3);
        }
    }
}

#[test]
fn marks_that_come_one_by_one_while_a_page_is_cut_are_all_kept() {
    /// One that the format leaves to software.
    const SOFTWARE: u64 = 1 << 9;
    for (first, second, looks) in [
        (MARKS.accessed, MARKS.dirty, 2),
        (MARKS.dirty, MARKS.accessed, 2),
        (MARKS.accessed, SOFTWARE, 1),
        (SOFTWARE, MARKS.dirty, 1),
        (MARKS.all(), SOFTWARE, 1),
    ] {
        let memory = FakeTables::new();
        let counting = Counting::new(&memory);
        let mut mapper = Mapper::new(Eights::tiny(), &counting, &memory).unwrap();
        mapper.map(0..4 * PAGE, 0x10_0000, RW).unwrap();
        counting.meddling.set(vec![second, first]);
        let (stale, took) = counting.of(|| mapper.split(0..4 * PAGE, 1).unwrap());
        mapper.settle(stale, &mut forget).unwrap();
        // Each change costs an exchange that fails; each that brings a mark, a look at and a store to each of the
        // small pages.
        assert_eq!(took, accesses(5 + 4 * looks, 4 + 4 * looks, 3));
        let marks = (first | second) & MARKS.all();
        for page in 0..4 {
            let leaf = mapper.walk(page * PAGE).steps()[2].entry;
            assert_eq!(leaf, (0x10_0000 + page * PAGE) | marks | 1 << 63 | 3);
        }
    }
}

#[test]
fn a_merge_of_a_part_of_a_leaf_table_does_not_read_it() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mut mapper = with_one_page(&counting);
    let (stale, took) = counting.of(|| mapper.merge(HERE..HERE + 4 * PAGE).unwrap());
    assert!(stale.is_empty());
    // Down to the link of the leaf table, to count and to store.
    assert_eq!(took, accesses(2 * 3, 0, 0));
    // Of all of it two entries: the page, and the hole that does not go on from there.
    let (stale, took) = counting.of(|| mapper.merge(HERE..HERE + BLOCK).unwrap());
    assert!(stale.is_empty());
    assert_eq!(took, accesses(2 * (3 + 2), 0, 0));
}

#[test]
fn leaf_tables_are_freed_unread() {
    let memory = FakeTables::new();
    let counting = Counting::new(&memory);
    let mut mapper = Mapper::new(Eights::tiny(), &counting, &memory)
        .unwrap()
        .with_sizes(Sizes::SMALLEST);
    mapper.map(0..16 * PAGE, 0x10_0000, RW).unwrap();
    let stale = mapper.unmap(0..16 * PAGE).unwrap();
    let (settled, took) = counting.of(|| mapper.settle(stale, &mut forget));
    settled.unwrap();
    // The four entries of the one table that has tables below it.
    assert_eq!(took, accesses(4, 0, 0));
    assert_eq!(memory.in_use(), 1, "the root");
}
