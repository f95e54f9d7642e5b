// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What both stages ask of a present entry alike: whether it maps a page, and which bits of it are reserved.

use hvkit_page_table::Shape;

/// Bit 7 of an entry above level 1, in both stages: it maps a page.
const LARGE: u64 = 1 << 7;

/// Reserved bits of one unit's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserved {
    /// Of entries that map pages of any size.
    pub(super) in_pages: u64,
    /// Of entries that lead to tables, page-size bit apart.
    pub(super) in_tables: u64,
    /// Address bits below a large page's size that mean something.
    pub(super) below_size: u64,
}

impl Reserved {
    /// The reserved bits that `entry`, which is present, has set at `level`.
    #[inline]
    pub(super) const fn of(&self, shape: &Shape, entry: u64, level: u8) -> u64 {
        if level == 1 {
            entry & self.in_pages
        } else if is_page(shape, entry, level) {
            let low = shape.size(level).wrapping_sub(0x1000) & !self.below_size;
            entry & (self.in_pages | low)
        } else {
            entry & (self.in_tables | LARGE)
        }
    }
}

/// Whether `entry`, which is present, maps a page.
#[inline]
pub(super) const fn is_page(shape: &Shape, entry: u64, level: u8) -> bool {
    level == 1 || entry & LARGE != 0 && shape.leaf_at(level)
}
