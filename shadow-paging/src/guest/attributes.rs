// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest's entries grant, folded over a path.

/// What holds for a linear address, or what one entry says of those under it.
///
/// As the tables say it: no control register is applied. Whether an access may be made is
/// [`AccessControl::refusal`](super::AccessControl::refusal).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GuestAttributes {
    /// U/S is 1 in every entry: a user-mode address.
    pub user: bool,
    /// R/W is 1 in every entry.
    pub writable: bool,
    /// XD is 0 in every entry, or the format has none.
    pub executable: bool,
    /// R/W is 0 and D is 1 in the last entry, R/W is 1 in all above it: a shadow-stack address (CET).
    pub shadow_stack: bool,
    /// Protection key, 0 to 15; 0 where the format has none.
    pub key: u8,
    /// G: TLBs may keep it over loads of CR3, if CR4.PGE is set.
    pub global: bool,
    /// Index into the page attribute table: PAT, PCD and PWT as bits 2, 1 and 0.
    pub pat: u8,
}

impl GuestAttributes {
    /// Grants everything, asks for nothing: what a linear address has without paging.
    pub const ALL: Self = Self {
        user: true,
        writable: true,
        executable: true,
        shadow_stack: false,
        key: 0,
        global: false,
        pat: 0,
    };

    /// What holds under `self` and, below it, `here`.
    #[inline]
    #[must_use]
    pub const fn and(self, here: Self) -> Self {
        Self {
            user: self.user && here.user,
            writable: self.writable && here.writable,
            executable: self.executable && here.executable,
            shadow_stack: self.writable && here.shadow_stack,
            key: here.key,
            global: here.global,
            pat: here.pat,
        }
    }
}
