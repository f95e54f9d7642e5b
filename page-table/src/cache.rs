// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A cache of leaf tables, for emulators that walk the same table again and again.
//!
//! It remembers where the lowest table for a stretch of addresses is (2 MiB of them, in most formats)
//! and reads the leaf itself every time. So changes of leaves are seen at once, as if nothing were
//! cached; changes of upper entries are seen after [`flush`](LeafCache::flush), as a processor sees
//! them after an invalidation. Large pages are not cached.

use core::cell::Cell;

use crate::format::{Entry, Format};
use crate::memory::ReadEntry;
use crate::shape::Shape;
use crate::span::Span;
use crate::walk::{Fault, Outcome, Root, Translation, no_leaf, visit};

/// A stretch of addresses that no table has: nothing cached.
const NOTHING: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Slot<A> {
    /// The stretch: its addresses without the bits below level 2, but with those above the translated
    /// ones, so that who has the tag has a valid address.
    tag: u64,
    /// Physical address of its leaf table.
    table: u64,
    /// Attributes folded above the leaf.
    above: Option<A>,
}

impl<A> Slot<A> {
    const NOTHING: Self = Self {
        tag: NOTHING,
        table: 0,
        above: None,
    };
}

/// `N` leaf tables of *one* root, each in the one place its address gives it. `N` is a power of two.
///
/// A cache belongs to a root: when the root changes, [`flush`](Self::flush).
///
/// And it belongs to one thread, but to everything on it: its methods take `&self`, so that one whose
/// memory is itself translated (a guest's tables behind EPT) can be used from inside a read.
#[derive(Clone, Debug)]
pub struct LeafCache<A: Copy, const N: usize> {
    slots: [Cell<Slot<A>>; N],
}

impl<A: Copy, const N: usize> Default for LeafCache<A, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Copy, const N: usize> LeafCache<A, N> {
    const MASK: u64 = {
        assert!(
            N.is_power_of_two(),
            "the number of slots must be a power of two"
        );
        N as u64 - 1
    };

    /// Nothing cached.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: [const { Cell::new(Slot::NOTHING) }; N],
        }
    }

    /// [`translate`](crate::translate), through the cache.
    ///
    /// # Errors
    ///
    /// The fault a walk would end in, given the upper entries as they were when they were cached.
    #[inline(always)]
    pub fn translate<F: Format<Attributes = A>, M: ReadEntry>(
        &self,
        format: &F,
        memory: &M,
        root: Root<'_, A>,
        address: u64,
    ) -> Outcome<F, M> {
        let cut = format.shape().cut();
        let tag = address.wrapping_shr(cut.shift(2));
        if let Some(slot) = self.slots.get((tag & Self::MASK) as usize)
            && let slot = slot.get()
            && slot.tag == tag
        {
            let at = cut.entry_at(slot.table, address, 1);
            let entry = match memory.read(at, cut.width()) {
                Ok(entry) => entry,
                Err(error) => {
                    return Err(Fault::Unreadable {
                        level: 1,
                        at,
                        error,
                    });
                }
            };
            if let Entry::Leaf { target, attributes } = format.decode(entry, 1) {
                let offset = address & cut.size(1).wrapping_sub(1);
                return Ok(Translation {
                    target: target.wrapping_add(offset),
                    level: 1,
                    attributes: match slot.above {
                        Some(above) => format.fold(above, attributes),
                        None => attributes,
                    },
                });
            }
            return no_leaf(format, entry, address);
        }
        match root {
            Root::Table(table) => self.walk_from(format, memory, table, address),
            other => self.walk(format, memory, other, address),
        }
    }

    /// [`walk`](Self::walk) from a table. A root would be put into memory for it even where the cache has
    /// the answer.
    #[cold]
    #[inline(never)]
    fn walk_from<F: Format<Attributes = A>, M: ReadEntry>(
        &self,
        format: &F,
        memory: &M,
        table: u64,
        address: u64,
    ) -> Outcome<F, M> {
        self.walk(format, memory, Root::Table(table), address)
    }

    /// Walks, and remembers the leaf table if there was one.
    #[cold]
    fn walk<F: Format<Attributes = A>, M: ReadEntry>(
        &self,
        format: &F,
        memory: &M,
        root: Root<'_, A>,
        address: u64,
    ) -> Outcome<F, M> {
        let shape = format.shape();
        let mut above = match root {
            Root::Inner { attributes, .. } => Some(attributes),
            Root::Table(_) | Root::Registers(_) => None,
        };
        let mut found = None;
        let outcome = visit(format, memory, root, address, |step| {
            match (step.level, step.at) {
                (1, Some(at)) => found = Some(at),
                _ => above = step.attributes,
            }
        });
        if let Some(at) = found {
            let tag = address.wrapping_shr(shape.shift(2));
            let table = at.wrapping_sub(shape.slot_at(0, shape.index(address, 1)));
            if let Some(slot) = self.slots.get((tag & Self::MASK) as usize) {
                slot.set(Slot { tag, table, above });
            }
        }
        outcome
    }

    /// Forgets everything.
    pub fn flush(&self) {
        for slot in &self.slots {
            slot.set(Slot::NOTHING);
        }
    }

    /// Forgets the leaf tables for `span`, of a table of this `shape`.
    pub fn flush_span(&self, shape: &Shape, span: impl Into<Span>) {
        let span = span.into();
        let shift = shape.shift(2);
        let tag = |address: u64| {
            let valid = shape.strip(address).is_some();
            valid.then(|| address.wrapping_shr(shift))
        };
        let (Some(first), Some(last)) = (tag(span.start), tag(span.last())) else {
            return self.flush();
        };
        for slot in &self.slots {
            let tag = slot.get().tag;
            if tag != NOTHING && tag >= first && tag <= last {
                slot.set(Slot::NOTHING);
            }
        }
    }
}
