// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One access to memory: what it does, and with whose rights.

/// What an access does at its linear address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A data read.
    Read,
    /// A data write, or a read and write in one instruction.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A shadow-stack read: RET's, for one (CET).
    ShadowStackRead,
    /// A shadow-stack write: CALL's, WRSS, WRUSS, the busy token (CET).
    ShadowStackWrite,
}

impl Kind {
    /// Whether it changes memory: sets the dirty flag, and W/R in an error code.
    #[inline]
    #[must_use]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ShadowStackWrite)
    }

    /// Whether it is one of CET's.
    #[inline]
    #[must_use]
    pub const fn shadow_stack(self) -> bool {
        matches!(self, Self::ShadowStackRead | Self::ShadowStackWrite)
    }
}

/// With whose rights an access is made. SDM 3A, "Determination of Access Rights".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// Made at CPL 3, and by WRUSS at CPL 0.
    User,
    /// Explicit, at CPL below 3, with EFLAGS.AC clear.
    Supervisor,
    /// Explicit, at CPL below 3, with EFLAGS.AC set: SMAP is suspended.
    SupervisorAc,
    /// To a system structure (GDT, LDT, IDT, TSS) by an instruction or event delivery that does not
    /// name the address, at any CPL: EFLAGS.AC is of no help.
    Implicit,
}

impl Privilege {
    /// EFLAGS.AC, alignment check and SMAP's override.
    pub const EFLAGS_AC: u64 = 1 << 18;

    /// The privilege of an explicit access made at `cpl` (0 to 3) with `eflags`.
    #[inline]
    #[must_use]
    pub const fn explicit(cpl: u8, eflags: u64) -> Self {
        if cpl >= 3 {
            Self::User
        } else if eflags & Self::EFLAGS_AC != 0 {
            Self::SupervisorAc
        } else {
            Self::Supervisor
        }
    }

    /// Whether the manual calls it a user-mode access.
    #[inline]
    #[must_use]
    pub const fn user(self) -> bool {
        matches!(self, Self::User)
    }
}

/// An access: what, and with whose rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// What it does.
    pub kind: Kind,
    /// With whose rights.
    pub privilege: Privilege,
}

impl Access {
    /// An access of `kind` made with `privilege`.
    #[inline]
    #[must_use]
    pub const fn new(kind: Kind, privilege: Privilege) -> Self {
        Self { kind, privilege }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpl_3_is_user_mode_and_ac_counts_below_it() {
        let ac = 0x0004_0002;
        assert_eq!(Privilege::explicit(3, ac), Privilege::User);
        assert_eq!(Privilege::explicit(0, ac), Privilege::SupervisorAc);
        assert_eq!(
            Privilege::explicit(2, 0xfffb_ffff),
            Privilege::Supervisor,
            "every flag but AC"
        );
    }
}
