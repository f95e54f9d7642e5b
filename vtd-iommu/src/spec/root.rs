// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Root entries: one for each bus. "Root Entry", "Scalable-Mode Root Entry".

use super::RequesterId;
use super::word::word;

/// Bits 63:12 of a word: a table's address.
pub(crate) const ADDRESS: u64 = !0xfff;

/// Address bits that a unit of `host_bits` does not have.
pub(crate) const fn too_wide(host_bits: u32) -> u64 {
    if host_bits >= 64 {
        0
    } else {
        ADDRESS & (!0u64).wrapping_shl(host_bits)
    }
}

/// An entry of the root table, 16 bytes, in either mode.
///
/// In legacy mode the first word is of all functions of the bus, the second is reserved. In scalable mode the
/// first word is of devices 0 to 15, the second of devices 16 to 31. Both words have the same figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct RootEntry(pub [u64; 2]);

word! {
    impl RootEntry: [u64; 2] {
        /// P, or LP in scalable mode: the context table exists.
        set [0; 0:0] present, with_present;
        /// UP, scalable mode: the upper context table exists.
        set [1; 0:0] upper_present, with_upper_present;
    }
}

impl RootEntry {
    /// Bytes of an entry.
    pub const SIZE: u64 = 16;

    /// A legacy entry that leads to the context table at `table`.
    #[must_use]
    pub const fn legacy(table: u64) -> Self {
        Self([table & ADDRESS | 1, 0])
    }

    /// Where the entry of `source` lies in the root table at `table`.
    #[inline]
    #[must_use]
    pub const fn address(table: u64, source: RequesterId) -> u64 {
        table.wrapping_add((source.bus() as u64).wrapping_mul(Self::SIZE))
    }

    /// CTP: the context table, of all devices (legacy).
    #[inline]
    #[must_use]
    pub const fn context_table(self) -> u64 {
        self.0[0] & ADDRESS
    }

    /// The half that speaks for `source` in scalable mode: LP and LCTP, or UP and UCTP.
    #[inline]
    #[must_use]
    pub const fn half(self, source: RequesterId) -> RootHalf {
        if source.device() < 16 {
            RootHalf(self.0[0])
        } else {
            RootHalf(self.0[1])
        }
    }

    /// Legacy mode: the reserved bits that are set, on a unit with `host_bits` of address.
    #[must_use]
    pub const fn reserved(self, host_bits: u32) -> [u64; 2] {
        [RootHalf(self.0[0]).reserved(host_bits), self.0[1]]
    }
}

/// One half of a scalable-mode root entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RootHalf(pub u64);

impl RootHalf {
    /// An entry that leads to the scalable-mode context table at `table`.
    #[must_use]
    pub const fn new(table: u64) -> Self {
        Self(table & ADDRESS | 1)
    }

    /// LP or UP.
    #[inline]
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & 1 != 0
    }

    /// LCTP or UCTP.
    #[inline]
    #[must_use]
    pub const fn context_table(self) -> u64 {
        self.0 & ADDRESS
    }

    /// The reserved bits that are set, on a unit with `host_bits` of address.
    #[inline]
    #[must_use]
    pub const fn reserved(self, host_bits: u32) -> u64 {
        self.0 & (0xffe | too_wide(host_bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(bus: u8, device: u8, function: u8) -> RequesterId {
        RequesterId::new(bus, device, function).unwrap()
    }

    #[test]
    fn words_of_the_figures() {
        let entry = RootEntry([0x0000_0012_3456_7001, 0x0000_0000_89ab_c001]);
        assert!(entry.present() && entry.upper_present());
        assert_eq!(entry.context_table(), 0x12_3456_7000);
        assert_eq!(entry.half(requester(1, 15, 7)).0, entry.0[0]);
        assert_eq!(entry.half(requester(1, 16, 0)).context_table(), 0x89ab_c000);
        assert_eq!(RootEntry::legacy(0x5000), RootEntry([0x5001, 0]));
        assert_eq!(RootEntry::default().with_upper_present().0, [0, 1]);
        assert_eq!(RootHalf::new(0x5000).0, 0x5001);
        assert_eq!(RootEntry::address(0x1000, RequesterId(0xff00)), 0x1ff0);
    }

    #[test]
    fn reserved_bits() {
        assert_eq!(RootEntry([0x1001, 0]).reserved(39), [0, 0]);
        assert_eq!(
            RootEntry([0x80_0000_1fff, 2]).reserved(39),
            [0x80_0000_0ffe, 2]
        );
        assert_eq!(RootHalf(0x80_0000_1001).reserved(40), 0);
        assert_eq!(RootHalf(u64::MAX).reserved(64), 0xffe);
    }
}
