// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two passes of a range operation: plan, then apply.
//!
//! Both ask the same pure question of each slot ([`Operation::decide`]) and get the same answer, as
//! only hardware's accessed and dirty bits change in between: those that the plan did not see are added
//! to the table that it built. Plan goes from high to low addresses and
//! chains the tables it builds through themselves; apply goes from low to high and takes them off
//! again in order.

use crate::chain::{Chain, Subtree};
use crate::change::{Block, Change};
use crate::decide::{Action, Decision, Operation, Slot};
use crate::error::Refused;
use crate::format::Encode;
use crate::memory::{Frames, OwnEntries};
use crate::stale::Debt;

/// What the two passes share.
struct Passes<'a, D> {
    debt: &'a mut D,
    pending: Chain,
    /// A leaf was there, or a whole table.
    found: bool,
    /// The accessed and dirty bits that every leaf which the plan built tables of had then.
    marked: u64,
}

impl<F: Encode, M: OwnEntries, P: Frames, C: Change<F>> Operation<'_, F, M, P, C> {
    /// Plans, then applies.
    pub(crate) fn both_passes<D: Debt>(
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
            marked: self.mapper.format().marks().all(),
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

    /// First pass, high to low: may refuse, builds what is missing, changes nothing.
    fn plan<D: Debt>(
        &self,
        passes: &mut Passes<'_, D>,
        table: u64,
        level: u8,
        lo: u64,
        hi: u64,
    ) -> Result<(), Refused<F>> {
        let shape = self.mapper.shape();
        let below = level.saturating_sub(1);
        let mut end = hi;
        while end > lo {
            let start = lo.max(shape.base(end.wrapping_sub(1), level));
            let slot = self.slot(table, level, start, end);
            let decision = self.decide(&slot)?;
            passes.found |= decision.found;
            match decision.action {
                Action::Descend(frame) => self.plan(passes, frame, below, start, end)?,
                Action::Build(before) => {
                    let range = (start, end);
                    let base = slot.base;
                    let frame = self.mapper.build(self.change, below, base, range, before)?;
                    let subtree = Subtree::under(level, frame);
                    if let Block::Leaf { marks, .. } = before {
                        passes.marked &= marks;
                    }
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
                        let below = slot.level.saturating_sub(1);
                        self.apply(passes, frame, below, slot.lo, slot.hi);
                    }
                    Action::Build(before) => self.link(passes, &slot, before),
                    Action::Keep | Action::Store { .. } | Action::Discard(_) => (),
                }
            }
            start = slot.hi;
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
        // What hardware set after the plan looked is in no leaf of the subtree yet. A hole has no marks.
        let mut marked = passes.marked;
        let marks = match before {
            Block::Leaf { .. } => format.marks().all(),
            Block::Hole => 0,
        };
        self.exchange(
            slot,
            format.table(subtree.frame, slot.level),
            |entry, found| {
                if found & marks & !marked != 0 {
                    self.mapper.mark_subtree(subtree, found & marks);
                    marked |= found & marks;
                }
                entry
            },
        );
        if let Block::Leaf { .. } = before {
            let end = self.mapper.shape().behind(slot.base, slot.level);
            passes.debt.note_tables();
            passes.debt.add(self.span(slot.base, end));
        }
    }
}
