// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device of the host reaches: its tables in the host's IOMMU follow the guest's.
//!
//! ```text
//!   guest: unmap, invalidate --> Unit --> UnitHost::unmap --> DmaTable::unmap   then the guest's wait is over
//!   guest: map, invalidate ----> Unit --> UnitHost::map ----> DmaTable::map
//! ```
//!
//! Only memory of the guest is mapped, and only where a device's address requests no interrupt; so what the guest maps
//! elsewhere is stopped by the host.

use hvkit_vtd_iommu::emulation::Mapping;
use hvkit_vtd_iommu::spec::RequesterId;
use std::fmt;
use std::io;
use std::ops::Range;

/// Addresses by which devices request interrupts.
const INTERRUPTS: Range<u64> = 0xfee0_0000..0xfef0_0000;

/// A device's tables in the host. Pieces do not overlap, and are taken back as they were given.
pub trait DmaTable: Send {
    /// From now on the device reaches `piece`, which leads to memory of the guest.
    ///
    /// # Errors
    ///
    /// The host does not map it; the device does not reach it.
    fn map(&mut self, piece: Mapping) -> io::Result<()>;

    /// From now on the device does not reach `piece`.
    ///
    /// # Errors
    ///
    /// It still does.
    fn unmap(&mut self, piece: Mapping) -> io::Result<()>;
}

/// A device's tables, and how the user calls it.
pub(super) struct Shadow {
    pub(super) source: RequesterId,
    pub(super) name: String,
    pub(super) table: Box<dyn DmaTable>,
    /// Why the host last did not map something.
    pub(super) refused: Option<io::Error>,
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("source", &self.source)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The parts of `mapping` that lead to memory, given where that is; a part has nothing of [`INTERRUPTS`].
pub(super) fn pieces(mapping: Mapping, ram: &[Range<u64>]) -> impl Iterator<Item = Mapping> {
    let from_memory = ram.iter().filter_map(move |region| {
        let length = mapping.last.saturating_sub(mapping.first);
        let last = mapping.target.saturating_add(length);
        let at = |target: u64| {
            mapping
                .first
                .saturating_add(target.saturating_sub(mapping.target))
        };
        let (start, end) = (
            mapping.target.max(region.start),
            last.min(region.end.checked_sub(1)?),
        );
        (start <= end).then(|| Mapping {
            first: at(start),
            last: at(end),
            target: start,
            ..mapping
        })
    });
    from_memory.flat_map(|piece| {
        let below = (piece.first < INTERRUPTS.start).then(|| Mapping {
            last: piece.last.min(INTERRUPTS.start - 1),
            ..piece
        });
        let above = (piece.last >= INTERRUPTS.end).then(|| {
            let first = piece.first.max(INTERRUPTS.end);
            Mapping {
                first,
                target: piece
                    .target
                    .saturating_add(first.saturating_sub(piece.first)),
                ..piece
            }
        });
        below.into_iter().chain(above)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: &[Range<u64>] = &[0..0xc000_0000, 0x1_0000_0000..0x1_4000_0000];

    fn parts(first: u64, last: u64, target: u64) -> Vec<(u64, u64, u64)> {
        let mapping = Mapping {
            first,
            last,
            target,
            reads: true,
            writes: false,
        };
        pieces(mapping, RAM)
            .inspect(|piece| assert!(piece.reads && !piece.writes))
            .map(|piece| (piece.first, piece.last, piece.target))
            .collect()
    }

    #[test]
    fn only_memory_is_mapped() {
        // All of it, where nothing is translated.
        let all = Mapping::IDENTITY;
        assert_eq!(
            parts(all.first, all.last, all.target),
            [
                (0, 0xbfff_ffff, 0),
                (0x1_0000_0000, 0x1_3fff_ffff, 0x1_0000_0000)
            ]
        );
        // A page inside, one outside, and a large one across the end.
        assert_eq!(parts(0x7000, 0x7fff, 0x1000), [(0x7000, 0x7fff, 0x1000)]);
        assert_eq!(parts(0x7000, 0x7fff, 0xfed9_0000), []);
        assert_eq!(
            parts(0x4000_0000, 0x7fff_ffff, 0xa000_0000),
            [(0x4000_0000, 0x5fff_ffff, 0xa000_0000)]
        );
        assert_eq!(parts(0, 0xfff, u64::MAX - 0xfff), []);
    }

    #[test]
    fn addresses_of_interrupts_are_left_out() {
        assert_eq!(
            parts(0xc000_0000, 0xffff_ffff, 0x1_0000_0000),
            [
                (0xc000_0000, 0xfedf_ffff, 0x1_0000_0000),
                (0xfef0_0000, 0xffff_ffff, 0x1_3ef0_0000),
            ]
        );
        assert_eq!(parts(0xfee0_0000, 0xfeef_ffff, 0), []);
        assert_eq!(parts(0xfee0_1000, 0xfee0_1fff, 0), []);
        assert_eq!(
            parts(0xfef0_0000, 0xfef0_0fff, 0),
            [(0xfef0_0000, 0xfef0_0fff, 0)]
        );
    }
}
