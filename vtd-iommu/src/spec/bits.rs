// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fields of an entry are declared: word, highest and lowest bit, as the specification's figures give them.

/// Declares the fields of a type that is a list of 64-bit words, lowest word first.
///
/// ```text
/// [1; 23:8] domain, with_domain;     bits 23:8 of word 1: a getter, and a setter that keeps the other bits
///                                    and drops those of its argument that do not fit
/// [0; 1] fpd, with_fpd;              a single bit: whether it is set, and the same entry with it set
/// ```
///
/// Bit numbers are of the word, not of the whole entry.
macro_rules! bits {
    (impl $type:ident { $($(#[$doc:meta])* [$word:literal; $($at:tt)*] $get:ident, $with:ident;)* }) => {
        impl $type {
            $(bits!(@one $(#[$doc])* [$word; $($at)*] $get, $with);)*
        }
    };
    (@one $(#[$doc:meta])* [$word:literal; $high:literal : $low:literal] $get:ident, $with:ident) => {
        $(#[$doc])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> u64 {
            const MASK: u64 = u64::MAX >> (63 - ($high - $low));
            self.0[$word] >> $low & MASK
        }

        #[doc = concat!("The same with another [`", stringify!($get), "`](Self::", stringify!($get), ").")]
        #[inline]
        #[must_use]
        pub const fn $with(mut self, value: u64) -> Self {
            const MASK: u64 = u64::MAX >> (63 - ($high - $low));
            self.0[$word] = self.0[$word] & !(MASK << $low) | (value & MASK) << $low;
            self
        }
    };
    (@one $(#[$doc:meta])* [$word:literal; $bit:literal] $get:ident, $with:ident) => {
        $(#[$doc])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> bool {
            self.0[$word] >> $bit & 1 != 0
        }

        #[doc = concat!("The same with [`", stringify!($get), "`](Self::", stringify!($get), ") set.")]
        #[inline]
        #[must_use]
        pub const fn $with(mut self) -> Self {
            self.0[$word] |= 1 << $bit;
            self
        }
    };
}

pub(crate) use bits;
