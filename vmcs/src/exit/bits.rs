// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Words of the manual's tables, with a reader for each row.

/// A newtype over a raw word, with `[high:low]` readers. A reader of one bit written `flag` is a `bool`.
macro_rules! word {
    ($(#[$doc:meta])* $name:ident($raw:ty) {
        $($(#[$field:meta])* $kind:ident $get:ident [$high:literal:$low:literal];)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
        #[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
        pub struct $name(pub $raw);

        impl $name {
            $($crate::exit::bits::word!(@ $kind, $raw, $(#[$field])* $get, $high, $low);)*
        }
    };
    (@ flag, $raw:ty, $(#[$field:meta])* $get:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        pub const fn $get(self) -> bool {
            self.0 >> $low & 1 != 0
        }
    };
    (@ $as:ident, $raw:ty, $(#[$field:meta])* $get:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        pub const fn $get(self) -> $as {
            (self.0 >> $low & (<$raw>::MAX >> (<$raw>::BITS - 1 - ($high - $low)))) as $as
        }
    };
}
pub(crate) use word;
