// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest-physical memory through tables of the same format: the second dimension of a walk.

use std::convert::Infallible;

use hvkit_page_table::{Fault, Format, Frames, ReadEntry, Root, Width, translate};

use crate::memory::{Memory, RAM};

/// All of the guest's memory onto itself, by pages of 4 KiB.
pub struct Second<'a, F> {
    memory: &'a Memory,
    format: F,
    root: u64,
}

impl<'a, F: Format> Second<'a, F> {
    /// `bits` make an entry that leads to a table, and one that maps a page.
    pub fn new(memory: &'a Memory, format: F, bits: u64) -> Self {
        Self::with_leaves(memory, format, bits, bits)
    }

    /// The same where they are not alike.
    pub fn with_leaves(memory: &'a Memory, format: F, links: u64, leaves: u64) -> Self {
        let empty = || {
            let frame = memory.allocate().expect("a frame");
            (0..512).for_each(|i| memory.word(frame + i * 8).set(0));
            frame
        };
        let below = |table: u64, index: u64| {
            let entry = memory.word(table + index * 8);
            if entry.get() & 1 == 0 {
                entry.set(empty() | links);
            }
            entry.get() & !0xfff
        };
        let root = empty();
        for at in (0..RAM).step_by(4096) {
            let table = below(below(below(root, at >> 39), at >> 30 & 511), at >> 21 & 511);
            memory.word(table + (at >> 12 & 511) * 8).set(at | leaves);
        }
        Self {
            memory,
            format,
            root,
        }
    }

    #[inline(always)]
    pub fn host(&self, at: u64) -> Result<u64, Fault<F::Rule, Infallible>> {
        let root = Root::Table(self.root);
        translate(&self.format, self.memory, root, at).map(|there| there.target)
    }
}

impl<F: Format> ReadEntry for Second<'_, F> {
    type Error = Fault<F::Rule, Infallible>;

    #[inline(always)]
    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        let Ok(entry) = self.memory.read(self.host(at)?, width);
        Ok(entry)
    }
}
