// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Context entries: one for each device function. "Context Entry", "Scalable-Mode Context Entry".

use super::RequesterId;
use super::root::{ADDRESS, too_wide};
use super::word::word;

/// TT of a legacy context entry: which requests it lets through, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TranslationType {
    /// 00: untranslated requests through second stage; others are blocked.
    Untranslated,
    /// 01: untranslated requests through second stage; translation requests and translated requests too.
    DeviceTlb,
    /// 10: untranslated requests pass through, untranslated; others are blocked.
    PassThrough,
    /// 11.
    Reserved,
}

impl TranslationType {
    /// From the low two bits.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            0 => Self::Untranslated,
            1 => Self::DeviceTlb,
            2 => Self::PassThrough,
            _ => Self::Reserved,
        }
    }

    /// The field's value.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        self as u64
    }
}

/// AW: how many levels a second-stage table has, and so how wide the addresses are that it translates.
///
/// A guest may write any value, so it is not an `enum`; [`levels`](Self::levels) says which are defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressWidth(pub u8);

impl AddressWidth {
    /// 001: 39 bits, 3 levels.
    pub const BITS_39: Self = Self(1);
    /// 010: 48 bits, 4 levels.
    pub const BITS_48: Self = Self(2);
    /// 011: 57 bits, 5 levels.
    pub const BITS_57: Self = Self(3);

    /// 3, 4 or 5; `None` for a value that the specification reserves.
    #[inline]
    #[must_use]
    pub const fn levels(self) -> Option<u8> {
        match self.0 {
            1 => Some(3),
            2 => Some(4),
            3 => Some(5),
            _ => None,
        }
    }

    /// The width with `levels` levels, if there is one.
    #[must_use]
    pub const fn of_levels(levels: u8) -> Option<Self> {
        match levels {
            3 => Some(Self::BITS_39),
            4 => Some(Self::BITS_48),
            5 => Some(Self::BITS_57),
            _ => None,
        }
    }

    /// 39, 48 or 57; `None` for a value that the specification reserves.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> Option<u32> {
        match self {
            Self::BITS_39 => Some(39),
            Self::BITS_48 => Some(48),
            Self::BITS_57 => Some(57),
            _ => None,
        }
    }
}

/// A legacy context entry: 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct ContextEntry(pub [u64; 2]);

word! {
    impl ContextEntry: [u64; 2] {
        /// P.
        set [0; 0:0] present, with_present;
        /// FPD: faults of this function's requests are not recorded.
        set [0; 1:1] fault_processing_disabled, with_fault_processing_disabled;
        /// TT, as bits. [`translation_type`](Self::translation_type) is the same, typed.
        u64 [0; 3:2] tt, with_tt;
        /// AW, as bits. [`address_width`](Self::address_width) is the same, typed.
        u64 [1; 2:0] aw, with_aw;
        /// Bits 70:67: software's.
        u64 [1; 6:3] software, with_software;
        /// DID: the domain.
        u64 [1; 23:8] domain, with_domain;
    }
}

impl ContextEntry {
    /// Bytes of an entry.
    pub const SIZE: u64 = 16;

    /// A present entry: `source`s of `domain` through the second-stage table at `table`.
    #[must_use]
    pub const fn new(kind: TranslationType, domain: u16, width: AddressWidth, table: u64) -> Self {
        Self([table & ADDRESS | 1, 0])
            .with_tt(kind.bits())
            .with_aw(width.0 as u64)
            .with_domain(domain as u64)
    }

    /// Where the entry of `source` lies in the context table at `table`.
    #[inline]
    #[must_use]
    pub const fn address(table: u64, source: RequesterId) -> u64 {
        table.wrapping_add((source.devfn() as u64).wrapping_mul(Self::SIZE))
    }

    /// TT.
    #[inline]
    #[must_use]
    pub const fn translation_type(self) -> TranslationType {
        TranslationType::from_bits(self.tt())
    }

    /// AW.
    #[inline]
    #[must_use]
    pub const fn address_width(self) -> AddressWidth {
        AddressWidth(self.aw() as u8)
    }

    /// SSPTPTR: the root of the second-stage table.
    #[inline]
    #[must_use]
    pub const fn table(self) -> u64 {
        self.0[0] & ADDRESS
    }

    /// The reserved bits that are set, on a unit with `host_bits` of address.
    #[inline]
    #[must_use]
    pub const fn reserved(self, host_bits: u32) -> [u64; 2] {
        [
            self.0[0] & (0xff0 | too_wide(host_bits)),
            self.0[1] & !0x00ff_ff7f,
        ]
    }
}

/// A scalable-mode context entry: 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct ScalableContextEntry(pub [u64; 4]);

word! {
    impl ScalableContextEntry: [u64; 4] {
        /// P.
        set [0; 0:0] present, with_present;
        /// FPD: faults of this function's requests are not recorded.
        set [0; 1:1] fault_processing_disabled, with_fault_processing_disabled;
        /// DTE: translation requests and translated requests are let through.
        set [0; 2:2] device_tlb, with_device_tlb;
        /// PASIDE: requests with PASID are let through.
        set [0; 3:3] pasid_enabled, with_pasid_enabled;
        /// PRE: page requests are let through.
        set [0; 4:4] page_requests, with_page_requests;
        /// PDTS: the PASID directory has 2^(PDTS + 7) entries.
        u64 [0; 11:9] directory_size, with_directory_size;
        /// RID_PASID: the PASID that requests without one are taken to have.
        u64 [1; 19:0] request_pasid, with_request_pasid;
        /// RID_PRIV: requests without PASID are privileged.
        set [1; 20:20] request_privileged, with_request_privileged;
    }
}

impl ScalableContextEntry {
    /// Bytes of an entry.
    pub const SIZE: u64 = 32;

    /// A present entry with the PASID directory of 2^(`size` + 7) entries at `directory`.
    #[must_use]
    pub const fn new(directory: u64, size: u64) -> Self {
        Self([directory & ADDRESS | 1, 0, 0, 0]).with_directory_size(size)
    }

    /// The same with DTE and PRE clear.
    #[must_use]
    pub const fn without_device_tlb(self) -> Self {
        let [first, second, third, fourth] = self.0;
        Self([first & !0b1_0100, second, third, fourth])
    }

    /// Where the entry of `source` lies in the lower or upper context table at `table`, whichever is its.
    #[inline]
    #[must_use]
    pub const fn address(table: u64, source: RequesterId) -> u64 {
        table.wrapping_add(((source.devfn() & 0x7f) as u64).wrapping_mul(Self::SIZE))
    }

    /// PASIDDIRPTR: the PASID directory.
    #[inline]
    #[must_use]
    pub const fn directory(self) -> u64 {
        self.0[0] & ADDRESS
    }

    /// One past the highest PASID that the directory has an entry for.
    #[inline]
    #[must_use]
    pub const fn pasids(self) -> u32 {
        // 2^(PDTS + 7) tables of 64 entries: 2^20 at most.
        (1u32 << 13).wrapping_shl(self.directory_size() as u32)
    }

    /// The reserved bits that are set, on a unit with `host_bits` of address.
    #[inline]
    #[must_use]
    pub const fn reserved(self, host_bits: u32) -> [u64; 4] {
        let [first, second, third, fourth] = self.0;
        [
            first & (0x1e0 | too_wide(host_bits)),
            second & !0x1f_ffff,
            third,
            fourth,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(bus: u8, device: u8, function: u8) -> RequesterId {
        RequesterId::new(bus, device, function).unwrap()
    }

    #[test]
    fn a_legacy_entry_as_in_the_figure() {
        // P, FPD, TT 01, table 0x1234567000; AW 010, software 5, domain 0xbeef.
        let entry = ContextEntry([0x12_3456_7007, 0x00be_ef2a]);
        assert!(entry.present() && entry.fault_processing_disabled());
        assert_eq!(entry.translation_type(), TranslationType::DeviceTlb);
        assert_eq!(entry.address_width(), AddressWidth::BITS_48);
        assert_eq!((entry.domain(), entry.software()), (0xbeef, 5));
        assert_eq!(entry.table(), 0x12_3456_7000);
        assert_eq!(entry.reserved(39), [0, 0]);
        let made = ContextEntry::new(
            TranslationType::PassThrough,
            0xbeef,
            AddressWidth::BITS_57,
            0x3000,
        );
        assert_eq!(made.0, [0x3009, 0x00be_ef03]);
        assert_eq!(ContextEntry::address(0x2000, requester(9, 3, 1)), 0x2190);
        assert_eq!(
            ContextEntry([0x80_0000_0ff1, u64::MAX]).reserved(39),
            [0x80_0000_0ff0, 0xffff_ffff_ff00_0080]
        );
        assert_eq!(TranslationType::from_bits(7), TranslationType::Reserved);
    }

    #[test]
    fn widths() {
        assert_eq!(AddressWidth(0).bits(), None);
        assert_eq!(AddressWidth(1).bits(), Some(39));
        assert_eq!(AddressWidth(3).bits(), Some(57));
        assert_eq!(AddressWidth(4).levels(), None);
        assert_eq!(AddressWidth::of_levels(4), Some(AddressWidth::BITS_48));
        assert_eq!(AddressWidth::of_levels(2), None);
    }

    #[test]
    fn a_scalable_entry_as_in_the_figure() {
        let entry = ScalableContextEntry([0xabcd_ee1d, 0x1f_2345, 0, 0]);
        assert!(entry.present() && !entry.fault_processing_disabled());
        assert!(entry.device_tlb() && entry.pasid_enabled() && entry.page_requests());
        assert_eq!(
            (entry.directory(), entry.directory_size()),
            (0xabcd_e000, 7)
        );
        assert_eq!(
            (entry.request_pasid(), entry.request_privileged()),
            (0xf2345, true)
        );
        assert_eq!(entry.pasids(), 1 << 20);
        assert_eq!(ScalableContextEntry::default().pasids(), 8192);
        assert_eq!(
            ScalableContextEntry([u64::MAX; 4]).reserved(46),
            [
                0xffff_c000_0000_01e0,
                0xffff_ffff_ffe0_0000,
                u64::MAX,
                u64::MAX
            ]
        );
        let source = requester(0, 17, 1);
        assert_eq!(
            ScalableContextEntry::address(0x4000, source),
            0x4000 + 9 * 32
        );
        assert_eq!(ScalableContextEntry::new(0x9000, 2).0[0], 0x9401);
    }
}
