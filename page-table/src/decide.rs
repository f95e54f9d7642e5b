// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decide over the whole range, then store: the two passes of every range operation.
//!
//! Both passes ask the same pure question of each slot ([`Operation::decide`]) and get the same
//! answer, as only hardware's accessed and dirty bits change in between. Plan goes from high to low
//! addresses and chains the tables it builds through themselves; apply goes from low to high and
//! takes them off again in order.

use crate::chain::{Chain, Subtree};
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
struct Slot {
    at: u64,
    level: u8,
    base: u64,
    lo: u64,
    hi: u64,
    entry: u64,
}

/// What is to be done with a slot.
#[derive(Clone, Copy)]
enum Action<A> {
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
struct Decision<A> {
    action: Action<A>,
    found: bool,
}

struct Operation<'a, F, M, P, C> {
    mapper: &'a Mapper<F, M, P>,
    change: &'a C,
}

/// What the two passes share.
struct Passes<'a, D> {
    debt: &'a mut D,
    pending: Chain,
    /// A leaf was there, or a whole table.
    found: bool,
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

    /// Plans, then applies.
    fn both_passes<D: Debt>(
        &self,
        table: u64,
        level: u8,
        lo: u64,
        hi: u64,
        debt: &mut D,
    ) -> Result<(), Refused<F>> {
        let mut passes = Passes {
            debt,
            pending: Chain::EMPTY,
            found: !C::NEEDS_LEAF,
        };
        let planned = self.plan(&mut passes, table, level, lo, hi).and_then(|()| {
            if passes.found {
                Ok(())
            } else {
                Err(self.nothing(lo, hi))
            }
        });
        if planned.is_ok() {
            self.apply(&mut passes, table, level, lo, hi);
        }
        // What was built and not linked.
        let (format, memory) = (self.mapper.format(), self.mapper.memory());
        while let Some((subtree, _)) = passes.pending.pop(format, memory) {
            self.mapper.free_subtree(subtree);
        }
        planned
    }

    /// The slot of `table` that `lo` is in, clipped to `lo..hi`.
    #[inline]
    fn slot(&self, table: u64, level: u8, lo: u64, hi: u64) -> Slot {
        let shape = self.mapper.shape();
        let at = shape.entry_at(table, lo, level);
        let size = shape.size(level);
        let base = lo & !(size - 1);
        let entry = self.mapper.memory().load(at, shape.width());
        Slot {
            at,
            level,
            base,
            lo,
            hi: hi.min(base + size),
            entry,
        }
    }

    /// What is to be done with a slot. The same in both passes.
    #[inline(always)]
    fn decide(&self, slot: &Slot) -> Result<Decision<F::Attributes>, Refused<F>> {
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
        let action = if after == here && level <= self.change.largest().max(1) {
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

    /// First pass, high to low: may refuse, builds what is missing, changes nothing.
    fn plan<D: Debt>(
        &self,
        passes: &mut Passes<'_, D>,
        table: u64,
        level: u8,
        lo: u64,
        hi: u64,
    ) -> Result<(), Refused<F>> {
        let size = self.mapper.shape().size(level);
        let mut end = hi;
        while end > lo {
            let start = lo.max((end - 1) & !(size - 1));
            let slot = self.slot(table, level, start, end);
            let decision = self.decide(&slot)?;
            passes.found |= decision.found;
            match decision.action {
                Action::Descend(frame) => self.plan(passes, frame, level - 1, start, end)?,
                Action::Build(before) => {
                    let range = (start, end);
                    let base = slot.base;
                    let frame = self
                        .mapper
                        .build(self.change, level - 1, base, range, before)?;
                    let subtree = Subtree {
                        frame,
                        level: level - 1,
                    };
                    passes
                        .pending
                        .push(self.mapper.format(), self.mapper.memory(), subtree);
                }
                Action::Keep | Action::Store { .. } | Action::Discard(_) => (),
            }
            end = start;
        }
        Ok(())
    }

    /// Second pass, low to high: stores.
    fn apply<D: Debt>(&self, passes: &mut Passes<'_, D>, table: u64, level: u8, lo: u64, hi: u64) {
        let mut start = lo;
        while start < hi {
            let slot = self.slot(table, level, start, hi);
            // The plan had no error here, and only marks have changed since.
            if let Ok(Decision { action, .. }) = self.decide(&slot)
                && !self.perform(&slot, action, passes.debt)
            {
                match action {
                    Action::Descend(frame) => {
                        self.apply(passes, frame, slot.level - 1, slot.lo, slot.hi);
                    }
                    Action::Build(before) => self.link(passes, &slot, before),
                    Action::Keep | Action::Store { .. } | Action::Discard(_) => (),
                }
            }
            start = slot.hi;
        }
    }

    /// Does what was decided for one slot, if one store does it.
    #[inline(always)]
    fn perform<D: Debt>(&self, slot: &Slot, action: Action<F::Attributes>, debt: &mut D) -> bool {
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
                debt.take(
                    format,
                    memory,
                    Subtree {
                        frame,
                        level: slot.level - 1,
                    },
                );
                true
            }
            Action::Descend(_) | Action::Build(_) => false,
        }
    }

    /// Links the next table that the plan built, in place of `before`.
    fn link<D: Debt>(&self, passes: &mut Passes<'_, D>, slot: &Slot, before: Block<F::Attributes>) {
        let (format, memory) = (self.mapper.format(), self.mapper.memory());
        let width = self.mapper.shape().width();
        let Some((subtree, displaced)) = passes.pending.pop(format, memory) else {
            return;
        };
        if let Some((at, level)) = displaced {
            // The chain's link lay in slot 0, which is the block's first page or hole.
            let first = if slot.lo == slot.base {
                self.change.after(slot.lo, before).unwrap_or(Block::Hole)
            } else {
                before
            };
            memory.write(at, width, self.mapper.word(first, level));
        }
        let mut marked = slot.entry;
        self.exchange(
            slot,
            format.table(subtree.frame, slot.level),
            |entry, found| {
                if found != marked {
                    self.mapper
                        .mark_subtree(subtree, found & format.marks().all());
                    marked = found;
                }
                entry
            },
        );
        if let Block::Leaf { .. } = before {
            let end = slot.base + self.mapper.shape().size(slot.level);
            passes.debt.note_tables();
            passes.debt.add(self.span(slot.base, end));
        }
    }

    /// Replaces a slot's entry by what `with` makes of `entry` and of the old entry as last seen.
    fn exchange(&self, slot: &Slot, entry: u64, mut with: impl FnMut(u64, u64) -> u64) {
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
    fn span(&self, lo: u64, hi: u64) -> Span {
        Span::new(self.mapper.shape().extend(lo), hi.wrapping_sub(lo))
    }

    /// Nothing was mapped.
    #[cold]
    fn nothing(&self, lo: u64, hi: u64) -> Refused<F> {
        let Span { start, length } = self.span(lo, hi);
        MapError::NothingMapped { start, length }
    }
}
