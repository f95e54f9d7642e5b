// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a word of the specification is written down: its figure, line by line, checked when compiled.

/// The bits `high:low` of a word, in place.
pub(crate) const fn mask(high: u32, low: u32) -> u128 {
    assert!(high < 128 && low <= high, "a field ends before it begins");
    (u128::MAX >> (127 - (high - low))) << low
}

/// A newtype over a raw word with a reader and a setter for each field of its figure.
///
/// ```text
/// word! {
///     /// Title.
///     pub struct Name(u64) {
///         /// What bit 3 says.
///         bool [3:3] flag, with_flag;
///         /// A number.
///         u16 [31:16] number, with_number;
///         /// An address, in place.
///         address [63:12] table, with_table;
///     }
/// }
/// ```
///
/// A setter cuts off what does not fit, so that no field ever reaches into another; fields that overlap
/// or leave the word do not compile. What the figure leaves out is `reserved()`.
macro_rules! word {
    (
        $(#[$doc:meta])*
        pub struct $name:ident($raw:ident) {
            $($(#[$field:meta])* $kind:ident [$high:literal:$low:literal] $get:ident, $with:ident;)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "arbitrary", derive(arbitrary::Arbitrary))]
        pub struct $name(pub $raw);

        impl $name {
            /// Every bit that has a meaning.
            pub const DEFINED: $raw = {
                let mut seen: u128 = 0;
                $(
                    let field = $crate::spec::word::mask($high, $low);
                    assert!($high < <$raw>::BITS, "a field leaves the word");
                    assert!(seen & field == 0, "two fields overlap");
                    seen |= field;
                )*
                seen as $raw
            };

            /// The bits set here that have no meaning.
            #[inline]
            #[must_use]
            pub const fn reserved(self) -> $raw {
                self.0 & !Self::DEFINED
            }

            $($crate::spec::word::word!(@ $kind, $raw, $(#[$field])* $get, $with, $high, $low);)*
        }
    };
    (@ bool, $raw:ident, $(#[$field:meta])* $get:ident, $with:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> bool {
            self.0 >> $low & 1 != 0
        }

        #[doc = concat!("With [`", stringify!($get), "`](Self::", stringify!($get), ") as given.")]
        #[inline]
        #[must_use]
        pub const fn $with(self, value: bool) -> Self {
            Self(self.0 & !(1 << $low) | (value as $raw) << $low)
        }
    };
    (@ address, $raw:ident, $(#[$field:meta])* $get:ident, $with:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> u64 {
            const LOW: u32 = $low % 64;
            ((self.0 & $crate::spec::word::mask($high, $low) as $raw) >> ($low - LOW)) as u64
        }

        #[doc = concat!("With [`", stringify!($get), "`](Self::", stringify!($get), ") as given; bits outside of the field are dropped.")]
        #[inline]
        #[must_use]
        pub const fn $with(self, value: u64) -> Self {
            const LOW: u32 = $low % 64;
            const MASK: $raw = $crate::spec::word::mask($high, $low) as $raw;
            Self(self.0 & !MASK | ((value as $raw) << ($low - LOW)) & MASK)
        }
    };
    (@ $as:ident, $raw:ident, $(#[$field:meta])* $get:ident, $with:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> $as {
            (self.0 >> $low & $crate::spec::word::mask($high - $low, 0) as $raw) as $as
        }

        #[doc = concat!("With [`", stringify!($get), "`](Self::", stringify!($get), ") as given; bits that do not fit are dropped.")]
        #[inline]
        #[must_use]
        pub const fn $with(self, value: $as) -> Self {
            const MASK: $raw = $crate::spec::word::mask($high, $low) as $raw;
            Self(self.0 & !MASK | ((value as $raw) << $low) & MASK)
        }
    };
}
pub(crate) use word;

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macro makes public words")]
mod tests {
    word! {
        /// A word to try the macro on.
        pub struct Sample(u128) {
            /// A flag.
            bool [4:4] flag, with_flag;
            /// A number.
            u16 [31:16] number, with_number;
            /// An address in the upper half.
            address [127:76] page, with_page;
        }
    }

    #[test]
    fn fields_lie_where_the_figure_says() {
        let word = Sample(0)
            .with_flag(true)
            .with_number(0xbeef)
            .with_page(0xffff_f000);
        assert_eq!(word.0, 0x0000_0000_ffff_f000_0000_0000_beef_0010);
        assert_eq!(Sample::DEFINED, 0xffff_ffff_ffff_f000_0000_0000_ffff_0010);
        assert_eq!(
            (word.flag(), word.number(), word.page()),
            (true, 0xbeef, 0xffff_f000)
        );
        assert_eq!(word.with_flag(false).with_number(0).with_page(0).0, 0);
    }

    #[test]
    fn what_does_not_fit_is_dropped_not_spilled() {
        let word = Sample(0).with_page(0xfff);
        assert_eq!(word.0, 0);
        assert_eq!(Sample(u128::MAX).with_number(0).number(), 0);
        assert_eq!(Sample(1 << 5 | 1 << 4).reserved(), 1 << 5);
    }
}
