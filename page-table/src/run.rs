// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run of smallest pages in one table that is there: a buffer of a driver's.
//!
//! ```text
//!   leaf table   | . . . . L L L . . . . . |      map: every slot empty; unmap: every slot a leaf
//!                          ^-----^                else, and for a whole table, the passes decide
//! ```
//!
//! As with [single pages](crate::single), whatever is to be refused is left to the passes over
//! [ranges](crate::map): nothing was changed yet. Every slot is looked at before the first is stored.

use crate::format::{Encode, Entry};
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::shape::Width;
use crate::span::Span;

/// Slots of a leaf table.
struct Run {
    /// Where the entry of the first is.
    at: u64,
    count: u64,
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// Maps `span` if its pages are a run that can be mapped.
    #[inline(never)]
    pub(crate) fn map_run(&mut self, span: Span, target: u64, attributes: F::Attributes) -> bool {
        let Some(run) = self.run(span) else {
            return false;
        };
        let offset = span.length.saturating_sub(self.shape().size(1));
        let Some(last) = target.checked_add(offset) else {
            return false;
        };
        let may = self.may_lead_to(target, attributes) && self.may_lead_to(last, attributes);
        if !may || !self.all(&run, |entry| matches!(entry, Entry::Empty)) {
            return false;
        }
        let (format, size) = (self.format(), self.shape().size(1));
        let mut target = target;
        self.store(&run, || {
            let leaf = format.leaf(target, attributes, 1);
            target = target.wrapping_add(size);
            leaf
        });
        true
    }

    /// Unmaps `span` if its pages are a run, each mapped.
    #[inline(never)]
    pub(crate) fn unmap_run(&mut self, span: Span) -> bool {
        let Some(run) = self.run(span) else {
            return false;
        };
        if !self.all(&run, |entry| matches!(entry, Entry::Leaf { .. })) {
            return false;
        }
        let empty = self.format().empty();
        self.store(&run, || empty);
        true
    }

    /// The slots of `span`, if they are some, but not all, of one leaf table's.
    #[inline]
    fn run(&mut self, Span { start, length }: Span) -> Option<Run> {
        let shape = self.shape();
        let aligned = (start | length) & shape.below(1) == 0;
        let room = shape.size(2).checked_sub(length);
        let within =
            length != 0 && room.is_some_and(|room| room != 0 && (start & shape.below(2)) <= room);
        let count = length >> shape.shift(1);
        if !aligned || !within {
            return None;
        }
        Some(Run {
            at: self.entry_again(start)?,
            count,
        })
    }

    #[inline(always)]
    fn all(&self, run: &Run, is: impl Fn(&Entry<F::Attributes, F::Rule>) -> bool) -> bool {
        self.each(run, |at, width| {
            let entry = self.memory().load(at, width);
            is(&self.format().decode(entry, 1))
        })
    }

    #[inline(always)]
    fn store(&self, run: &Run, mut entry: impl FnMut() -> u64) {
        self.each(run, |at, width| {
            self.memory().write(at, width, entry());
            true
        });
    }

    /// Asks `ask` of each slot, for as long as the answer is yes; says whether it always was.
    #[inline(always)]
    fn each(&self, run: &Run, mut ask: impl FnMut(u64, Width) -> bool) -> bool {
        // The width as a constant: the loop is most of the cost.
        let mut go = |width: Width| {
            let mut at = run.at;
            (0..run.count).all(|_| {
                let answer = ask(at, width);
                at = at.wrapping_add(width.bytes());
                answer
            })
        };
        match self.shape().width() {
            Width::Four => go(Width::Four),
            Width::Eight => go(Width::Eight),
        }
    }
}
