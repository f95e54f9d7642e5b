// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A descriptor as it lies in the queue, 128 or 256 bits wide.

/// The words of one invalidation descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
pub struct RawDescriptor {
    /// Bits 127:0.
    pub low: u128,
    /// Bits 255:128; 0 for a 128-bit descriptor.
    pub high: u128,
}

impl RawDescriptor {
    /// From the two words of a 128-bit descriptor.
    #[inline]
    #[must_use]
    pub const fn from_narrow(words: [u64; 2]) -> Self {
        Self {
            low: (words[1] as u128) << 64 | words[0] as u128,
            high: 0,
        }
    }

    /// From the four words of a 256-bit descriptor.
    #[inline]
    #[must_use]
    pub const fn from_wide(words: [u64; 4]) -> Self {
        Self {
            low: (words[1] as u128) << 64 | words[0] as u128,
            high: (words[3] as u128) << 64 | words[2] as u128,
        }
    }

    /// The two words of a 128-bit descriptor.
    #[inline]
    #[must_use]
    pub const fn narrow(self) -> [u64; 2] {
        [self.low as u64, (self.low >> 64) as u64]
    }

    /// The four words of a 256-bit descriptor.
    #[inline]
    #[must_use]
    pub const fn wide(self) -> [u64; 4] {
        [
            self.low as u64,
            (self.low >> 64) as u64,
            self.high as u64,
            (self.high >> 64) as u64,
        ]
    }

    /// The type, all seven bits: 11:9 and 3:0.
    #[inline]
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.low & 0xf) as u8 | ((self.low >> 9 & 7) as u8) << 4
    }
}
