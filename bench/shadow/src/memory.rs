// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host memory: an array of words. The guest's memory is its lower part, frames for tables come from
//! the upper.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, Span, UpdateEntry, Width};
use hvkit_shadow_paging::mmu::{Backing, HostMap, HostRights};

/// Bytes of the guest's memory: 64 MiB.
pub const RAM: u64 = 64 << 20;
/// Bytes of all: 128 MiB.
const ALL: u64 = 128 << 20;

#[derive(Debug)]
pub struct Memory {
    words: Vec<Cell<u64>>,
    next: Cell<u64>,
    all: u64,
    free: RefCell<Vec<u64>>,
}

impl Memory {
    pub fn new() -> Self {
        Self::with(RAM, ALL)
    }

    /// `ram` bytes of the guest's, and frames up to `all`.
    pub fn with(ram: u64, all: u64) -> Self {
        Self {
            words: vec![Cell::new(0); (all / 8) as usize],
            next: Cell::new(ram),
            all,
            free: RefCell::default(),
        }
    }

    #[inline(always)]
    pub fn word(&self, at: u64) -> &Cell<u64> {
        &self.words[(at / 8) as usize]
    }
}

impl ReadEntry for Memory {
    type Error = Infallible;

    #[inline(always)]
    fn read(&self, at: u64, _: Width) -> Result<u64, Infallible> {
        Ok(self.word(at).get())
    }
}

impl UpdateEntry for Memory {
    #[inline(always)]
    fn compare_exchange(
        &self,
        at: u64,
        _: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let word = self.word(at);
        let found = word.get();
        if found == current {
            word.set(new);
        }
        Ok(found)
    }
}

impl OwnEntries for Memory {
    #[inline(always)]
    fn write(&self, at: u64, _: Width, entry: u64) {
        self.word(at).set(entry);
    }
}

impl Frames for Memory {
    fn allocate(&self) -> Option<u64> {
        let freed = self.free.borrow_mut().pop();
        freed.or_else(|| {
            let frame = self.next.get();
            self.next.set(frame + 4096);
            (frame < self.all).then_some(frame)
        })
    }

    fn free(&self, frame: u64) {
        self.free.borrow_mut().push(frame);
    }
}

/// The guest's memory as one piece.
#[derive(Debug)]
pub struct Flat;

impl HostMap for Flat {
    #[inline(always)]
    fn backing(&self, guest: u64) -> Backing {
        if guest < RAM {
            Backing::Memory {
                guest: Span::new(0, RAM),
                host: 0,
                rights: HostRights::ALL,
            }
        } else {
            Backing::Absent
        }
    }
}
