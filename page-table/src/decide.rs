// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is to be done with one slot, and doing it where one store is enough.
//!
//! A range that is one slot of a table that is there needs no more than that. Any other goes through
//! the two [passes](crate::passes).

use crate::chain::Subtree;
use crate::change::{Block, Change};
use crate::error::{MapError, Refused};
use crate::format::{Encode, Entry};
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::span::Span;
use crate::stale::Debt;

/// How often an entry is exchanged before its accessed and dirty bits must have come to rest: hardware
/// can set each of the two once.
const PATIENCE: u32 = 8;

/// One slot, and the part of it that is in the range.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    /// Where its entry is.
    pub(crate) at: u64,
    pub(crate) level: u8,
    /// The first stripped address that it translates.
    pub(crate) base: u64,
    /// The part that is in the range.
    pub(crate) lo: u64,
    pub(crate) hi: u64,
    /// The entry, as it was read.
    pub(crate) entry: u64,
}

/// What is to be done with a slot.
#[derive(Clone, Copy)]
pub(crate) enum Action<A> {
    /// Nothing.
    Keep,
    /// Replace a hole or a leaf by `entry`.
    Store {
        entry: u64,
        /// The old translation may be in use.
        owes: bool,
        /// Accessed and dirty bits set meanwhile belong to the new entry too.
        inherits: bool,
    },
    /// Unlink this table.
    Discard(u64),
    /// Look at each slot of this table.
    Descend(u64),
    /// Replace a hole or a leaf by a table.
    Build(Block<A>),
}

/// What is to be done, and whether there is a leaf or a whole table.
pub(crate) struct Decision<A> {
    pub(crate) action: Action<A>,
    pub(crate) found: bool,
}

/// A change of a mapper's table.
pub(crate) struct Operation<'a, F, M, P, C> {
    pub(crate) mapper: &'a Mapper<F, M, P>,
    pub(crate) change: &'a C,
}

/// Does `change` to the stripped addresses `lo..hi`, and adds to `debt` what is owed for it.
///
/// The loop over levels is written out, as in [`visit`](crate::walk::visit): one page in a table that is
/// there is the operation that happens most often.
#[inline(always)]
pub(crate) fn run<F: Encode, M: OwnEntries, P: Frames, C: Change<F>, D: Debt>(
    mapper: &Mapper<F, M, P>,
    change: &C,
    (lo, hi): (u64, u64),
    debt: &mut D,
) -> Result<(), Refused<F>> {
    let operation = Operation { mapper, change };
    let (format, shape) = (mapper.format(), mapper.shape());
    let (length, spread) = (hi.wrapping_sub(lo), lo ^ hi.wrapping_sub(1));
    let (mut table, mut level) = (mapper.root(), shape.levels());
    macro_rules! levels {
        ($($at:literal)*) => { $(
            if level == $at {
                let size = shape.size($at);
                // Down, while the whole range is in one slot and may not all be discarded there.
                if spread >= size || (C::DISCARDS && length == size) {
                    return operation.any(table, $at, lo, hi, debt);
                }
                let entry = mapper.memory().load(shape.entry_at(table, lo, $at), shape.width());
                let Entry::Table { frame, .. } = format.decode(entry, $at) else {
                    return operation.any(table, $at, lo, hi, debt);
                };
                table = frame;
                level = $at - 1;
            }
        )* };
    }
    levels!(5 4 3 2);
    debug_assert_eq!(level, 1);
    if length != shape.size(1) {
        return operation.any(table, 1, lo, hi, debt);
    }
    let at = shape.entry_at(table, lo, 1);
    let entry = mapper.memory().load(at, shape.width());
    let slot = Slot {
        at,
        level: 1,
        base: lo,
        lo,
        hi,
        entry,
    };
    let decision = operation.decide(&slot)?;
    if C::NEEDS_LEAF && !decision.found {
        return Err(operation.nothing(lo, hi));
    }
    // At level 1 one store does whatever was decided.
    operation.perform(&slot, decision.action, debt);
    Ok(())
}

impl<F: Encode, M: OwnEntries, P: Frames, C: Change<F>> Operation<'_, F, M, P, C> {
    /// Does the change to a range that lies in one table.
    #[inline(never)]
    fn any<D: Debt>(
        &self,
        table: u64,
        level: u8,
        lo: u64,
        hi: u64,
        debt: &mut D,
    ) -> Result<(), Refused<F>> {
        let slot = self.slot(table, level, lo, hi);
        if slot.hi == hi {
            // One slot: what is decided can be done at once, unless a table has to be built.
            let decision = self.decide(&slot)?;
            if C::NEEDS_LEAF && !decision.found {
                return Err(self.nothing(lo, hi));
            }
            if self.perform(&slot, decision.action, debt) {
                return Ok(());
            }
        }
        self.both_passes(table, level, lo, hi, debt)
    }

    /// The slot of `table` that `lo` is in, clipped to `lo..hi`.
    #[inline]
    pub(crate) fn slot(&self, table: u64, level: u8, lo: u64, hi: u64) -> Slot {
        let shape = self.mapper.shape();
        let at = shape.entry_at(table, lo, level);
        let entry = self.mapper.memory().load(at, shape.width());
        Slot {
            at,
            level,
            base: shape.base(lo, level),
            lo,
            hi: hi.min(shape.behind(lo, level)),
            entry,
        }
    }

    /// What is to be done with a slot. The same in both passes.
    #[inline(always)]
    pub(crate) fn decide(&self, slot: &Slot) -> Result<Decision<F::Attributes>, Refused<F>> {
        let (format, level) = (self.mapper.format(), slot.level);
        let whole = slot.hi.wrapping_sub(slot.lo) == self.mapper.shape().size(level);
        let before = match format.decode(slot.entry, level) {
            Entry::Empty => Block::Hole,
            Entry::Leaf { target, attributes } => Block::Leaf {
                target,
                attributes,
                marks: slot.entry & format.marks().all(),
            },
            Entry::Table { frame, .. } if level > 1 => {
                let discard = C::DISCARDS && whole;
                let action = if discard {
                    Action::Discard(frame)
                } else {
                    Action::Descend(frame)
                };
                return Ok(Decision {
                    action,
                    found: discard,
                });
            }
            Entry::Table { .. } => {
                return Err(self.mapper.corrupt(slot.lo, level, slot.entry, None));
            }
            Entry::Malformed(rule) => {
                return Err(self.mapper.corrupt(slot.lo, level, slot.entry, Some(rule)));
            }
        };
        let here = before.skip(slot.lo.wrapping_sub(slot.base));
        let Some(after) = self.change.after(slot.lo, here) else {
            let address = self.mapper.shape().extend(slot.lo);
            return Err(MapError::Overlap {
                address,
                level,
                entry: slot.entry,
            });
        };
        // A hole has no size: there is nothing in it to be made smaller.
        let keeps_size = level <= self.change.largest().max(1) || matches!(here, Block::Hole);
        let action = if after == here && keeps_size {
            Action::Keep
        } else {
            match after {
                Block::Hole if whole => Action::Store {
                    entry: format.empty(),
                    owes: true,
                    inherits: false,
                },
                Block::Leaf {
                    target, attributes, ..
                } if whole => {
                    let largest = self.mapper.largest(self.change, attributes);
                    if self.mapper.fits(level, largest, 1, target, attributes) {
                        self.store(level, before, after)
                    } else if level == 1 {
                        return Err(self.mapper.misfit(target, attributes));
                    } else {
                        Action::Build(before)
                    }
                }
                _ => Action::Build(before),
            }
        };
        Ok(Decision {
            action,
            found: matches!(before, Block::Leaf { .. }),
        })
    }

    /// The store that makes a leaf of a whole slot.
    #[inline(always)]
    fn store(
        &self,
        level: u8,
        before: Block<F::Attributes>,
        after: Block<F::Attributes>,
    ) -> Action<F::Attributes> {
        let (owes, inherits) = match (before, after) {
            (
                Block::Leaf {
                    target: from,
                    attributes: old,
                    ..
                },
                Block::Leaf {
                    target: to,
                    attributes: new,
                    ..
                },
            ) => (
                from != to || self.mapper.format().leaves_stale(old, new),
                from == to,
            ),
            _ => (false, false),
        };
        Action::Store {
            entry: self.mapper.word(after, level),
            owes,
            inherits,
        }
    }

    /// Does what was decided for one slot, if one store does it.
    #[inline(always)]
    pub(crate) fn perform<D: Debt>(
        &self,
        slot: &Slot,
        action: Action<F::Attributes>,
        debt: &mut D,
    ) -> bool {
        let (format, memory) = (self.mapper.format(), self.mapper.memory());
        let width = self.mapper.shape().width();
        match action {
            Action::Keep => true,
            Action::Store {
                entry,
                owes,
                inherits,
            } => {
                let marks = if inherits { format.marks().all() } else { 0 };
                if marks == 0 {
                    memory.write(slot.at, width, entry);
                } else {
                    self.exchange(slot, entry, |entry, found| entry | found & marks);
                }
                if owes {
                    debt.add(self.span(slot.lo, slot.hi));
                }
                true
            }
            Action::Discard(frame) => {
                memory.write(slot.at, width, format.empty());
                debt.add(self.span(slot.lo, slot.hi));
                debt.take(format, memory, Subtree::under(slot.level, frame));
                true
            }
            Action::Descend(_) | Action::Build(_) => false,
        }
    }

    /// Replaces a slot's entry by what `with` makes of `entry` and of the old entry as last seen.
    pub(crate) fn exchange(&self, slot: &Slot, entry: u64, mut with: impl FnMut(u64, u64) -> u64) {
        let memory = self.mapper.memory();
        let width = self.mapper.shape().width();
        let mut found = slot.entry;
        for _ in 0..PATIENCE {
            match memory.exchange(slot.at, width, found, with(entry, found)) {
                Ok(()) => return,
                Err(now) => found = now,
            }
        }
        // More changes than marks there are: not hardware's. Ours stands.
        memory.write(slot.at, width, with(entry, found));
    }

    /// The addresses whose stripped ones are `lo..hi`.
    #[inline(always)]
    pub(crate) fn span(&self, lo: u64, hi: u64) -> Span {
        Span::new(self.mapper.shape().extend(lo), hi.wrapping_sub(lo))
    }

    /// Nothing was mapped.
    #[cold]
    pub(crate) fn nothing(&self, lo: u64, hi: u64) -> Refused<F> {
        let Span { start, length } = self.span(lo, hi);
        MapError::NothingMapped { start, length }
    }
}
