// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries of first-stage tables. "First-Stage Paging Entries".

/// A first-stage paging entry, of any level: FS-PML5E to FS-PTE. The layout is that of the processors' 4- and
/// 5-level paging, with an extended accessed flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[repr(transparent)]
pub struct FirstStageEntry(pub u64);

impl FirstStageEntry {
    /// P.
    pub const PRESENT: u64 = 1;
    /// R/W: writes.
    pub const WRITE: u64 = 1 << 1;
    /// U/S: user requests.
    pub const USER: u64 = 1 << 2;
    /// PWT.
    pub const WRITE_THROUGH: u64 = 1 << 3;
    /// PCD.
    pub const CACHE_DISABLE: u64 = 1 << 4;
    /// Bit 5, A: accessed.
    pub const ACCESSED: u64 = 1 << 5;
    /// Bit 6, D: dirty, in an entry that maps a page.
    pub const DIRTY: u64 = 1 << 6;
    /// Bit 7, PS: the entry maps a page, at levels 2 and 3. At level 1 it is the PAT bit.
    pub const LARGE: u64 = 1 << 7;
    /// Bit 8, G: global, in an entry that maps a page.
    pub const GLOBAL: u64 = 1 << 8;
    /// Bit 10, EA: accessed through this unit, where EAFE is set.
    pub const EXTENDED_ACCESSED: u64 = 1 << 10;
    /// Bits 51:12: the address.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Bits 62:52: software's.
    pub const SOFTWARE: u64 = 0x7ff << 52;
    /// Bit 63, XD: no execution, where NXE is set; else reserved.
    pub const EXECUTE_DISABLE: u64 = 1 << 63;

    /// P.
    #[inline]
    #[must_use]
    pub const fn present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Bits 51:12.
    #[inline]
    #[must_use]
    pub const fn address(self) -> u64 {
        self.0 & Self::ADDRESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_bits_51_to_12() {
        assert_eq!(FirstStageEntry(u64::MAX).address(), 0x000f_ffff_ffff_f000);
        assert_eq!(FirstStageEntry(0xfff0_0000_0000_0fff).address(), 0);
    }
}
