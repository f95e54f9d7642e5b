// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What lies where behind a base address register.
//!
//! ```text
//!   [ registers | registers | MSI-X table, registers | pending bits | registers ]
//!   [   page    |   page    |          page          |     page     |   page    ]
//!     direct      direct      trapped                  trapped        direct
//! ```

use super::hardware::Region;
use std::ops::Range;

/// The host's and KVM's page, in bytes.
const PAGE: u64 = 4096;

/// What a byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The device's own registers.
    Registers,
    /// The MSI-X table.
    Table,
    /// MSI-X pending bits.
    Pending,
}

/// A run of bytes of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) part: Part,
    /// Offset of the first byte in the part.
    pub(super) offset: u64,
    /// Bytes until something else begins.
    pub(super) length: u64,
}

/// The layout behind one base address register.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BarLayout {
    length: u64,
    table: Range<u64>,
    pending: Range<u64>,
}

impl BarLayout {
    /// A region of `length` bytes without MSI-X structures.
    pub(super) fn new(length: u64) -> Self {
        BarLayout {
            length,
            ..Self::default()
        }
    }

    /// Says that the table is there; false, and no change, if the region ends before it does.
    pub(super) fn set_table(&mut self, offset: u64, length: u64) -> bool {
        place(&mut self.table, self.length, offset, length)
    }

    /// As [`set_table`](Self::set_table), for the pending bits.
    pub(super) fn set_pending(&mut self, offset: u64, length: u64) -> bool {
        place(&mut self.pending, self.length, offset, length)
    }

    /// What is at `offset`, and for how long; none outside.
    pub(super) fn run(&self, offset: u64) -> Option<Run> {
        let inside = |part, range: &Range<u64>| {
            Some(Run {
                part,
                offset: offset.checked_sub(range.start)?,
                length: range.end.checked_sub(offset).filter(|left| *left > 0)?,
            })
        };
        let next = [self.table.start, self.pending.start, self.length]
            .into_iter()
            .filter(|&start| start > offset)
            .min()?;
        inside(Part::Table, &self.table)
            .or_else(|| inside(Part::Pending, &self.pending))
            .or(Some(Run {
                part: Part::Registers,
                offset,
                length: next.saturating_sub(offset),
            }))
    }

    /// The whole pages that hold nothing but registers and that `region` allows to map, in ascending
    /// order.
    pub(super) fn direct(&self, region: &Region) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        for range in &region.mappable {
            // Behind the last page there is nothing to map.
            let Some(mut start) = range.start.checked_next_multiple_of(PAGE) else {
                continue;
            };
            let end = page(range.end.min(self.length));
            let mut trapped: Vec<_> = [&self.table, &self.pending]
                .into_iter()
                .filter(|hole| !hole.is_empty())
                .map(|hole| {
                    let behind = hole.end.checked_next_multiple_of(PAGE);
                    page(hole.start)..behind.unwrap_or(u64::MAX)
                })
                .collect();
            trapped.sort_by_key(|hole| hole.start);
            for hole in trapped {
                if start < hole.start.min(end) {
                    found.push(start..hole.start.min(end));
                }
                start = start.max(hole.end);
            }
            if start < end {
                found.push(start..end);
            }
        }
        found.sort_by_key(|range| range.start);
        found
    }
}

/// The page that `offset` is in.
fn page(offset: u64) -> u64 {
    offset & !(PAGE - 1)
}

fn place(range: &mut Range<u64>, limit: u64, offset: u64, length: u64) -> bool {
    match offset.checked_add(length).filter(|&end| end <= limit) {
        Some(end) => {
            *range = offset..end;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(mappable: &[Range<u64>]) -> Region {
        Region {
            length: 0,
            mappable: mappable.to_vec(),
        }
    }

    /// The layout of QEMU's NVMe controller: registers, then 65 vectors in one region.
    fn nvme() -> BarLayout {
        let mut layout = BarLayout::new(0x4000);
        assert!(layout.set_table(0x2000, 65 * 16));
        assert!(layout.set_pending(0x3000, 16));
        layout
    }

    #[test]
    fn runs_end_where_something_else_begins() {
        let run = |offset| nvme().run(offset).map(|r| (r.part, r.offset, r.length));
        assert_eq!(run(0), Some((Part::Registers, 0, 0x2000)));
        assert_eq!(run(0x1fff), Some((Part::Registers, 0x1fff, 1)));
        assert_eq!(run(0x2000), Some((Part::Table, 0, 0x410)));
        assert_eq!(run(0x240f), Some((Part::Table, 0x40f, 1)));
        assert_eq!(run(0x2410), Some((Part::Registers, 0x2410, 0xbf0)));
        assert_eq!(run(0x3004), Some((Part::Pending, 4, 12)));
        assert_eq!(run(0x3010), Some((Part::Registers, 0x3010, 0xff0)));
        assert_eq!(run(0x4000), None);
        assert_eq!(run(u64::MAX), None);
        assert_eq!(BarLayout::new(0).run(0), None);
    }

    #[test]
    fn pages_with_msix_structures_are_not_mapped() {
        let whole = region(std::slice::from_ref(&(0..0x4000)));
        let before_the_table = std::slice::from_ref(&(0..0x2000));
        assert_eq!(nvme().direct(&whole), before_the_table);
        let mut odd = BarLayout::new(0x8000);
        // A table that lies across a page's end, pending bits in the page before it.
        assert!(odd.set_table(0x5ff0, 0x20));
        assert!(odd.set_pending(0x4000, 8));
        let whole = region(std::slice::from_ref(&(0..0x8000)));
        assert_eq!(odd.direct(&whole), [0..0x4000, 0x7000..0x8000]);
        // What the kernel left out stays out.
        let sparse = region(&[0x7000..0x8000, 0..0x1000, 0x3800..0x5800]);
        assert_eq!(odd.direct(&sparse), [0..0x1000, 0x7000..0x8000]);
        assert!(odd.direct(&region(&[])).is_empty());
    }

    #[test]
    fn less_than_a_page_is_not_mapped() {
        for (length, mappable) in [(0x100, 0..0x100), (0x800, 0..0x1000), (0x1000, 1..0x1000)] {
            let layout = BarLayout::new(length);
            let region = region(std::slice::from_ref(&mappable));
            assert!(layout.direct(&region).is_empty(), "{mappable:x?}");
        }
    }

    #[test]
    fn structures_outside_the_region_are_refused() {
        let mut layout = BarLayout::new(0x1000);
        for (offset, length) in [(0x1000, 16), (0xff8, 16), (u64::MAX, 16)] {
            assert!(!layout.set_table(offset, length));
            assert!(!layout.set_pending(offset, length));
        }
        assert_eq!(layout, BarLayout::new(0x1000));
    }
}
