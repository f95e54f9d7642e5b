// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model's physical memory as a case sees it: the map of `lab_cases::paging`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};
use lab_cases::Digest;
use lab_cases::paging::{CODE_OFFSETS, Case, DATA_OFFSETS, RAM_END, arena, pattern};

/// Memory with the tables of one case in it.
pub(super) struct Memory {
    /// What was stored, in words of 8 bytes. The rest is as the payload prepared it.
    stored: RefCell<BTreeMap<u64, u64>>,
}

impl Memory {
    /// As the access finds it.
    pub(super) fn of(case: &Case) -> Self {
        let memory = Self {
            stored: RefCell::default(),
        };
        for slot in case.entries.slots() {
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

    /// The digest of the tables.
    pub(super) fn digest(&self) -> u32 {
        let mut digest = Digest::default();
        for (&at, &word) in self.stored.borrow().range(arena()) {
            digest.add(at, word);
        }
        digest.sum()
    }

    fn load(&self, at: u64, width: Width) -> u64 {
        let word = self.word(at & !7);
        match width {
            Width::Eight => word,
            Width::Four => word >> (8 * (at & 4)) & 0xffff_ffff,
        }
    }

    fn store(&self, at: u64, width: Width, value: u64) {
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
        let offset = at & 0xfff;
        if !pattern().contains(&at) {
            0
        } else if DATA_OFFSETS.contains(&offset) {
            at
        } else if CODE_OFFSETS.contains(&offset) {
            0xb8 | at << 8 | 0x81cd << 40
        } else {
            0
        }
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
