// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One smallest page, in a table that is there: decided and stored in one visit.
//!
//! What a driver does for each buffer and a hypervisor for each fault. Whatever else is asked, and
//! whatever is to be refused, is left to the passes over [ranges](crate::map): nothing was changed yet.

use crate::error::Refused;
use crate::format::{Encode, Entry};
use crate::map::Mapper;
use crate::memory::{Frames, OwnEntries};
use crate::span::Span;
use crate::stale::Stale;
use crate::walk::{Next, Root, descend};

/// A slot of a level 1 table.
struct Slot {
    /// Where its entry is.
    at: u64,
    entry: u64,
}

impl<F: Encode, M: OwnEntries, P: Frames> Mapper<F, M, P> {
    /// Maps `span`, where nothing is mapped, to the physical addresses from `target`.
    ///
    /// With the largest pages that alignment, format, and [`Sizes`](crate::Sizes) allow. No flush is
    /// owed, unless hardware caches absent entries.
    ///
    /// # Errors
    ///
    /// [`MapError::Overlap`](crate::MapError::Overlap) names the first address that is mapped already,
    /// and by what.
    #[inline(always)]
    pub fn map(
        &mut self,
        span: impl Into<Span>,
        target: u64,
        attributes: F::Attributes,
    ) -> Result<(), Refused<F>> {
        let span = span.into();
        if self.map_single(span, target, attributes) {
            return Ok(());
        }
        self.map_range(span, target, attributes)
    }

    /// Unmaps `span`. Holes in it are fine; tables wholly inside it are unlinked unread.
    ///
    /// Needs a frame only where it cuts a large page.
    ///
    /// # Errors
    ///
    /// [`MapError::NothingMapped`](crate::MapError::NothingMapped) if there was neither a leaf nor a
    /// whole table in it.
    #[inline(always)]
    pub fn unmap(&mut self, span: impl Into<Span>) -> Result<Stale, Refused<F>> {
        let span = span.into();
        if self.unmap_single(span) {
            return Ok(Stale::of(self.root(), span));
        }
        self.unmap_range(span)
    }

    /// Maps `span` if that is one smallest page that can be mapped, and its table is there.
    #[inline]
    fn map_single(&self, span: Span, target: u64, attributes: F::Attributes) -> bool {
        if let Some(Slot { at, entry }) = self.smallest(span)
            && let Entry::Empty = self.format().decode(entry, 1)
            && self.may_lead_to(target, attributes)
        {
            let leaf = self.format().leaf(target, attributes, 1);
            self.memory().write(at, self.shape().width(), leaf);
            return true;
        }
        false
    }

    /// Unmaps `span` if that is one smallest page, and mapped.
    ///
    /// A token is not made here: out of the caller's sight it would be built in memory, and waited for.
    #[inline]
    fn unmap_single(&self, span: Span) -> bool {
        if let Some(Slot { at, entry }) = self.smallest(span)
            && let Entry::Leaf { .. } = self.format().decode(entry, 1)
        {
            let empty = self.format().empty();
            self.memory().write(at, self.shape().width(), empty);
            return true;
        }
        false
    }

    /// Maps `span`, beside other threads, if that is one smallest page that can be mapped, its table is
    /// there, and nobody was quicker.
    #[inline]
    pub(crate) fn fault_in_single(
        &self,
        span: Span,
        target: u64,
        attributes: F::Attributes,
    ) -> bool {
        if let Some(Slot { at, entry }) = self.smallest(span)
            && let Entry::Empty = self.format().decode(entry, 1)
            && self.may_lead_to(target, attributes)
        {
            let leaf = self.format().leaf(target, attributes, 1);
            let width = self.shape().width();
            return self.memory().exchange(at, width, entry, leaf).is_ok();
        }
        false
    }

    /// The slot for `span`, if that is one smallest page and its table is there.
    #[inline(always)]
    fn smallest(&self, span: Span) -> Option<Slot> {
        let (format, memory, shape) = (self.format(), self.memory(), self.shape());
        let cut = shape.cut();
        let size = cut.size(1);
        if span.length != size || span.start & size.wrapping_sub(1) != 0 {
            return None;
        }
        let bits = shape.strip(span.start)?;
        let root = Root::Table(self.root());
        let Next::Down { frame, .. } = descend(format, memory, root, cut, bits, &mut |_| ()) else {
            return None;
        };
        let at = cut.entry_at(frame, bits, 1);
        let entry = memory.load(at, cut.width());
        Some(Slot { at, entry })
    }

    /// Whether a smallest page may lead to `target`.
    #[inline(always)]
    fn may_lead_to(&self, target: u64, attributes: F::Attributes) -> bool {
        let (format, size) = (self.format(), self.shape().size(1));
        target & size.wrapping_sub(1) == 0
            && target >> format.target_bits(1).min(52) == 0
            && format.check(attributes, 1).is_ok()
    }
}
