// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mapping on demand, from several threads at once.
//!
//! ```text
//!   thread 1   build table, fill it --.                      .--> done
//!                                      compare-exchange, once
//!   thread 2   build table, fill it --'                      '--> free ours, use theirs
//! ```
//!
//! No lock: a missing table is built where nobody sees it, with the pages in it, and one
//! compare-exchange links all of it. Who loses takes what the winner linked. Walkers and hardware see
//! no table before it is finished. What is there is left alone, so nothing is ever stale.

use crate::chain::Subtree;
use crate::change::{Block, Map};
use crate::error::{MapError, Refused};
use crate::format::{Encode, Entry};
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::shape::Shape;
use crate::span::Span;

/// How often a slot is tried again that keeps changing and stays empty. Faulting in never does that to
/// a slot; a peer that rewrites empty entries might.
const PATIENCE: u32 = 64;

/// What a [`fault_in`](Mapper::fault_in) found and did, in bytes; together the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Filled {
    /// Mapped now, by this call.
    pub added: u64,
    /// Mapped as asked before, by someone else.
    pub same: u64,
    /// Mapped before to something else, or otherwise; left alone. So is a hole in a table of a level that
    /// has no pages, under a larger page that was asked for, and one whose entry a peer rewrote 64 times and left empty.
    pub other: u64,
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// Maps what is not mapped in `span`, beside other threads that do the same.
    ///
    /// With leaves of one size, the largest that `span` is made of; they must lie in one table, so that
    /// the whole is done or refused: a page, or the pages around a fault. Where such a leaf would stand
    /// there may be a table already, of smaller pages that were faulted in before: its holes are filled
    /// with pages of its own size, so that a handler that asks for 2 MiB gets them one way or the other.
    ///
    /// # Errors
    ///
    /// [`MapError::Straddles`] if they do not; otherwise as [`map`](Self::map), except that what is
    /// mapped already is no error: see [`Filled`].
    #[inline(always)]
    pub fn fault_in(
        &self,
        span: impl Into<Span>,
        target: u64,
        attributes: F::Attributes,
    ) -> Result<Filled, Refused<F>> {
        let span = span.into();
        if self.fault_in_single(span, target, attributes) {
            return Ok(Filled {
                added: span.length,
                ..Filled::default()
            });
        }
        self.fault_in_range(span, target, attributes)
    }

    /// [`fault_in`](Self::fault_in), whatever the range and whatever is there.
    #[inline(never)]
    fn fault_in_range(
        &self,
        span: Span,
        target: u64,
        attributes: F::Attributes,
    ) -> Result<Filled, Refused<F>> {
        let (lo, hi) = self.target_range(span, target)?;
        let change = Map {
            start: lo,
            target,
            attributes,
        };
        let leaf_level = self.leaf_level(&change, lo, hi)?;
        let (format, shape, memory) = (self.format(), self.shape(), self.memory());
        let table_level = leaf_level.saturating_add(1);
        let last = hi.wrapping_sub(1);
        if leaf_level < shape.levels() && (lo ^ last) & !shape.below(table_level) != 0 {
            let Span { start, length } = span;
            return Err(MapError::Straddles {
                start,
                length,
                level: leaf_level,
            });
        }
        let (mut table, mut level) = (self.root(), shape.levels());
        while level > leaf_level {
            let at = shape.entry_at(table, lo, level);
            let entry = memory.load(at, shape.width());
            if let Entry::Table { frame, .. } = format.decode(entry, level) {
                table = frame;
                level = level.saturating_sub(1);
                continue;
            }
            match self.fault_in_at(&change, at, level, (lo, hi))? {
                Link::Filled(filled) => return Ok(filled),
                Link::Table(frame) => {
                    table = frame;
                    level = level.saturating_sub(1);
                }
            }
        }
        self.fill_slots(table, level, (lo, hi), target, attributes)
    }

    /// Goes on where there is no table: builds one and links it, or finds what others put there.
    fn fault_in_at(
        &self,
        change: &Map<F::Attributes>,
        at: u64,
        level: u8,
        (lo, hi): (u64, u64),
    ) -> Result<Link, Refused<F>> {
        let (format, shape, memory) = (self.format(), self.shape(), self.memory());
        let base = shape.base(lo, level);
        let bytes = hi.saturating_sub(lo);
        let mut entry = memory.load(at, shape.width());
        for _ in 0..PATIENCE {
            match format.decode(entry, level) {
                Entry::Table { frame, .. } => return Ok(Link::Table(frame)),
                Entry::Leaf { target, attributes } => {
                    let target = target.wrapping_add(lo.wrapping_sub(base));
                    let same = target == change.target && attributes == change.attributes;
                    return Ok(Link::Filled(Filled::found(same, bytes)));
                }
                Entry::Malformed(rule) => {
                    return Err(self.corrupt(lo, level, entry, Some(rule)));
                }
                Entry::Empty => {
                    let subtree = Subtree::under(level, 0);
                    let frame = self.build(change, subtree.level, base, (lo, hi), Block::Hole)?;
                    let subtree = Subtree { frame, ..subtree };
                    let link = format.table(frame, level);
                    match memory.exchange(at, shape.width(), entry, link) {
                        Ok(()) => {
                            let filled = Filled {
                                added: bytes,
                                ..Filled::default()
                            };
                            return Ok(Link::Filled(filled));
                        }
                        Err(found) => entry = found,
                    }
                    self.free_subtree(subtree);
                }
            }
        }
        Err(self.corrupt(lo, level, entry, None))
    }

    /// Puts a leaf in each empty slot of a table that everyone sees, and of the tables below it.
    fn fill_slots(
        &self,
        table: u64,
        level: u8,
        range: (u64, u64),
        target: u64,
        attributes: F::Attributes,
    ) -> Result<Filled, Refused<F>> {
        // Nothing is refused once something was stored.
        self.check_slots(table, level, range)?;
        let mut filled = Filled::default();
        self.fill_checked(table, level, range, target, attributes, &mut filled);
        Ok(filled)
    }

    /// Refuses slots that are malformed.
    fn check_slots(&self, table: u64, level: u8, (lo, hi): (u64, u64)) -> Result<(), Refused<F>> {
        let (format, shape) = (self.format(), self.shape());
        for (base, end) in slots(shape, level, (lo, hi)) {
            let at = shape.entry_at(table, base, level);
            let entry = self.memory().load(at, shape.width());
            match format.decode(entry, level) {
                Entry::Malformed(rule) => {
                    return Err(self.corrupt(base, level, entry, Some(rule)));
                }
                Entry::Table { frame, .. } if level > 1 => {
                    self.check_slots(frame, level.saturating_sub(1), (base, end))?;
                }
                _ => (),
            }
        }
        Ok(())
    }

    /// Fills, and counts. What others change meanwhile is counted as it is found.
    fn fill_checked(
        &self,
        table: u64,
        level: u8,
        (lo, hi): (u64, u64),
        target: u64,
        attributes: F::Attributes,
        filled: &mut Filled,
    ) {
        let (format, shape, memory) = (self.format(), self.shape(), self.memory());
        let size = shape.size(level);
        let count = hi.saturating_sub(lo) >> shape.shift(level);
        let leaves = self.fits(level, level, count, target, attributes);
        for (base, end) in slots(shape, level, (lo, hi)) {
            let at = shape.entry_at(table, base, level);
            let target = target.wrapping_add(base.wrapping_sub(lo));
            let leaf = format.leaf(target, attributes, level);
            let mut entry = memory.load(at, shape.width());
            let mut patience = if leaves { PATIENCE } else { 0 };
            while let (Entry::Empty, 1..) = (format.decode(entry, level), patience) {
                match memory.exchange(at, shape.width(), entry, leaf) {
                    Ok(()) => {
                        filled.added = filled.added.saturating_add(size);
                        break;
                    }
                    Err(found) => entry = found,
                }
                patience = patience.saturating_sub(1);
            }
            match format.decode(entry, level) {
                // Stored. What is empty for want of patience is counted below.
                Entry::Empty if patience > 0 => (),
                Entry::Leaf {
                    target: there,
                    attributes: theirs,
                } if there == target && theirs == attributes => {
                    filled.same = filled.same.saturating_add(size);
                }
                Entry::Table { frame, .. } if level > 1 => {
                    let below = level.saturating_sub(1);
                    self.fill_checked(frame, below, (base, end), target, attributes, filled);
                }
                _ => filled.other = filled.other.saturating_add(size),
            }
        }
    }

    /// The level of the largest leaves that `lo..hi` is made of.
    fn leaf_level(&self, change: &Map<F::Attributes>, lo: u64, hi: u64) -> Result<u8, Refused<F>> {
        let Map {
            target, attributes, ..
        } = *change;
        let shape = self.shape();
        let bytes = hi.saturating_sub(lo);
        let largest = self.largest(change, attributes);
        let fits = |level| {
            let count = bytes >> shape.shift(level);
            self.fits(level, largest, count, target, attributes)
        };
        // Sizes are multiples of each other: what is not aligned for one is not for the next.
        let aligned = |level: &u8| (lo | hi) & shape.below(*level) == 0;
        let larger = (2..=shape.levels())
            .take_while(aligned)
            .filter(|&level| fits(level))
            .last();
        match larger {
            Some(level) => Ok(level),
            None if fits(1) => Ok(1),
            None => Err(self.misfit(target.wrapping_add(bytes.wrapping_sub(1)), attributes)),
        }
    }
}

/// The slots at `level` that `lo..hi` is made of: where each begins and ends.
fn slots(
    shape: &Shape,
    level: u8,
    (lo, hi): (u64, u64),
) -> impl Iterator<Item = (u64, u64)> + use<'_> {
    let shift = shape.shift(level);
    (0..hi.saturating_sub(lo) >> shift).map(move |slot| {
        let base = lo.wrapping_add(slot << shift);
        (base, shape.behind(base, level))
    })
}

/// What a slot without a table came to.
enum Link {
    /// All is mapped.
    Filled(Filled),
    /// Somebody else linked this table.
    Table(u64),
}

impl Filled {
    /// All of `bytes` was mapped before.
    fn found(same: bool, bytes: u64) -> Self {
        if same {
            Self {
                same: bytes,
                ..Self::default()
            }
        } else {
            Self {
                other: bytes,
                ..Self::default()
            }
        }
    }
}
