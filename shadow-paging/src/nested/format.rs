// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What must be known of a second stage's format beyond its entries: which bits of its attributes are rights.

use core::ops::{BitAnd, BitOr, Sub};

use hvkit_page_table::Encode;

/// What a second stage grants, or what an access needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Grants(pub(super) u8);

impl Grants {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Data reads.
    pub const READ: Self = Self(1);
    /// Data writes.
    pub const WRITE: Self = Self(1 << 1);
    /// Instruction fetches; with mode-based execute control, from addresses that are the supervisor's.
    pub const EXECUTE: Self = Self(1 << 2);
    /// Instruction fetches from addresses that are the user's.
    pub const USER_EXECUTE: Self = Self(1 << 3);
    /// Everything.
    pub const ALL: Self = Self(0b1111);

    /// Whether all of `other` is in it.
    #[inline]
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// It if `condition`, otherwise nothing.
    #[inline]
    #[must_use]
    pub const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    /// It without what is in `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Grants {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitAnd for Grants {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Grants {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.without(other)
    }
}

/// A format whose tables are a second stage, and can be shadowed by tables of the same format.
pub trait SecondStage: Encode + Copy + PartialEq {
    /// What `attributes` grant. Where the format does not tell user from supervisor fetches, both or neither.
    fn grants(&self, attributes: Self::Attributes) -> Grants;

    /// What else they say of a page that shadows must say too (memory type, snooping), in 11 bits. 0 of tables.
    fn other(&self, attributes: Self::Attributes) -> u16;

    /// Attributes of a page with these, `None` if no entry can say them. Rights alone suffice for that: what
    /// [`other`](Self::other) returns can be said with any that can.
    fn spelled(&self, grants: Grants, other: u16) -> Option<Self::Attributes>;

    /// Whether it tells fetches from user addresses from others.
    fn tells_user_execute(&self) -> bool {
        false
    }

    /// Whether hardware that walks it counts a read of a guest's own page tables as a write of the page that they are in. SDM
    /// 3C, "EPT Violations": EPT whose accessed and dirty flags are enabled.
    fn walks_write(&self) -> bool {
        false
    }
}
