// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model's physical memory as a case sees it: tables, and what the payload prepared.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::Range;

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};
use lab_cases::{Digest, Slot};

/// No memory from here on: reads give ones.
const RAM_END: u64 = 0x1000_0000;

/// Memory with the tables of one case in it.
pub(super) struct Memory {
    /// What was stored, in words of 8 bytes.
    stored: RefCell<BTreeMap<u64, u64>>,
    /// The rest: the aligned 8 bytes at an address, as the payload prepared them.
    prepared: fn(u64) -> u64,
}

impl Memory {
    /// As the case finds it.
    pub(super) fn new(slots: &[Slot], prepared: fn(u64) -> u64) -> Self {
        let memory = Self {
            stored: RefCell::default(),
            prepared,
        };
        for slot in slots {
            let width = if slot.width == 4 {
                Width::Four
            } else {
                Width::Eight
            };
            memory.store(slot.at, width, slot.value);
        }
        memory
    }

    /// The 4 bytes at `at`.
    pub(super) fn load_32(&self, at: u64) -> u32 {
        self.load(at, Width::Four) as u32
    }

    /// Stores 4 bytes at `at`, if there is memory.
    pub(super) fn store_32(&self, at: u64, value: u32) {
        self.store(at, Width::Four, u64::from(value));
    }

    /// The digest of what is in `arenas`, where nothing was prepared.
    pub(super) fn digest(&self, arenas: &[Range<u64>]) -> u32 {
        let mut digest = Digest::default();
        for arena in arenas {
            for (&at, &word) in self.stored.borrow().range(arena.clone()) {
                digest.add(at, word);
            }
        }
        digest.sum()
    }

    /// Where `word` is stored, if it is.
    pub(super) fn find(&self, word: u64) -> Option<u64> {
        let stored = self.stored.borrow();
        stored
            .iter()
            .find(|(_, found)| **found == word)
            .map(|(at, _)| *at)
    }

    /// Changes `bits` of the 8 bytes at `at`.
    pub(super) fn flip(&self, at: u64, bits: u64) {
        let word = self.word(at);
        self.store(at, Width::Eight, word ^ bits);
    }

    fn load(&self, at: u64, width: Width) -> u64 {
        let word = self.word(at & !7);
        match width {
            Width::Eight => word,
            Width::Four => word >> (8 * (at & 4)) & 0xffff_ffff,
        }
    }

    /// Stores `width` bytes at `at`, if there is memory.
    pub(super) fn store(&self, at: u64, width: Width, value: u64) {
        if at >= RAM_END {
            return;
        }
        let word = match width {
            Width::Eight => value,
            Width::Four => {
                let shift = 8 * (at & 4);
                self.word(at & !7) & !(0xffff_ffff << shift) | value << shift
            }
        };
        self.stored.borrow_mut().insert(at & !7, word);
    }

    /// The 8 bytes at `at`, which is aligned.
    fn word(&self, at: u64) -> u64 {
        if at >= RAM_END {
            return u64::MAX;
        }
        if let Some(word) = self.stored.borrow().get(&at) {
            return *word;
        }
        (self.prepared)(at)
    }
}

impl ReadEntry for Memory {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        Ok(self.load(at, width))
    }
}

impl UpdateEntry for Memory {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let found = self.load(at, width);
        if found == current {
            self.store(at, width, new);
        }
        Ok(found)
    }
}
