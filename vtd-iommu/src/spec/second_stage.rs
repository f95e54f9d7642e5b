// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries of second-stage tables. "Second-Stage Paging Entries".

/// A second-stage paging entry, of any level: SS-PML5E to SS-PTE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[repr(transparent)]
pub struct SecondStageEntry(pub u64);

impl SecondStageEntry {
    /// R: reads.
    pub const READ: u64 = 1;
    /// W: writes.
    pub const WRITE: u64 = 1 << 1;
    /// Bit 7, PS: the entry maps a page, at levels 2 and 3.
    pub const LARGE: u64 = 1 << 7;
    /// Bit 8, A: accessed, where SSADE is set.
    pub const ACCESSED: u64 = 1 << 8;
    /// Bit 9, D: dirty, where SSADE is set, in an entry that maps a page.
    pub const DIRTY: u64 = 1 << 9;
    /// Bit 11, SNP: accesses snoop, in an entry that maps a page, where ECAP.SC is set.
    pub const SNOOP: u64 = 1 << 11;
    /// Bits 51:12: the address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Bits 61:52: software's.
    pub const SOFTWARE: u64 = 0x3ff << 52;
    /// Bit 62, TM: transient, in an entry that maps a page, where ECAP.DT is set.
    pub const TRANSIENT: u64 = 1 << 62;
    /// Bit 63: ignored.
    pub const IGNORED: u64 = 1 << 63;

    /// Whether R or W is set.
    #[inline]
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & (Self::READ | Self::WRITE) != 0
    }

    /// Bits 51:12.
    #[inline]
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & Self::ADDRESS
    }
}
