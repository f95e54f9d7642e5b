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
use crate::stale::Stale;

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

struct Operation<'a, F, M, P, C> {
    mapper: &'a Mapper<F, M, P>,
    change: &'a C,
    pending: Chain,
    stale: Stale,
    found: bool,
}

/// Does `change` to the stripped addresses `lo..hi`.
pub(crate) fn run<F: Encode, M: OwnEntries, P: Frames, C: Change<F>>(
    mapper: &Mapper<F, M, P>,
    change: &C,
    (lo, hi): (u64, u64),
) -> Result<Stale, Refused<F>> {
    let stale = Stale::new(mapper.root());
    let mut operation = Operation {
        mapper,
        change,
        pending: Chain::EMPTY,
        stale,
        found: !C::NEEDS_LEAF,
    };
    let (table, level) = operation.locate(lo, hi);
    let slot = operation.slot(table, level, lo, hi);
    if slot.hi == hi {
        // One slot: what is decided can be done at once, unless a table has to be built.
        let action = operation.decide(&slot)?;
        if let Action::Keep | Action::Store { .. } | Action::Discard(_) = action {
            operation.check_found(lo, hi)?;
            operation.perform(&slot, action);
            return Ok(operation.stale);
        }
    }
    let planned = operation
        .plan(table, level, lo, hi)
        .and_then(|()| operation.check_found(lo, hi));
    if let Err(refused) = planned {
        operation.drop_pending();
        return Err(refused);
    }
    operation.apply(table, level, lo, hi);
    operation.drop_pending();
    Ok(operation.stale)
}

impl<F: Encode, M: OwnEntries, P: Frames, C: Change<F>> Operation<'_, F, M, P, C> {
    /// The lowest table that holds the whole range.
    #[inline]
    fn locate(&self, lo: u64, hi: u64) -> (u64, u8) {
        let (format, shape) = (self.mapper.format(), self.mapper.shape());
        let (mut table, mut level) = (self.mapper.root(), shape.levels());
        while level > 1 {
            let size = shape.size(level);
            if (lo ^ (hi - 1)) & !(size - 1) != 0 || (C::DISCARDS && hi - lo == size) {
                break;
            }
            let entry = self
                .mapper
                .memory()
                .load(shape.entry_at(table, lo, level), shape.width());
            let Entry::Table { frame, .. } = format.decode(entry, level) else {
                break;
            };
            table = frame;
            level -= 1;
        }
        (table, level)
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
    #[inline]
    fn decide(&mut self, slot: &Slot) -> Result<Action<F::Attributes>, Refused<F>> {
        let (format, level) = (self.mapper.format(), slot.level);
        let whole = slot.hi - slot.lo == self.mapper.shape().size(level);
        let before = match format.decode(slot.entry, level) {
            Entry::Empty => Block::Hole,
            Entry::Leaf { target, attributes } => {
                self.found = true;
                Block::Leaf {
                    target,
                    attributes,
                    marks: slot.entry & format.marks().all(),
                }
            }
            Entry::Table { frame, .. } if level > 1 => {
                if C::DISCARDS && whole {
                    self.found = true;
                    return Ok(Action::Discard(frame));
                }
                return Ok(Action::Descend(frame));
            }
            Entry::Table { .. } => {
                return Err(self.mapper.corrupt(slot.lo, level, slot.entry, None));
            }
            Entry::Malformed(rule) => {
                return Err(self.mapper.corrupt(slot.lo, level, slot.entry, Some(rule)));
            }
        };
        let here = before.skip(slot.lo - slot.base);
        let Some(after) = self.change.after(slot.lo, here) else {
            let address = self.mapper.shape().extend(slot.lo);
            return Err(MapError::Overlap {
                address,
                level,
                entry: slot.entry,
            });
        };
        if after == here && level <= self.change.largest().max(1) {
            return Ok(Action::Keep);
        }
        match after {
            Block::Hole if whole => Ok(Action::Store {
                entry: format.empty(),
                owes: true,
                inherits: false,
            }),
            Block::Leaf {
                target, attributes, ..
            } if whole => {
                let largest = self.mapper.largest(self.change, attributes);
                if self.mapper.fits(level, largest, 1, target, attributes) {
                    Ok(self.store(level, before, after))
                } else if level == 1 {
                    Err(self.mapper.misfit(target, attributes))
                } else {
                    Ok(Action::Build(before))
                }
            }
            _ => Ok(Action::Build(before)),
        }
    }

    /// The store that makes a leaf of a whole slot.
    #[inline]
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
    fn plan(&mut self, table: u64, level: u8, lo: u64, hi: u64) -> Result<(), Refused<F>> {
        let size = self.mapper.shape().size(level);
        let mut end = hi;
        while end > lo {
            let start = lo.max((end - 1) & !(size - 1));
            let slot = self.slot(table, level, start, end);
            match self.decide(&slot)? {
                Action::Descend(frame) => self.plan(frame, level - 1, start, end)?,
                Action::Build(before) => {
                    let range = (start, end);
                    let change = self.change;
                    let frame = self
                        .mapper
                        .build(change, level - 1, slot.base, range, before)?;
                    let subtree = Subtree {
                        frame,
                        level: level - 1,
                    };
                    self.pending
                        .push(self.mapper.format(), self.mapper.memory(), subtree);
                }
                Action::Keep | Action::Store { .. } | Action::Discard(_) => (),
            }
            end = start;
        }
        Ok(())
    }

    /// Second pass, low to high: stores.
    fn apply(&mut self, table: u64, level: u8, lo: u64, hi: u64) {
        let mut start = lo;
        while start < hi {
            let slot = self.slot(table, level, start, hi);
            // The plan had no error here, and only marks have changed since.
            if let Ok(action) = self.decide(&slot) {
                self.perform(&slot, action);
            }
            start = slot.hi;
        }
    }

    /// Does what was decided for one slot.
    #[inline]
    fn perform(&mut self, slot: &Slot, action: Action<F::Attributes>) {
        let (format, memory) = (self.mapper.format(), self.mapper.memory());
        let width = self.mapper.shape().width();
        match action {
            Action::Keep => (),
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
                    self.owe(slot.lo, slot.hi);
                }
            }
            Action::Discard(frame) => {
                memory.write(slot.at, width, format.empty());
                self.owe(slot.lo, slot.hi);
                self.stale.take(
                    format,
                    memory,
                    Subtree {
                        frame,
                        level: slot.level - 1,
                    },
                );
            }
            Action::Descend(frame) => self.apply(frame, slot.level - 1, slot.lo, slot.hi),
            Action::Build(before) => self.link(slot, before),
        }
    }

    /// Links the next table that the plan built, in place of `before`.
    fn link(&mut self, slot: &Slot, before: Block<F::Attributes>) {
        let (format, memory) = (self.mapper.format(), self.mapper.memory());
        let width = self.mapper.shape().width();
        let Some((subtree, displaced)) = self.pending.pop(format, memory) else {
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
            self.stale.note_tables();
            self.owe(slot.base, slot.base + self.mapper.shape().size(slot.level));
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

    #[inline]
    fn owe(&mut self, lo: u64, hi: u64) {
        self.stale
            .add(Span::new(self.mapper.shape().extend(lo), hi - lo));
    }

    #[inline]
    fn check_found(&self, lo: u64, hi: u64) -> Result<(), Refused<F>> {
        if self.found {
            return Ok(());
        }
        let start = self.mapper.shape().extend(lo);
        Err(MapError::NothingMapped {
            start,
            length: hi - lo,
        })
    }

    /// Frees what was built and not linked.
    fn drop_pending(&mut self) {
        while let Some((subtree, _)) = self.pending.pop(self.mapper.format(), self.mapper.memory())
        {
            self.mapper.free_subtree(subtree);
        }
    }
}
