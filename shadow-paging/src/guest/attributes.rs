// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's entries grant, folded over a path.

use core::fmt;

use super::entry::{DIRTY, EXECUTE_DISABLE, GLOBAL, KEY, KEY_SHIFT, SMALL_PAT, USER, WRITABLE};

/// What holds for a linear address, or what one entry says of those under it.
///
/// As the tables say it: no control register is applied. Whether an access may be made is
/// [`AccessControl::refusal`](super::AccessControl::refusal).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestAttributes(
    /// Most bits lie as in an entry of 4 KiB, so that folding a path is two operations an entry. XD is
    /// inverted: it grants. D is there only where R/W is 0. In place of P: R/W is 1 in all above.
    u64,
);

/// Bits that grant if every entry has them.
const GRANTS: u64 = WRITABLE | USER | EXECUTE_DISABLE;
/// R/W is 1 in all entries above.
const WRITABLE_ABOVE: u64 = 1;

impl GuestAttributes {
    /// Grants everything, asks for nothing: what a linear address has without paging.
    pub const ALL: Self = Self(GRANTS | WRITABLE_ABOVE);

    /// What `entry` says, of whose other bits those in `kept` mean something.
    #[inline(always)]
    pub(crate) const fn of(entry: u64, kept: u64, pat: u64) -> Self {
        // D, one place up five from R/W, tells a shadow stack only where R/W is clear.
        let kept = kept & !(entry << 5 & DIRTY);
        let pat = if entry & pat != 0 { SMALL_PAT } else { 0 };
        Self((entry ^ EXECUTE_DISABLE) & GRANTS | entry & kept | pat | WRITABLE_ABOVE)
    }

    /// What holds under `self` and, below it, `here`.
    #[inline]
    #[must_use]
    pub const fn and(self, here: Self) -> Self {
        let rights = (self.0 | !GRANTS) & here.0;
        Self(rights & !WRITABLE_ABOVE | self.0 >> 1 & WRITABLE_ABOVE)
    }

    /// U/S is 1 in every entry: a user-mode address.
    #[inline]
    #[must_use]
    pub const fn user(self) -> bool {
        self.0 & USER != 0
    }

    /// R/W is 1 in every entry.
    #[inline]
    #[must_use]
    pub const fn writable(self) -> bool {
        self.0 & WRITABLE != 0
    }

    /// XD is 0 in every entry, or the format has none.
    #[inline]
    #[must_use]
    pub const fn executable(self) -> bool {
        self.0 & EXECUTE_DISABLE != 0
    }

    /// R/W is 0 and D is 1 in the last entry, R/W is 1 in all above it: a shadow-stack address (CET).
    #[inline]
    #[must_use]
    pub const fn shadow_stack(self) -> bool {
        self.0 & (DIRTY | WRITABLE_ABOVE) == DIRTY | WRITABLE_ABOVE
    }

    /// Protection key, 0 to 15; 0 where the format has none.
    #[inline]
    #[must_use]
    pub const fn key(self) -> u8 {
        ((self.0 & KEY) >> KEY_SHIFT) as u8
    }

    /// G: TLBs may keep it over loads of CR3, if CR4.PGE is set.
    #[inline]
    #[must_use]
    pub const fn global(self) -> bool {
        self.0 & GLOBAL != 0
    }

    /// Index into the page attribute table: PAT, PCD and PWT as bits 2, 1 and 0.
    #[inline]
    #[must_use]
    pub const fn pat(self) -> u8 {
        (self.0 >> 3 & 0b11 | self.0 >> 5 & 0b100) as u8
    }
}

impl fmt::Debug for GuestAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestAttributes")
            .field("user", &self.user())
            .field("writable", &self.writable())
            .field("executable", &self.executable())
            .field("shadow_stack", &self.shadow_stack())
            .field("key", &self.key())
            .field("global", &self.global())
            .field("pat", &self.pat())
            .finish()
    }
}
