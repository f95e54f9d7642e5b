// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sub-page write permissions: entries of the sub-page permission table, the vectors it ends in, and the
//! qualification of an SPP-related event. SDM 3C, "Sub-Page Write Permissions".

/// An SPPL4E, SPPL3E or SPPL2E: references the next lower table.
///
/// Bit 0 says that it is valid, bits M-1:12 hold the address; the rest is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[repr(transparent)]
pub struct SppEntry(pub u64);

/// The write permissions of the 32 sub-pages of 128 bytes of a 4-KByte page.
///
/// Bit 2S is the permission of sub-page S; the odd bits are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
#[repr(transparent)]
pub struct SppVector(pub u64);

/// Why a sub-page permission table has no answer. Both cause an SPP-related event (exit reason 66).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SppFault {
    /// An entry that is not valid: an SPP miss.
    #[error("SPP miss")]
    Miss,
    /// Reserved bits: an SPP misconfiguration.
    #[error("SPP misconfiguration: reserved bits {bits:#x} are set")]
    Misconfiguration {
        /// Those that are set.
        bits: u64,
    },
}

/// The exit qualification of an SPP-related event. SDM 3C, "Exit Qualification for SPP-Related Events".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[repr(transparent)]
pub struct SppExit(pub u64);

impl SppEntry {
    /// An entry for the table at `frame`.
    #[must_use]
    pub const fn table(frame: u64) -> Self {
        Self(frame & 0x000f_ffff_ffff_f000 | 1)
    }

    /// The next table's physical address, on a processor with `physical_bits` of them.
    ///
    /// # Errors
    ///
    /// A miss, or a misconfiguration.
    #[inline]
    pub const fn next(self, physical_bits: u32) -> Result<u64, SppFault> {
        if self.0 & 1 == 0 {
            return Err(SppFault::Miss);
        }
        let address = if physical_bits >= 64 {
            u64::MAX
        } else {
            (1u64 << physical_bits).wrapping_sub(1)
        };
        match self.0 & (!address | 0xffe) {
            0 => Ok(self.0 & !1),
            bits => Err(SppFault::Misconfiguration { bits }),
        }
    }
}

impl SppVector {
    /// Sub-pages of a page.
    pub const SUB_PAGES: u8 = 32;
    const RESERVED: u64 = 0xaaaa_aaaa_aaaa_aaaa;

    /// The same, with sub-page `sub_page` (modulo 32) writable.
    #[must_use]
    pub const fn with(self, sub_page: u8) -> Self {
        Self(self.0 | 1 << ((sub_page % Self::SUB_PAGES) << 1))
    }

    /// The same, with sub-page `sub_page` (modulo 32) not writable.
    #[must_use]
    pub const fn without(self, sub_page: u8) -> Self {
        Self(self.0 & !(1 << ((sub_page % Self::SUB_PAGES) << 1)))
    }

    /// Whether the sub-page of `address` (its bits 11:7) is writable.
    #[inline]
    #[must_use]
    pub const fn allows(self, address: u64) -> bool {
        self.0 >> ((address >> 7 & 31) << 1) & 1 != 0
    }

    /// Looks for reserved bits.
    ///
    /// # Errors
    ///
    /// [`SppFault::Misconfiguration`].
    #[inline]
    pub const fn check(self) -> Result<Self, SppFault> {
        match self.0 & Self::RESERVED {
            0 => Ok(self),
            bits => Err(SppFault::Misconfiguration { bits }),
        }
    }
}

impl SppExit {
    /// Bit 11: a miss; clear for a misconfiguration.
    pub const MISS: u64 = 1 << 11;
    /// Bit 12: NMI unblocking due to IRET.
    pub const NMI_UNBLOCKING: u64 = 1 << 12;

    /// The qualification for `fault`, but for NMI unblocking.
    #[must_use]
    pub const fn new(fault: SppFault) -> Self {
        match fault {
            SppFault::Miss => Self(Self::MISS),
            SppFault::Misconfiguration { .. } => Self(0),
        }
    }

    /// Whether it was a miss.
    #[must_use]
    pub const fn is_miss(self) -> bool {
        self.0 & Self::MISS != 0
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn entries_from_raw_words() {
        assert_eq!(SppEntry::table(0x1234_5000).0, 0x1234_5001);
        assert_eq!(SppEntry(0x1234_5001).next(46), Ok(0x1234_5000));
        assert_eq!(
            SppEntry(0x1234_5ffe).next(46),
            Err(SppFault::Miss),
            "only bit 0 counts then"
        );
        for bit in (1..12).chain(46..64) {
            let fault = SppFault::Misconfiguration { bits: 1 << bit };
            assert_eq!(SppEntry(1 | 1 << bit).next(46), Err(fault));
        }
        assert_eq!(SppEntry(1 | 1 << 45).next(46), Ok(1 << 45));
        assert_eq!(SppEntry(1 | 1 << 63).next(64), Ok(1 << 63), "no panic");
    }

    #[test]
    fn sub_pages_are_128_bytes() {
        let vector = SppVector(0x4000_0000_0000_0005);
        let writable: Vec<u64> = (0..4096).filter(|&a| vector.allows(0x7000 + a)).collect();
        let expected: Vec<u64> = (0..256).chain(31 * 128..4096).collect();
        assert_eq!(writable, expected);
        assert_eq!(SppVector(0).with(0).with(1).with(31), vector);
        assert_eq!(vector.without(31).without(0), SppVector(4));
        assert_eq!(SppVector(0).with(32), SppVector(1));
        assert_eq!(vector.check(), Ok(vector));
        for odd in (1..64).step_by(2) {
            let fault = SppFault::Misconfiguration { bits: 1 << odd };
            assert_eq!(SppVector(vector.0 | 1 << odd).check(), Err(fault));
        }
    }

    #[test]
    fn exits_from_raw_words() {
        assert_eq!(SppExit::new(SppFault::Miss).0, 0x800);
        assert_eq!(SppExit::new(SppFault::Misconfiguration { bits: 2 }).0, 0);
        assert!(SppExit(0x1800).is_miss() && !SppExit(0x1000).is_miss());
    }
}
