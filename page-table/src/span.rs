// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stretch of addresses. Start and length, so that the last page of all can be named.

use core::ops::Range;

/// `length` bytes from `start`.
///
/// Made from a `Range<u64>` where that can say it; a range that ends before it starts has length 0
/// and is refused like every empty one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Span {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl Span {
    /// `length` bytes from `start`.
    #[inline]
    #[must_use]
    pub const fn new(start: u64, length: u64) -> Self {
        Self { start, length }
    }

    /// The last address; `start` itself for an empty span. Saturates at the last address of all.
    #[inline]
    #[must_use]
    pub const fn last(self) -> u64 {
        self.start.saturating_add(self.length.saturating_sub(1))
    }

    /// Whether `address` lies in it.
    #[inline]
    #[must_use]
    pub const fn contains(self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.length
    }

    /// The shortest span that covers both.
    #[must_use]
    pub(crate) fn hull(self, other: Self) -> Self {
        let start = self.start.min(other.start);
        let last = self.last().max(other.last());
        Self {
            start,
            length: last.saturating_sub(start).saturating_add(1),
        }
    }

    /// Bytes between two spans, 0 if they touch or overlap.
    #[must_use]
    pub(crate) fn gap(self, other: Self) -> u64 {
        let (low, high) = if self.start <= other.start {
            (self, other)
        } else {
            (other, self)
        };
        high.start.saturating_sub(low.last()).saturating_sub(1)
    }
}

impl From<Range<u64>> for Span {
    #[inline]
    fn from(range: Range<u64>) -> Self {
        Self {
            start: range.start,
            length: range.end.saturating_sub(range.start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hull_and_gap_at_the_edges() {
        let low = Span::new(0, 0x1000);
        let top = Span::new(u64::MAX - 0xfff, 0x1000);
        assert_eq!((top.last(), low.last()), (u64::MAX, 0xfff));
        assert_eq!(low.gap(Span::new(0x1000, 0x1000)), 0);
        assert_eq!(low.gap(Span::new(0x3000, 0x1000)), 0x2000);
        assert_eq!(Span::new(0x3000, 0x1000).gap(low), 0x2000);
        assert_eq!(low.hull(Span::new(0x3000, 0x1000)), Span::new(0, 0x4000));
        // All 2^64 bytes cannot be said: one byte short.
        assert_eq!(low.hull(top), Span::new(0, u64::MAX));
        let (start, end) = (5, 3);
        assert_eq!(Span::from(start..end).length, 0);
        assert!(top.contains(u64::MAX) && !top.contains(0));
    }
}
