// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The PASID directory and the PASID tables. "Scalable-Mode PASID Directory Entry", "Scalable-Mode PASID
//! Table Entry".

use super::Pasid;
use super::context::AddressWidth;
use super::root::{ADDRESS, too_wide};
use super::word::word;

/// An entry of the PASID directory: 8 bytes, of 64 PASIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct PasidDirectoryEntry(pub u64);

impl PasidDirectoryEntry {
    /// Bytes of an entry.
    pub const SIZE: u64 = 8;

    /// An entry that leads to the PASID table at `table`.
    #[must_use]
    pub const fn new(table: u64) -> Self {
        Self(table & ADDRESS | 1)
    }

    /// Where the entry of `pasid` lies in the directory at `directory`: bits 19:6 of the PASID are the index.
    #[inline]
    #[must_use]
    pub const fn address(directory: u64, pasid: Pasid) -> u64 {
        directory.wrapping_add((pasid.get() as u64 >> 6).wrapping_mul(Self::SIZE))
    }

    /// P.
    #[inline]
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & 1 != 0
    }

    /// FPD: faults of requests with these PASIDs are not recorded.
    #[inline]
    #[must_use]
    pub const fn fault_processing_disabled(self) -> bool {
        self.0 & 2 != 0
    }

    /// SMPTBLPTR: the PASID table.
    #[inline]
    #[must_use]
    pub const fn table(self) -> u64 {
        self.0 & ADDRESS
    }

    /// The reserved bits that are set, on a unit with `host_bits` of address.
    #[inline]
    #[must_use]
    pub const fn reserved(self, host_bits: u32) -> u64 {
        self.0 & (0xffc | too_wide(host_bits))
    }
}

/// PGTT: how requests with a PASID are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TranslationKind {
    /// 001: first stage only.
    FirstStage,
    /// 010: second stage only.
    SecondStage,
    /// 011: first stage, and second stage for what it yields and reads.
    Nested,
    /// 100: pass-through.
    PassThrough,
    /// Another value, which is reserved.
    Reserved(u8),
}

impl TranslationKind {
    /// From the low three bits.
    #[inline]
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            1 => Self::FirstStage,
            2 => Self::SecondStage,
            3 => Self::Nested,
            4 => Self::PassThrough,
            other => Self::Reserved(other as u8),
        }
    }

    /// The field's value.
    #[inline]
    #[must_use]
    pub const fn bits(self) -> u64 {
        match self {
            Self::FirstStage => 1,
            Self::SecondStage => 2,
            Self::Nested => 3,
            Self::PassThrough => 4,
            Self::Reserved(bits) => bits as u64 & 7,
        }
    }
}

/// An entry of a PASID table: 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct PasidEntry(pub [u64; 8]);

word! {
    impl PasidEntry: [u64; 8] {
        /// P.
        set [0; 0:0] present, with_present;
        /// FPD: faults of requests with this PASID are not recorded.
        set [0; 1:1] fault_processing_disabled, with_fault_processing_disabled;
        /// AW, as bits: the width of the second stage.
        u64 [0; 4:2] aw, with_aw;
        /// PGTT, as bits. [`kind`](Self::kind) is the same, typed.
        u64 [0; 8:6] pgtt, with_pgtt;
        /// SSADE: accessed and dirty flags in the second stage.
        set [0; 9:9] second_stage_marks, with_second_stage_marks;
        /// DID (bits 79:64): the domain.
        u64 [1; 15:0] domain, with_domain;
        /// PWSNP (bit 87): walks snoop the processors' caches.
        set [1; 23:23] walk_snoop, with_walk_snoop;
        /// PGSNP (bit 88): accesses to pages snoop the processors' caches.
        set [1; 24:24] page_snoop, with_page_snoop;
        /// SRE (bit 128): supervisor requests are let through.
        set [2; 0:0] supervisor_requests, with_supervisor_requests;
        /// ERE (bit 129): execute requests are let through.
        set [2; 1:1] execute_requests, with_execute_requests;
        /// FSPM (bits 131:130), as bits: 0 is 4 levels of first stage, 1 is 5.
        u64 [2; 3:2] fspm, with_fspm;
        /// WPE (bit 132): supervisor writes need write permission.
        set [2; 4:4] write_protect, with_write_protect;
        /// NXE (bit 133): execute-disable in first-stage entries.
        set [2; 5:5] no_execute, with_no_execute;
        /// SMEP (bit 134): no supervisor execution of user pages.
        set [2; 6:6] smep, with_smep;
        /// EAFE (bit 135): the extended accessed flag in first-stage entries.
        set [2; 7:7] extended_accessed, with_extended_accessed;
    }
}

impl PasidEntry {
    /// Bytes of an entry.
    pub const SIZE: u64 = 64;

    /// Where the entry of `pasid` lies in the PASID table at `table`: bits 5:0 of the PASID are the index.
    #[inline]
    #[must_use]
    pub const fn address(table: u64, pasid: Pasid) -> u64 {
        table.wrapping_add((pasid.get() as u64 & 0x3f).wrapping_mul(Self::SIZE))
    }

    /// A present entry: second stage only.
    #[must_use]
    pub const fn second_stage(domain: u16, width: AddressWidth, table: u64) -> Self {
        Self::of(TranslationKind::SecondStage, domain)
            .with_aw(width.0 as u64)
            .with_second_stage_table(table)
    }

    /// A present entry: first stage only, of 4 levels.
    #[must_use]
    pub const fn first_stage(domain: u16, table: u64) -> Self {
        Self::of(TranslationKind::FirstStage, domain).with_first_stage_table(table)
    }

    /// A present entry: first stage of 4 levels over a second stage.
    #[must_use]
    pub const fn nested(domain: u16, first: u64, width: AddressWidth, second: u64) -> Self {
        Self::of(TranslationKind::Nested, domain)
            .with_aw(width.0 as u64)
            .with_first_stage_table(first)
            .with_second_stage_table(second)
    }

    /// A present entry: pass-through. AW is to be one that the unit supports.
    #[must_use]
    pub const fn pass_through(domain: u16, width: AddressWidth) -> Self {
        Self::of(TranslationKind::PassThrough, domain).with_aw(width.0 as u64)
    }

    const fn of(kind: TranslationKind, domain: u16) -> Self {
        Self([1, 0, 0, 0, 0, 0, 0, 0])
            .with_pgtt(kind.bits())
            .with_domain(domain as u64)
    }

    /// PGTT.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> TranslationKind {
        TranslationKind::from_bits(self.pgtt())
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
    pub const fn second_stage_table(self) -> u64 {
        self.0[0] & ADDRESS
    }

    /// The same with another SSPTPTR.
    #[must_use]
    pub const fn with_second_stage_table(mut self, table: u64) -> Self {
        self.0[0] = self.0[0] & !ADDRESS | table & ADDRESS;
        self
    }

    /// FSPTPTR: the root of the first-stage table.
    #[inline]
    #[must_use]
    pub const fn first_stage_table(self) -> u64 {
        self.0[2] & ADDRESS
    }

    /// The same with another FSPTPTR.
    #[must_use]
    pub const fn with_first_stage_table(mut self, table: u64) -> Self {
        self.0[2] = self.0[2] & !ADDRESS | table & ADDRESS;
        self
    }

    /// Levels of the first stage; `None` for a reserved FSPM.
    #[inline]
    #[must_use]
    pub const fn first_stage_levels(self) -> Option<u8> {
        match self.fspm() {
            0 => Some(4),
            1 => Some(5),
            _ => None,
        }
    }

    /// The reserved bits that are set, on a unit with `host_bits` of address and without memory-type support
    /// (ECAP.MTS), so that CD, EMTE, EMT, PWT, PCD and PAT are reserved too.
    #[inline]
    #[must_use]
    pub const fn reserved(self, host_bits: u32) -> [u64; 8] {
        let [a, b, c, d, e, f, g, h] = self.0;
        let wide = too_wide(host_bits);
        [
            a & (0xc20 | wide),
            b & !0x0180_ffff,
            c & (0xf00 | wide),
            d,
            e,
            f,
            g,
            h,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pasid_in_two_indices() {
        let pasid = Pasid::new(0xf_ffc5).unwrap();
        assert_eq!(
            PasidDirectoryEntry::address(0x1000, pasid),
            0x1000 + 0x3fff * 8
        );
        assert_eq!(PasidEntry::address(0x1000, pasid), 0x1140);
    }

    #[test]
    fn words_of_the_figures() {
        let directory = PasidDirectoryEntry(0x1_2345_6003);
        assert!(directory.present() && directory.fault_processing_disabled());
        assert_eq!(directory.table(), 0x1_2345_6000);
        assert_eq!(
            PasidDirectoryEntry(u64::MAX).reserved(52),
            0xfff0_0000_0000_0ffc
        );
        assert_eq!(PasidDirectoryEntry::new(0x8000).0, 0x8001);

        let entry = PasidEntry([0xaaaa_a2cb, 0x0180_1234, 0xbbbb_b0f7, 0, 0, 0, 0, 0]);
        assert!(entry.present() && entry.fault_processing_disabled() && entry.second_stage_marks());
        assert_eq!(entry.address_width(), AddressWidth::BITS_48);
        assert_eq!(entry.kind(), TranslationKind::Nested);
        assert_eq!(entry.second_stage_table(), 0xaaaa_a000);
        assert_eq!(entry.domain(), 0x1234);
        assert!(entry.walk_snoop() && entry.page_snoop());
        assert!(entry.supervisor_requests() && entry.execute_requests());
        assert_eq!(entry.first_stage_levels(), Some(5));
        assert!(entry.write_protect() && entry.no_execute() && entry.smep());
        assert!(entry.extended_accessed());
        assert_eq!(entry.first_stage_table(), 0xbbbb_b000);
        assert_eq!(entry.reserved(39), [0; 8]);
        let all = PasidEntry([u64::MAX; 8]).reserved(52);
        assert_eq!(all[0], 0xfff0_0000_0000_0c20);
        assert_eq!(all[1], 0xffff_ffff_fe7f_0000);
        assert_eq!(all[2], 0xfff0_0000_0000_0f00);
        assert_eq!(all[3..], [u64::MAX; 5]);
    }

    #[test]
    fn what_drivers_write() {
        let second = PasidEntry::second_stage(7, AddressWidth::BITS_39, 0x5000);
        assert_eq!(second.0[..3], [0x5085, 7, 0]);
        let first = PasidEntry::first_stage(7, 0x6000).with_fspm(1);
        assert_eq!(first.0[..3], [0x41, 7, 0x6004]);
        let nested = PasidEntry::nested(7, 0x6000, AddressWidth::BITS_57, 0x5000);
        assert_eq!(nested.0[..3], [0x50cd, 7, 0x6000]);
        let through = PasidEntry::pass_through(7, AddressWidth::BITS_48);
        assert_eq!(through.0[..3], [0x109, 7, 0]);
        assert_eq!(TranslationKind::from_bits(6), TranslationKind::Reserved(6));
        assert_eq!(
            PasidEntry::default().with_fspm(3).first_stage_levels(),
            None
        );
    }
}
