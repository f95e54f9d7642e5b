// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a word of the specification is written down: its figure, line by line, checked when compiled.

/// The bits `high:low` of a word, in place.
pub(crate) const fn mask(high: u32, low: u32) -> u128 {
    assert!(high < 128 && low <= high, "a field ends before it begins");
    (u128::MAX >> (127 - (high - low))) << low
}

/// All bits of `fields`, each given as `high:low`, of a word of `bits`.
pub(crate) const fn defined(bits: u32, fields: &[(u32, u32)]) -> u128 {
    let (mut seen, mut rest) = (0, fields);
    while let [(high, low), others @ ..] = rest {
        let field = mask(*high, *low);
        assert!(*high < bits, "a field leaves the word");
        assert!(seen & field == 0, "two fields overlap");
        seen |= field;
        rest = others;
    }
    seen
}

/// Refuses, when compiled, fields that overlap or leave a list of `N` 64-bit words, each given as word and `high:low`.
pub(crate) const fn check<const N: usize>(fields: &[(usize, u32, u32)]) {
    let (mut seen, mut rest) = ([0; N], fields);
    while let [(word, high, low), others @ ..] = rest {
        let field = defined(64, &[(*high, *low)]);
        assert!(seen[*word] & field == 0, "two fields overlap");
        seen[*word] |= field;
        rest = others;
    }
}

/// Readers and setters for each field of a figure: of a newtype over one word, which it declares, or of a list of
/// 64-bit words, lowest first.
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
/// word! {
///     impl Entry: [u64; 2] {
///         /// What bit 0 of word 0 says. The setter sets it.
///         set [0; 0:0] present, with_present;
///         /// Bits 23:8 of word 1.
///         u64 [1; 23:8] domain, with_domain;
///     }
/// }
/// ```
///
/// A setter cuts off what does not fit, so that no field ever reaches into another; fields that overlap
/// or leave the word do not compile. What the figure of one word leaves out is `reserved()`; what the one of a list
/// leaves out depends on more than the list, and is said beside it.
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
            pub const DEFINED: $raw =
                $crate::spec::word::defined(<$raw>::BITS, &[$(($high, $low)),*]) as $raw;

            /// The bits set here that have no meaning.
            #[inline]
            #[must_use]
            pub const fn reserved(self) -> $raw {
                self.0 & !Self::DEFINED
            }

            $($crate::spec::word::word!(@ $kind, $raw, (), $(#[$field])* $get, $with, $high, $low);)*
        }
    };
    (
        impl $name:ident: [u64; $count:literal] {
            $($(#[$field:meta])* $kind:ident [$word:literal; $high:literal:$low:literal] $get:ident, $with:ident;)*
        }
    ) => {
        impl $name {
            $($crate::spec::word::word!(@ $kind, u64, ([$word]), $(#[$field])* $get, $with, $high, $low);)*
        }

        const _: () = $crate::spec::word::check::<$count>(&[$(($word, $high, $low)),*]);
    };
    (@ bool, $raw:ident, ($($word:tt)*), $(#[$field:meta])* $get:ident, $with:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> bool {
            self.0 $($word)* >> $low & 1 != 0
        }

        #[doc = concat!("With [`", stringify!($get), "`](Self::", stringify!($get), ") as given.")]
        #[inline]
        #[must_use]
        pub const fn $with(mut self, value: bool) -> Self {
            self.0 $($word)* = self.0 $($word)* & !(1 << $low) | (value as $raw) << $low;
            self
        }
    };
    (@ set, $raw:ident, ($($word:tt)*), $(#[$field:meta])* $get:ident, $with:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> bool {
            self.0 $($word)* >> $low & 1 != 0
        }

        #[doc = concat!("The same with [`", stringify!($get), "`](Self::", stringify!($get), ") set.")]
        #[inline]
        #[must_use]
        pub const fn $with(mut self) -> Self {
            self.0 $($word)* |= 1 << $low;
            self
        }
    };
    (@ address, $raw:ident, ($($word:tt)*), $(#[$field:meta])* $get:ident, $with:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> u64 {
            const LOW: u32 = $low % 64;
            ((self.0 $($word)* & $crate::spec::word::mask($high, $low) as $raw) >> ($low - LOW)) as u64
        }

        #[doc = concat!("With [`", stringify!($get), "`](Self::", stringify!($get), ") as given; bits outside of the field are dropped.")]
        #[inline]
        #[must_use]
        pub const fn $with(mut self, value: u64) -> Self {
            const LOW: u32 = $low % 64;
            const MASK: $raw = $crate::spec::word::mask($high, $low) as $raw;
            self.0 $($word)* = self.0 $($word)* & !MASK | ((value as $raw) << ($low - LOW)) & MASK;
            self
        }
    };
    (@ $as:ident, $raw:ident, ($($word:tt)*), $(#[$field:meta])* $get:ident, $with:ident, $high:literal, $low:literal) => {
        $(#[$field])*
        #[inline]
        #[must_use]
        pub const fn $get(self) -> $as {
            (self.0 $($word)* >> $low & $crate::spec::word::mask($high - $low, 0) as $raw) as $as
        }

        #[doc = concat!("With [`", stringify!($get), "`](Self::", stringify!($get), ") as given; bits that do not fit are dropped.")]
        #[inline]
        #[must_use]
        pub const fn $with(mut self, value: $as) -> Self {
            const MASK: $raw = $crate::spec::word::mask($high, $low) as $raw;
            self.0 $($word)* = self.0 $($word)* & !MASK | ((value as $raw) << $low) & MASK;
            self
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

    #[derive(Clone, Copy)]
    pub struct Entry([u64; 2]);

    word! {
        impl Entry: [u64; 2] {
            /// A flag.
            set [0; 63:63] flag, with_flag;
            /// One that can be cleared.
            bool [1; 0:0] other, with_other;
            /// A number.
            u64 [1; 23:8] number, with_number;
            /// An address.
            address [1; 63:32] page, with_page;
        }
    }

    #[test]
    fn fields_of_a_list_lie_in_their_words() {
        let entry = Entry([1, 0x70])
            .with_flag()
            .with_other(true)
            .with_number(0xf_beef)
            .with_page(u64::MAX);
        assert_eq!(entry.0, [1 << 63 | 1, 0xffff_ffff_00be_ef71]);
        assert!(entry.flag() && entry.other());
        assert_eq!(
            (entry.number(), entry.page()),
            (0xbeef, 0xffff_ffff_0000_0000)
        );
        assert_eq!(
            entry.with_other(false).with_number(0).with_page(0).0[1],
            0x70
        );
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
