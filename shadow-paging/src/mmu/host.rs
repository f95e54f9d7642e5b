// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What lies behind guest-physical addresses, as the host says.

use hvkit_page_table::Span;

/// What the host lets a guest do with memory, whatever the guest's tables say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostRights {
    /// Writes. Withheld for dirty logging, for pages shared between guests, for ROM.
    pub write: bool,
    /// Instruction fetches.
    pub execute: bool,
}

impl HostRights {
    /// Everything.
    pub const ALL: Self = Self {
        write: true,
        execute: true,
    };
    /// All but writes.
    pub const READ_ONLY: Self = Self {
        write: false,
        execute: true,
    };
}

/// What is behind a guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory: `guest` as a whole lies in host memory from `host` on, with the same rights.
    ///
    /// The wider the span, the larger the pages that the shadow can use. Whole pages of 4 KiB.
    Memory {
        /// Guest-physical addresses, the one that was asked for among them.
        guest: Span,
        /// Host-physical address of the span's first byte.
        host: u64,
        /// What the guest may do there.
        rights: HostRights,
    },
    /// A device: the access is to be emulated.
    Mmio,
    /// Nothing at present: the host must bring it in first.
    Absent,
}

/// The host's map of guest-physical memory.
///
/// Two guest frames may have the same host frame only while both are read-only: a guest's table is
/// guarded by the frame that it names.
pub trait HostMap {
    /// What is behind `guest`, any guest-physical address.
    fn backing(&self, guest: u64) -> Backing;

    /// The first guest-physical address from `guest` on that may be memory, so that nothing is made for holes
    /// when a guest that is [followed](super::Mmu::follow) maps them.
    fn memory_from(&self, guest: u64) -> Option<u64> {
        Some(guest)
    }
}

impl<T: HostMap + ?Sized> HostMap for &T {
    fn backing(&self, guest: u64) -> Backing {
        (**self).backing(guest)
    }

    fn memory_from(&self, guest: u64) -> Option<u64> {
        (**self).memory_from(guest)
    }
}

/// A guest's physical memory: its words, and what is behind them.
#[derive(Debug)]
pub struct Machine<'a, M: ?Sized, B: ?Sized> {
    /// Entries of the guest's tables, by guest-physical address.
    pub memory: &'a M,
    /// The host's map.
    pub map: &'a B,
}

impl<M: ?Sized, B: ?Sized> Clone for Machine<'_, M, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: ?Sized, B: ?Sized> Copy for Machine<'_, M, B> {}

/// Guest-physical memory that is backed in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backed {
    /// Guest-physical address.
    pub guest: u64,
    /// Host-physical address that it has, or had.
    pub host: u64,
    /// Bytes.
    pub length: u64,
}

/// A page of host memory, as large as was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPage {
    pub(crate) host: u64,
    pub(crate) rights: HostRights,
}

impl Backing {
    /// The page of `size` bytes that `guest` lies in, if it is memory as a whole and aligned on both
    /// sides.
    pub(crate) fn page(&self, guest: u64, size: u64) -> Option<HostPage> {
        let Self::Memory {
            guest: span,
            host,
            rights,
        } = *self
        else {
            return None;
        };
        // A size is a power of two.
        let offset = size.wrapping_sub(1);
        let base = guest & !offset;
        let last = base.checked_add(offset)?;
        let target = host.checked_add(base.checked_sub(span.start)?)?;
        (last <= span.last() && span.length != 0 && target & offset == 0).then_some(HostPage {
            host: target,
            rights,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_to_a_map_is_that_map() {
        struct Holes;
        impl HostMap for Holes {
            fn backing(&self, _: u64) -> Backing {
                Backing::Mmio
            }

            fn memory_from(&self, guest: u64) -> Option<u64> {
                guest.checked_next_multiple_of(0x10_0000)
            }
        }
        fn asked(map: impl HostMap) -> (bool, Option<u64>) {
            (map.backing(0) == Backing::Mmio, map.memory_from(0x1000))
        }
        assert_eq!(asked(&Holes), (true, Some(0x10_0000)));
    }

    #[test]
    fn a_large_page_needs_the_whole_span_and_alignment_on_both_sides() {
        let backing = |start, length, host| Backing::Memory {
            guest: Span::new(start, length),
            host,
            rights: HostRights::ALL,
        };
        let host = |backing: Backing, at, size| backing.page(at, size).map(|page| page.host);
        let good = backing(0x20_0000, 0x40_0000, 0x1020_0000);
        assert_eq!(host(good, 0x41_2345, 0x20_0000), Some(0x1040_0000));
        assert_eq!(host(good, 0x41_2345, 0x1000), Some(0x1041_2000));
        assert_eq!(host(good, 0x60_0000, 0x1000), None, "outside");
        assert_eq!(host(good, 0x1f_ffff, 0x1000), None, "below");
        let cut = backing(0x20_1000, 0x1f_f000, 0x1020_1000);
        assert_eq!(host(cut, 0x30_0000, 0x20_0000), None, "not the whole page");
        let skewed = backing(0x20_0000, 0x40_0000, 0x1020_1000);
        assert_eq!(host(skewed, 0x30_0000, 0x20_0000), None, "host unaligned");
        assert_eq!(host(skewed, 0x30_0000, 0x1000), Some(0x1030_1000));
        assert_eq!(host(Backing::Mmio, 0, 0x1000), None);
        let top = backing(u64::MAX - 0xfff, 0x1000, 0x5000);
        assert_eq!(host(top, u64::MAX, 0x1000), Some(0x5000));
    }
}
