// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A model check of the concurrent paths: loom runs every interleaving that can make a difference, and
//! every value that the memory orderings allow a load to see.

mod formats;

use std::convert::Infallible;

use formats::{Eights, RW};
use hvkit_page_table::fake::GARBAGE;
use hvkit_page_table::{
    Collect, Fault, Filled, Frames, Mapper, OwnEntries, ReadEntry, Shape, Stale, UpdateEntry,
    Upper, Width,
};
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

const PAGE: u64 = 0x1000;
const FRAMES: usize = 8;
/// Entries that exist of each frame: the shapes here have 2.
const ENTRIES: usize = 2;

/// Frames at 0x1000, 0x2000, ... of loom's atomics, full of garbage.
struct LoomMemory {
    entries: Vec<AtomicU64>,
    next: AtomicUsize,
    free: Mutex<Vec<u64>>,
}

#[derive(Clone)]
struct Shared(Arc<LoomMemory>);

impl Shared {
    fn new() -> Self {
        let entries = (0..FRAMES * ENTRIES)
            .map(|_| AtomicU64::new(GARBAGE))
            .collect();
        let (next, free) = (AtomicUsize::new(0), Mutex::new(vec![]));
        Self(Arc::new(LoomMemory {
            entries,
            next,
            free,
        }))
    }

    fn entry(&self, at: u64) -> &AtomicU64 {
        let (frame, index) = ((at >> 12) as usize - 1, (at & 0xfff) as usize / 8);
        assert!(index < ENTRIES);
        &self.0.entries[frame * ENTRIES + index]
    }

    /// Frames that are allocated now.
    fn in_use(&self) -> usize {
        self.0.next.load(Ordering::SeqCst) - self.0.free.lock().unwrap().len()
    }
}

impl ReadEntry for Shared {
    type Error = Infallible;

    fn read(&self, at: u64, _: Width) -> Result<u64, Infallible> {
        Ok(self.entry(at).load(Ordering::Acquire))
    }
}

impl UpdateEntry for Shared {
    fn compare_exchange(&self, at: u64, _: Width, old: u64, new: u64) -> Result<u64, Infallible> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let (Ok(found) | Err(found)) = self.entry(at).compare_exchange(old, new, success, failure);
        Ok(found)
    }
}

impl OwnEntries for Shared {
    fn write(&self, at: u64, _: Width, entry: u64) {
        self.entry(at).store(entry, Ordering::Release);
    }

    // Relaxed, as the real memory's: that a reader never sees garbage rests on the link alone.
    fn fill(&self, at: u64, _: Width, count: u64, entry: impl Fn(u64) -> u64) {
        (0..count).for_each(|i| self.entry(at + i * 8).store(entry(i), Ordering::Relaxed));
    }
}

impl Frames for Shared {
    fn allocate(&self) -> Option<u64> {
        if let Some(frame) = self.0.free.lock().unwrap().pop() {
            return Some(frame);
        }
        let n = self.0.next.fetch_add(1, Ordering::SeqCst);
        (n < FRAMES).then(|| (n as u64 + 1) << 12)
    }

    fn free(&self, frame: u64) {
        self.0.free.lock().unwrap().push(frame);
    }
}

type Subject = Arc<Mapper<Eights, Shared, Shared>>;

fn subject(levels: usize) -> (Shared, Subject) {
    subject_with(levels, 0b1)
}

fn subject_with(levels: usize, leaves: u8) -> (Shared, Subject) {
    let bits = &[1, 1, 1, 1][..levels];
    let shape = Shape::new(12, bits, leaves, Width::Eight, Upper::Zero).unwrap();
    let memory = Shared::new();
    let mapper = Mapper::new(Eights::with(shape), memory.clone(), memory.clone()).unwrap();
    (memory, Arc::new(mapper))
}

/// Runs `model` in every interleaving, and sees that there were at least `interleavings`.
fn check(interleavings: usize, model: impl Fn() + Sync + Send + 'static) {
    let builder = loom::model::Builder::new();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = std::sync::Arc::clone(&count);
    builder.check(move || {
        counting.fetch_add(1, Ordering::Relaxed);
        model();
    });
    let count = count.load(Ordering::Relaxed);
    println!("{count} interleavings");
    assert!(
        count >= interleavings,
        "{count} interleavings are too few to mean anything"
    );
}

#[test]
fn neighbours_share_one_table() {
    check(20, || {
        let (memory, mapper) = subject(3);
        let other = Arc::clone(&mapper);
        let thread = thread::spawn(move || other.fault_in(0..PAGE, 0x8000, RW).unwrap());
        let mine = mapper.fault_in(PAGE..2 * PAGE, 0x9000, RW).unwrap();
        let theirs = thread.join().unwrap();
        assert_eq!((mine.added, theirs.added), (PAGE, PAGE));
        assert_eq!(mapper.translate(0).unwrap().target, 0x8000);
        assert_eq!(mapper.translate(PAGE).unwrap().target, 0x9000);
        assert_eq!(memory.in_use(), 3, "who lost gave its tables back");
    });
}

#[test]
fn of_two_for_the_same_page_one_wins() {
    check(20, || {
        let (memory, mapper) = subject(2);
        let other = Arc::clone(&mapper);
        let thread = thread::spawn(move || other.fault_in(0..PAGE, 0x8000, RW).unwrap());
        let mine = mapper.fault_in(0..PAGE, 0x9000, RW).unwrap();
        let theirs = thread.join().unwrap();
        let (won, lost) = (
            Filled {
                added: PAGE,
                ..Filled::default()
            },
            Filled {
                other: PAGE,
                ..Filled::default()
            },
        );
        let target = mapper.translate(0).unwrap().target;
        match target {
            0x8000 => assert_eq!((mine, theirs), (lost, won)),
            0x9000 => assert_eq!((mine, theirs), (won, lost)),
            _ => panic!("{target:#x} is neither's"),
        }
        assert_eq!(memory.in_use(), 2);
    });
}

#[test]
fn a_large_page_and_a_small_one_in_it_fill_all_between_them() {
    check(20, || {
        let (memory, mapper) = subject_with(3, 0b11);
        let other = Arc::clone(&mapper);
        let thread = thread::spawn(move || other.fault_in(PAGE..2 * PAGE, 0x9000, RW).unwrap());
        let mine = mapper.fault_in(0..2 * PAGE, 0x8000, RW).unwrap();
        let theirs = thread.join().unwrap();
        for (page, target) in [(0, 0x8000), (1, 0x9000)] {
            assert_eq!(mapper.translate(page * PAGE).unwrap().target, target);
        }
        let small = mapper.translate(0).unwrap().level == 1;
        assert_eq!(memory.in_use(), 2 + usize::from(small));
        let added = mine.added + theirs.added;
        assert_eq!(added, 2 * PAGE, "each page was added by one of them");
        assert_eq!(mine.same + theirs.same, PAGE, "and found by the other");
        assert_eq!(mine.other + theirs.other, 0);
    });
}

#[test]
fn a_reader_sees_no_half_built_table() {
    check(20, || {
        let (_, mapper) = subject(3);
        let (writer, reader) = (Arc::clone(&mapper), Arc::clone(&mapper));
        let writer = thread::spawn(move || writer.fault_in(0..PAGE, 0x8000, RW).unwrap());
        let reader = thread::spawn(move || {
            for page in [0, 1] {
                match reader.translate(page * PAGE) {
                    Ok(there) => assert_eq!((page, there.target), (0, 0x8000)),
                    Err(fault) => assert!(matches!(fault, Fault::NotPresent { .. }), "{fault}"),
                }
            }
        });
        writer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(mapper.translate(0).unwrap().target, 0x8000);
    });
}

#[test]
fn a_harvest_runs_beside_faults() {
    check(20, || {
        let (memory, mapper) = subject(2);
        mapper.fault_in(0..PAGE, 0x8000, RW).unwrap();
        // Hardware writes the page some time.
        let leaf = mapper.walk(0).steps()[1].at.unwrap();
        let other = Arc::clone(&mapper);
        let hardware = thread::spawn(move || {
            memory.entry(leaf).fetch_or(1 << 6, Ordering::AcqRel);
            other.fault_in(PAGE..2 * PAGE, 0x9000, RW).unwrap().added
        });
        let mut seen = 0;
        let mut collect = || {
            let stale = mapper
                .harvest(0..2 * PAGE, Collect::Dirty, |_| seen += 1)
                .unwrap();
            mapper
                .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
                .unwrap();
        };
        collect();
        assert_eq!(hardware.join().unwrap(), PAGE);
        collect();
        assert_eq!(seen, 1, "reported once, whenever it happened");
    });
}
