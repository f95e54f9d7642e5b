// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A list of subtrees that costs no memory: the links lie in the subtrees themselves.
//!
//! ```text
//!   Chain            a level 2 subtree               a level 1 subtree
//!   head ----------> .------.                  ,---> .------.
//!   count: 3         | T -------> .------.    /      | link ------> ...   last: no link
//!   tail             | T    |     | link ----'       |  L   |
//!                    '------'     |  L   |           '------'
//!                                 '------'
//! ```
//!
//! A link lies where slot 0 leads: down through tables, into the first slot that is not a table. It
//! is spelled as an entry that is not present, with the next subtree's frame where hardware ignores
//! it, so it may lie in a table that hardware still reads, as long as *not present* is a right answer
//! for slot 0's addresses: they were unmapped. The last of a chain has no link, so a chain of one
//! writes nothing.

use crate::format::{Encode, Entry};
use crate::memory::OwnEntries;

/// A table and all below it, out of everyone's reach but stale hardware's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subtree {
    pub(crate) frame: u64,
    pub(crate) level: u8,
}

impl Subtree {
    /// The one at `frame`, to which an entry at `level` leads.
    #[inline]
    pub(crate) const fn under(level: u8, frame: u64) -> Self {
        let level = level.saturating_sub(1);
        Self { frame, level }
    }

    /// As one word: what a link holds. Levels are 1 to 4: no subtree is a root.
    const fn pack(self) -> u64 {
        self.frame | (self.level.wrapping_sub(1) as u64 & LEVEL_BITS) << LEVEL_SHIFT
    }

    /// Of a word from which everything but frame and level was masked off.
    const fn unpack(word: u64) -> Self {
        Self {
            frame: word & !0xfff,
            level: ((word >> LEVEL_SHIFT & LEVEL_BITS) as u8).wrapping_add(1),
        }
    }
}

/// Subtrees, linked through themselves. Both ends are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    head: u64,
    tail: u64,
    /// Each is a frame of its own: never more than 2^52.
    count: u64,
}

/// Level of a subtree, in a link: two bits that every format here ignores in an absent entry.
const LEVEL_SHIFT: u32 = 3;
const LEVEL_BITS: u64 = 0b11;

impl Chain {
    pub(crate) const EMPTY: Self = Self {
        head: 0,
        tail: 0,
        count: 0,
    };

    pub(crate) const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Subtrees in the chain.
    #[cfg(all(debug_assertions, feature = "log"))]
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }

    /// Puts `subtree` in front, with a link in it if it is not the only one.
    pub(crate) fn push<F: Encode, M: OwnEntries>(
        &mut self,
        format: &F,
        memory: &M,
        subtree: Subtree,
    ) {
        if self.count == 0 {
            self.tail = subtree.pack();
        } else {
            link(format, memory, subtree, self.head);
        }
        self.head = subtree.pack();
        self.count = self.count.wrapping_add(1);
    }

    /// Takes the front one. Where its link lay, and the level of that table, come with it if there was
    /// one: that slot's own entry is lost.
    pub(crate) fn pop<F: Encode, M: OwnEntries>(
        &mut self,
        format: &F,
        memory: &M,
    ) -> Option<(Subtree, Option<(u64, u8)>)> {
        let subtree = Subtree::unpack(self.head);
        match self.count {
            0 => None,
            1 => {
                *self = Self::EMPTY;
                Some((subtree, None))
            }
            _ => {
                let (at, level) = link_slot(format, memory, subtree);
                let word = memory.load(at, format.shape().width());
                self.head = word & (frame_mask(format) | LEVEL_BITS << LEVEL_SHIFT);
                self.count = self.count.wrapping_sub(1);
                Some((subtree, Some((at, level))))
            }
        }
    }

    /// Puts the whole of `other` behind this one.
    pub(crate) fn append<F: Encode, M: OwnEntries>(&mut self, format: &F, memory: &M, other: Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other;
            return;
        }
        link(format, memory, Subtree::unpack(self.tail), other.head);
        self.tail = other.tail;
        self.count = self.count.wrapping_add(other.count);
    }
}

/// Bits of a frame's address in an entry.
pub(crate) fn frame_mask<F: Encode>(format: &F) -> u64 {
    (1u64 << format.frame_bits().min(52)).wrapping_sub(0x1000)
}

/// Writes, into `from`, that the packed `to` is next.
fn link<F: Encode, M: OwnEntries>(format: &F, memory: &M, from: Subtree, to: u64) {
    let (at, _) = link_slot(format, memory, from);
    memory.write(at, format.shape().width(), format.empty() | to);
}

/// Where the link of `subtree` lies, and the level of that table.
fn link_slot<F: Encode, M: OwnEntries>(format: &F, memory: &M, subtree: Subtree) -> (u64, u8) {
    let Subtree {
        frame: mut table,
        mut level,
    } = subtree;
    while level > 1 {
        match format.decode(memory.load(table, format.shape().width()), level) {
            Entry::Table { frame, .. } => table = frame,
            _ => break,
        }
        level = level.saturating_sub(1);
    }
    (table, level)
}
