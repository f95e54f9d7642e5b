// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables built out of everyone's reach, to be linked by one store.
//!
//! ```text
//!   one table     0        first        end        n
//!                 |  before  | / after  / |  before  |       /: a slot that the range cuts,
//!                 '----------'-----------'-----------'          a table of its own
//! ```

use core::ops::Range;

use crate::chain::Subtree;
use crate::change::{Block, Change, Unmap};
use crate::error::{MapError, Refused};
use crate::format::{Encode, Entry};
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};

/// A table being filled: where it is, its level, the stripped address of its first slot.
#[derive(Clone, Copy)]
struct Site {
    table: u64,
    level: u8,
    base: u64,
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// A new table at `level` for the addresses from `base`: `before`, changed inside `range`.
    ///
    /// On error nothing is left of it.
    pub(crate) fn build<C: Change<F>>(
        &self,
        change: &C,
        level: u8,
        base: u64,
        range: (u64, u64),
        before: Block<F::Attributes>,
    ) -> Result<u64, Refused<F>> {
        let table = self.allocate()?;
        let site = Site { table, level, base };
        self.fill_mixed(change, site, range, before)
            .inspect_err(|_| {
                self.free_subtree(Subtree {
                    frame: table,
                    level,
                });
            })?;
        Ok(table)
    }

    /// Whether `count` leaves at `level`, the first to `target`, can stand there.
    #[inline(always)]
    pub(crate) fn fits(
        &self,
        level: u8,
        largest: u8,
        count: u64,
        target: u64,
        attributes: F::Attributes,
    ) -> bool {
        let size = self.shape().size(level);
        let end = target.wrapping_add(size.wrapping_mul(count));
        (level == 1 || (self.shape().leaf_at(level) && level <= largest))
            && target & size.wrapping_sub(1) == 0
            && end <= 1u64 << self.format().target_bits(level).min(52)
            && self.format().check(attributes, level).is_ok()
    }

    /// The largest leaf that policy and operation allow for `attributes`.
    #[inline(always)]
    pub(crate) fn largest<C: Change<F>>(&self, change: &C, attributes: F::Attributes) -> u8 {
        let sizes = self.sizes();
        let mut largest = sizes.largest.min(change.largest());
        if sizes.largest_executable < largest && self.format().executable(attributes) {
            largest = sizes.largest_executable;
        }
        largest
    }

    /// Why the smallest leaf does not fit.
    #[cold]
    pub(crate) fn misfit(&self, last: u64, attributes: F::Attributes) -> Refused<F> {
        match self.format().check(attributes, 1) {
            Err(rule) => MapError::Unsupported {
                attributes,
                level: 1,
                rule,
            },
            Ok(()) => MapError::TargetTooWide {
                target: last,
                bits: self.format().target_bits(1),
            },
        }
    }

    /// The word for `block` in a table at `level`.
    #[inline(always)]
    pub(crate) fn word(&self, block: Block<F::Attributes>, level: u8) -> u64 {
        match block {
            Block::Hole => self.format().empty(),
            Block::Leaf {
                target,
                attributes,
                marks,
            } => self.format().leaf(target, attributes, level) | marks,
        }
    }

    /// Sets `marks` in every leaf of a subtree that nobody else reaches.
    pub(crate) fn mark_subtree(&self, subtree: Subtree, marks: u64) {
        let Subtree {
            frame: table,
            level,
        } = subtree;
        let shape = self.shape();
        for index in 0..shape.entries(level) {
            let at = shape.slot_at(table, index);
            let entry = self.memory().load(at, shape.width());
            match self.format().decode(entry, level) {
                Entry::Table { frame, .. } if level > 1 => {
                    self.mark_subtree(Subtree::under(level, frame), marks);
                }
                Entry::Leaf { .. } => self.memory().write(at, shape.width(), entry | marks),
                _ => (),
            }
        }
    }

    /// Fills a table of which only `lo..hi` changes.
    fn fill_mixed<C: Change<F>>(
        &self,
        change: &C,
        site: Site,
        (lo, hi): (u64, u64),
        before: Block<F::Attributes>,
    ) -> Result<(), Refused<F>> {
        let shape = self.shape();
        let (shift, count) = (shape.shift(site.level), shape.entries(site.level));
        if site.level > 1 {
            let empty = self.format().empty();
            self.memory()
                .fill(site.table, shape.width(), count, |_| empty);
        }
        // In the table: of 63 bits at most.
        let (low, high) = (lo.wrapping_sub(site.base), hi.wrapping_sub(site.base));
        let up = |offset: u64| offset.wrapping_add(shape.below(site.level)) >> shift;
        // Slots that the range touches, and those that it covers.
        let touched = low >> shift..up(high);
        let whole = up(low)..high >> shift;

        // Pages that the operation leaves as they are, but for their size: the policy has a say in it, the operation none.
        let remain = match before {
            Block::Hole => u8::MAX,
            Block::Leaf { attributes, .. } => self.largest(&Unmap, attributes),
        };
        let outside = |slots: Range<u64>| {
            let block = before.skip(slots.start << shift);
            self.fill_uniform(site.table, site.level, slots, block, remain)
        };
        outside(0..touched.start)?;
        if touched.start < whole.start {
            self.fill_cut(change, site, touched.start, (lo, hi), before)?;
        }
        // All of it even where there are none: then nothing is filled.
        let offset = whole.start << shift;
        let at = site.base.wrapping_add(offset);
        let here = before.skip(offset);
        let Some(after) = change.after(at, here) else {
            let address = shape.extend(at);
            let entry = self.word(here, site.level);
            return Err(MapError::Overlap {
                address,
                level: site.level,
                entry,
            });
        };
        let largest = match after {
            Block::Hole => u8::MAX,
            Block::Leaf { attributes, .. } => self.largest(change, attributes),
        };
        self.fill_uniform(site.table, site.level, whole.clone(), after, largest)?;
        if whole.start <= whole.end && whole.end < touched.end {
            self.fill_cut(change, site, whole.end, (lo, hi), before)?;
        }
        outside(touched.end..count)
    }

    /// Fills a slot that the range cuts: with a table.
    fn fill_cut<C: Change<F>>(
        &self,
        change: &C,
        site: Site,
        slot: u64,
        (lo, hi): (u64, u64),
        before: Block<F::Attributes>,
    ) -> Result<(), Refused<F>> {
        let shape = self.shape();
        let offset = slot << shape.shift(site.level);
        let base = site.base.wrapping_add(offset);
        let range = (lo.max(base), hi.min(shape.behind(base, site.level)));
        let before = before.skip(offset);
        let below = site.level.saturating_sub(1);
        let frame = self.build(change, below, base, range, before)?;
        let entry = self.format().table(frame, site.level);
        self.memory()
            .write(shape.slot_at(site.table, slot), shape.width(), entry);
        Ok(())
    }

    /// Fills `slots` of a table with `block`, which starts at the first of them.
    fn fill_uniform(
        &self,
        table: u64,
        level: u8,
        slots: Range<u64>,
        block: Block<F::Attributes>,
        largest: u8,
    ) -> Result<(), Refused<F>> {
        if slots.is_empty() {
            return Ok(());
        }
        let (shape, format) = (self.shape(), self.format());
        let (width, shift) = (shape.width(), shape.shift(level));
        let at = shape.slot_at(table, slots.start);
        let count = slots.end.saturating_sub(slots.start);
        match block {
            Block::Hole if level > 1 => (),
            Block::Hole => {
                let empty = format.empty();
                self.memory().fill(at, width, count, |_| empty);
            }
            Block::Leaf {
                target,
                attributes,
                marks,
            } if self.fits(level, largest, count, target, attributes) => {
                self.memory().fill(at, width, count, |i| {
                    let target = target.wrapping_add(i.wrapping_shl(shift));
                    format.leaf(target, attributes, level) | marks
                });
            }
            Block::Leaf {
                target, attributes, ..
            } if level == 1 => {
                let last = target.wrapping_add((count << shift).wrapping_sub(1));
                return Err(self.misfit(last, attributes));
            }
            Block::Leaf { .. } => {
                let below = level.saturating_sub(1);
                for (i, slot) in (0u64..).zip(slots) {
                    let here = block.skip(i << shift);
                    let frame = self.build_uniform(below, here, largest)?;
                    let at = shape.slot_at(table, slot);
                    self.memory().write(at, width, format.table(frame, level));
                }
            }
        }
        Ok(())
    }

    /// A new table at `level`, all of it `block`.
    fn build_uniform(
        &self,
        level: u8,
        block: Block<F::Attributes>,
        largest: u8,
    ) -> Result<u64, Refused<F>> {
        let table = self.allocate()?;
        let shape = self.shape();
        let count = shape.entries(level);
        let leaves = match block {
            Block::Hole => true,
            Block::Leaf {
                target, attributes, ..
            } => level == 1 || self.fits(level, largest, count, target, attributes),
        };
        if !leaves {
            let empty = self.format().empty();
            self.memory().fill(table, shape.width(), count, |_| empty);
        }
        self.fill_uniform(table, level, 0..count, block, largest)
            .inspect_err(|_| {
                self.free_subtree(Subtree {
                    frame: table,
                    level,
                });
            })?;
        Ok(table)
    }
}
