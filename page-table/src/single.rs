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
        if self.map_single(span, target, attributes) || self.map_run(span, target, attributes) {
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
        if self.unmap_single(span) || self.unmap_run(span) {
            return Ok(Stale::of(self.root(), span));
        }
        self.unmap_range(span)
    }

    /// Maps `span` if that is one smallest page that can be mapped, and its table is there.
    #[inline]
    fn map_single(&mut self, span: Span, target: u64, attributes: F::Attributes) -> bool {
        let Some(at) = self.smallest_again(span) else {
            return false;
        };
        let (format, width) = (self.format(), self.shape().cut().width());
        self.memory().change(at, width, |entry| {
            let empty = matches!(format.decode(entry, 1), Entry::Empty);
            (empty && self.may_lead_to(target, attributes))
                .then(|| format.leaf(target, attributes, 1))
        })
    }

    /// Unmaps `span` if that is one smallest page, and mapped.
    ///
    /// A token is not made here: out of the caller's sight it would be built in memory, and waited for.
    #[inline]
    fn unmap_single(&mut self, span: Span) -> bool {
        let Some(at) = self.smallest_again(span) else {
            return false;
        };
        let (format, width) = (self.format(), self.shape().cut().width());
        self.memory().change(at, width, |entry| {
            matches!(format.decode(entry, 1), Entry::Leaf { .. }).then(|| format.empty())
        })
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
        let Some(at) = self.smallest(span) else {
            return false;
        };
        let width = self.shape().cut().width();
        let entry = self.memory().load(at, width);
        if let Entry::Empty = self.format().decode(entry, 1)
            && self.may_lead_to(target, attributes)
        {
            let leaf = self.format().leaf(target, attributes, 1);
            return self.memory().exchange(at, width, entry, leaf).is_ok();
        }
        false
    }

    /// Where the entry for `span` is, if that is one smallest page and its table is there. For many threads.
    #[inline(always)]
    fn smallest(&self, span: Span) -> Option<u64> {
        self.is_smallest(span).then_some(())?;
        let table = self.leaf_table(span.start)?;
        Some(self.shape().cut().entry_at(table, span.start, 1))
    }

    /// [`smallest`](Self::smallest), for who has the table to himself: the leaf table may be remembered.
    #[inline(always)]
    fn smallest_again(&mut self, span: Span) -> Option<u64> {
        self.is_smallest(span).then_some(())?;
        self.entry_again(span.start)
    }

    /// Where the level 1 entry for `address` is, if its table is there: remembered, or walked to and then remembered.
    #[inline(always)]
    pub(crate) fn entry_again(&mut self, address: u64) -> Option<u64> {
        let tag = address.wrapping_shr(self.shape().cut().shift(2));
        let table = match self.recent.get(tag) {
            Some(table) => table,
            None => self.find(tag, address)?,
        };
        Some(self.shape().cut().entry_at(table, address, 1))
    }

    /// Walks to the leaf table for `address`, and remembers it.
    #[inline(never)]
    fn find(&mut self, tag: u64, address: u64) -> Option<u64> {
        let table = self.leaf_table(address)?;
        self.recent.note(tag, table);
        Some(table)
    }

    #[inline(always)]
    fn is_smallest(&self, Span { start, length }: Span) -> bool {
        let size = self.shape().cut().size(1);
        length == size && start & size.wrapping_sub(1) == 0
    }

    /// The leaf table for `address`, if it is there.
    #[inline(always)]
    fn leaf_table(&self, address: u64) -> Option<u64> {
        let (format, memory, shape) = (self.format(), self.memory(), self.shape());
        let bits = shape.strip(address)?;
        let root = Root::Table(self.root());
        match descend(format, memory, root, shape.cut(), bits, &mut |_| ()) {
            Next::Down { frame, .. } => Some(frame),
            Next::End(_) => None,
        }
    }

    /// Whether a smallest page may lead to `target`.
    #[inline(always)]
    pub(crate) fn may_lead_to(&self, target: u64, attributes: F::Attributes) -> bool {
        let (format, size) = (self.format(), self.shape().size(1));
        target & size.wrapping_sub(1) == 0
            && target >> format.target_bits(1).min(52) == 0
            && format.check(attributes, 1).is_ok()
    }
}
