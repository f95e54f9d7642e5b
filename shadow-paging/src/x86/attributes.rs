// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a shadow leaf grants.

/// A shadow leaf's rights and memory type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ShadowAttributes(u8);

const WRITE: u8 = 1 << 0;
const USER: u8 = 1 << 1;
const EXECUTE: u8 = 1 << 2;
const PAT_SHIFT: u32 = 4;

impl ShadowAttributes {
    /// A supervisor's page that can be read, with index `pat` (0 to 7) into the page attribute table.
    #[inline]
    #[must_use]
    pub const fn read_only(pat: u8) -> Self {
        Self((pat & 0b111) << PAT_SHIFT)
    }

    #[inline]
    const fn with(self, bit: u8, set: bool) -> Self {
        if set {
            Self(self.0 | bit)
        } else {
            Self(self.0 & !bit)
        }
    }

    /// With R/W set.
    #[inline]
    #[must_use]
    pub const fn writable(self) -> Self {
        self.with(WRITE, true)
    }

    /// With R/W clear.
    #[inline]
    #[must_use]
    pub const fn protected(self) -> Self {
        self.with(WRITE, false)
    }

    /// With U/S set: a user-mode address.
    #[inline]
    #[must_use]
    pub const fn of_user(self) -> Self {
        self.with(USER, true)
    }

    /// With XD clear.
    #[inline]
    #[must_use]
    pub const fn executable(self) -> Self {
        self.with(EXECUTE, true)
    }

    /// R/W.
    #[inline]
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.0 & WRITE != 0
    }

    /// U/S.
    #[inline]
    #[must_use]
    pub const fn is_user(self) -> bool {
        self.0 & USER != 0
    }

    /// XD is clear.
    #[inline]
    #[must_use]
    pub const fn is_executable(self) -> bool {
        self.0 & EXECUTE != 0
    }

    /// Index into the page attribute table.
    #[inline]
    #[must_use]
    pub const fn pat(self) -> u8 {
        self.0 >> PAT_SHIFT
    }
}
