// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The page-fault error code. SDM 3A, "Page-Fault Exceptions".

use core::ops::{BitOr, BitOrAssign};

/// What a processor pushes with #PF.
///
/// Open: bits that other hardware defines can be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// P: not caused by an entry that is not present.
    pub const PRESENT: Self = Self(1 << 0);
    /// W/R: the access was a write.
    pub const WRITE: Self = Self(1 << 1);
    /// U/S: the access was a user-mode access.
    pub const USER: Self = Self(1 << 2);
    /// RSVD: a reserved bit is set in an entry.
    pub const RESERVED: Self = Self(1 << 3);
    /// I/D: the access was an instruction fetch (only where SMEP or XD is in use).
    pub const FETCH: Self = Self(1 << 4);
    /// PK: a protection key disallows the access.
    pub const KEY: Self = Self(1 << 5);
    /// SS: the access was a shadow-stack access.
    pub const SHADOW_STACK: Self = Self(1 << 6);

    /// Whether every bit of `bits` is set.
    #[inline]
    #[must_use]
    pub const fn contains(self, bits: Self) -> bool {
        self.0 & bits.0 == bits.0
    }

    /// `self` if `condition` holds, otherwise nothing.
    #[inline]
    pub(crate) const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self(0) }
    }
}

impl BitOr for ErrorCode {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ErrorCode {
    #[inline]
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
