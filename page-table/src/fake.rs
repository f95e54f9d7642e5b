// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory for tests: it remembers every store, runs out of frames on command, and fails reads on
//! command. Feature `fake`.
//!
//! [`FakeTables`] is frames and owned entries in one, for a [`Mapper`](crate::Mapper). It panics
//! where a real memory would be corrupted silently: a store outside an allocated frame, a frame freed
//! twice. [`FakeGuest`] is someone else's memory, for a walk.
//!
//! ```
//! use hvkit_page_table::fake::FakeTables;
//! use hvkit_page_table::{Frames, OwnEntries, Width};
//!
//! let memory = FakeTables::new();
//! let frame = memory.allocate().unwrap();
//! memory.write(frame, Width::Eight, 7);
//! assert_eq!(memory.journal().len(), 1);
//! memory.limit(1);
//! assert_eq!(memory.allocate(), None);
//! ```

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::convert::Infallible;

use crate::memory::{Frames, OwnEntries, ReadEntry, UpdateEntry};
use crate::shape::Width;

/// What a frame holds before anything is stored in it: a word that looks like many things.
pub const GARBAGE: u64 = 0xbad0_0bad_0bad_0fff;

/// One store into tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Physical address of the entry.
    pub at: u64,
    /// Its width.
    pub width: Width,
    /// What was stored.
    pub entry: u64,
}

/// The words of a memory at one moment.
#[derive(Clone, Debug, Default)]
pub struct Words(BTreeMap<u64, u64>);

impl Words {
    fn get(&self, at: u64, width: Width) -> u64 {
        let word = self.0.get(&(at & !7)).copied().unwrap_or(GARBAGE);
        match width {
            Width::Eight => word,
            Width::Four => (word >> (8 * (at & 4))) & 0xffff_ffff,
        }
    }

    fn set(&mut self, store: Store) {
        let word = self.0.entry(store.at & !7).or_insert(GARBAGE);
        match store.width {
            Width::Eight => *word = store.entry,
            Width::Four => {
                let shift = 8 * (store.at & 4);
                *word = *word & !(0xffff_ffff << shift) | (store.entry & 0xffff_ffff) << shift;
            }
        }
    }
}

impl ReadEntry for Words {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        Ok(self.get(at, width))
    }
}

/// Frames and owned entries that remember. Not for threads.
#[derive(Debug, Default)]
pub struct FakeTables {
    words: RefCell<Words>,
    start: RefCell<Words>,
    journal: RefCell<Vec<Store>>,
    used: RefCell<BTreeSet<u64>>,
    free: RefCell<Vec<u64>>,
    next: Cell<u64>,
    limit: Cell<Option<usize>>,
    interference: Cell<u64>,
    mark_on_read: Cell<Option<MarkOnRead>>,
}

/// What [`FakeTables::mark_before_read`] waits for.
#[derive(Clone, Copy, Debug)]
struct MarkOnRead {
    at: u64,
    width: Width,
    reads: u64,
    bits: u64,
}

impl FakeTables {
    /// No frame allocated yet; the first is at 0x1000.
    #[must_use]
    pub fn new() -> Self {
        Self {
            next: Cell::new(0x1000),
            ..Self::default()
        }
    }

    /// Lets at most `frames` be allocated at a time.
    pub fn limit(&self, frames: usize) {
        self.limit.set(Some(frames));
    }

    /// Lifts [`limit`](Self::limit).
    pub fn unlimit(&self) {
        self.limit.set(None);
    }

    /// How many frames are allocated.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.used.borrow().len()
    }

    /// The frames that are allocated.
    #[must_use]
    pub fn frames_in_use(&self) -> Vec<u64> {
        self.used.borrow().iter().copied().collect()
    }

    /// Every store since the last [`checkpoint`](Self::checkpoint), oldest first.
    #[must_use]
    pub fn journal(&self) -> Vec<Store> {
        self.journal.borrow().clone()
    }

    /// Forgets the stores so far; what they made stays.
    pub fn checkpoint(&self) {
        *self.start.borrow_mut() = self.words.borrow().clone();
        self.journal.borrow_mut().clear();
    }

    /// The words as they are now.
    #[must_use]
    pub fn words(&self) -> Words {
        self.words.borrow().clone()
    }

    /// Shows `look` the memory at the last checkpoint and after each store since, with how many stores
    /// came before.
    pub fn each_moment(&self, mut look: impl FnMut(usize, &Words)) {
        let mut words = self.start.borrow().clone();
        look(0, &words);
        for (i, &store) in self.journal.borrow().iter().enumerate() {
            words.set(store);
            look(i + 1, &words);
        }
    }

    /// Sets `bits` in the entry that the next exchange is for, just before it: hardware that notes an
    /// access in between.
    pub fn mark_before_exchange(&self, bits: u64) {
        self.interference.set(bits);
    }

    /// Sets `bits` in the entry at `at` just before read number `n` of it from now, counting from 0:
    /// hardware that notes an access between two looks of ours.
    pub fn mark_before_read(&self, at: u64, width: Width, n: u64, bits: u64) {
        self.mark_on_read.set(Some(MarkOnRead {
            at,
            width,
            reads: n,
            bits,
        }));
    }

    /// Stores without remembering it: hardware, or a test that corrupts a table.
    pub fn tamper(&self, at: u64, width: Width, entry: u64) {
        let store = Store { at, width, entry };
        self.words.borrow_mut().set(store);
        self.start.borrow_mut().set(store);
    }

    fn check(&self, at: u64, width: Width) {
        assert!(
            at.is_multiple_of(width.bytes()),
            "{at:#x} is not aligned for {width:?}"
        );
        let frame = at & !0xfff;
        assert!(
            self.used.borrow().contains(&frame),
            "{at:#x} is in no allocated frame"
        );
    }
}

impl ReadEntry for FakeTables {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        self.check(at, width);
        if let Some(mark) = self.mark_on_read.get()
            && mark.at == at
        {
            self.mark_on_read.set(
                mark.reads
                    .checked_sub(1)
                    .map(|reads| MarkOnRead { reads, ..mark }),
            );
            if mark.reads == 0 {
                let entry = self.words.borrow().get(at, mark.width) | mark.bits;
                self.tamper(at, mark.width, entry);
            }
        }
        Ok(self.words.borrow().get(at, width))
    }
}

impl UpdateEntry for FakeTables {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        self.check(at, width);
        let marks = self.interference.take();
        if marks != 0 {
            let entry = self.words.borrow().get(at, width) | marks;
            self.tamper(at, width, entry);
        }
        let found = self.words.borrow().get(at, width);
        if found == current {
            self.write(at, width, new);
        }
        Ok(found)
    }
}

impl OwnEntries for FakeTables {
    fn write(&self, at: u64, width: Width, entry: u64) {
        self.check(at, width);
        let store = Store { at, width, entry };
        self.words.borrow_mut().set(store);
        self.journal.borrow_mut().push(store);
    }
}

impl Frames for FakeTables {
    fn allocate(&self) -> Option<u64> {
        if self.limit.get().is_some_and(|limit| self.in_use() >= limit) {
            return None;
        }
        let frame = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let frame = self.next.get();
            self.next.set(frame + 0x1000);
            frame
        });
        self.used.borrow_mut().insert(frame);
        Some(frame)
    }

    fn free(&self, frame: u64) {
        assert!(
            self.used.borrow_mut().remove(&frame),
            "frame {frame:#x} was not allocated"
        );
        self.free.borrow_mut().push(frame);
    }
}

/// Why [`FakeGuest`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing can be read at {at:#x}")]
pub struct Unreadable {
    /// The address.
    pub at: u64,
}

/// Someone else's memory: readable up to a size, any read can be made to fail.
#[derive(Debug, Default)]
pub struct FakeGuest {
    words: RefCell<Words>,
    size: u64,
    reads: Cell<u64>,
    fail: Cell<Option<u64>>,
}

impl FakeGuest {
    /// `size` bytes of zero from address 0.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    /// Sets the entry at `at`.
    pub fn set(&self, at: u64, width: Width, entry: u64) {
        let mut words = self.words.borrow_mut();
        words.0.entry(at & !7).or_insert(0);
        words.set(Store { at, width, entry });
    }

    /// Makes read number `n` from now fail, counting from 0.
    pub fn fail_read(&self, n: u64) {
        self.fail.set(Some(self.reads.get() + n));
    }

    /// How many reads there were.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.get()
    }

    fn check(&self, at: u64, width: Width) -> Result<(), Unreadable> {
        let n = self.reads.get();
        self.reads.set(n + 1);
        let inside = at
            .checked_add(width.bytes())
            .is_some_and(|end| end <= self.size);
        if !inside || self.fail.get() == Some(n) {
            return Err(Unreadable { at });
        }
        Ok(())
    }
}

impl ReadEntry for FakeGuest {
    type Error = Unreadable;

    fn read(&self, at: u64, width: Width) -> Result<u64, Unreadable> {
        self.check(at, width)?;
        let words = self.words.borrow();
        Ok(if words.0.contains_key(&(at & !7)) {
            words.get(at, width)
        } else {
            0
        })
    }
}

impl UpdateEntry for FakeGuest {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Unreadable> {
        let found = self.read(at, width)?;
        if found == current {
            self.set(at, width, new);
        }
        Ok(found)
    }
}
