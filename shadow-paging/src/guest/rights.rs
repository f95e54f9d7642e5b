// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Whether an access may be made. SDM 3A, "Determination of Access Rights" and "Protection Keys".

use super::access::{Access, Kind, Privilege};
use super::attributes::GuestAttributes;
use super::registers::{Registers, cr0, cr4};

/// Why an access to a translated address is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A user-mode access to a supervisor-mode address.
    #[error("a user-mode access to a supervisor-mode address")]
    Supervisor,
    /// A write where some entry has R/W clear.
    #[error("a write to a read-only address")]
    ReadOnly,
    /// A fetch where some entry has XD set.
    #[error("an instruction fetch from an execute-disabled address")]
    ExecuteDisabled,
    /// A supervisor-mode fetch from a user-mode address, with CR4.SMEP.
    #[error("SMEP: a supervisor-mode fetch from a user-mode address")]
    Smep,
    /// A supervisor-mode data access to a user-mode address, with CR4.SMAP.
    #[error("SMAP: a supervisor-mode access to a user-mode address")]
    Smap,
    /// A shadow-stack access to an address that is no shadow stack, or not of the access's mode.
    #[error("a shadow-stack access to an address that is not a shadow stack of its mode")]
    NotShadowStack,
    /// Only the protection key disallows it.
    #[error("a data access that protection key {key} disallows")]
    Key {
        /// The address's key.
        key: u8,
    },
}

/// Rights by protection key: PKRU or `IA32_PKRS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyRights(pub u32);

impl KeyRights {
    /// The two bits of `key`.
    #[inline]
    const fn bits(self, key: u8) -> u32 {
        self.0.wrapping_shr((key as u32 & 0xf) << 1)
    }

    /// ADi: no data access.
    #[inline]
    #[must_use]
    pub const fn access_disabled(self, key: u8) -> bool {
        self.bits(key) & 0b01 != 0
    }

    /// WDi: no data write (a supervisor's, only while CR0.WP is set).
    #[inline]
    #[must_use]
    pub const fn write_disabled(self, key: u8) -> bool {
        self.bits(key) & 0b10 != 0
    }
}

/// The control bits that decide about access rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AccessControl {
    /// CR0.WP: supervisor writes honour R/W.
    pub write_protect: bool,
    /// CR4.SMEP: no supervisor fetches from user-mode addresses.
    pub smep: bool,
    /// CR4.SMAP: no supervisor data accesses to user-mode addresses.
    pub smap: bool,
    /// PKRU, if CR4.PKE is set (IA-32e mode only): keys of user-mode addresses.
    pub user_keys: Option<KeyRights>,
    /// `IA32_PKRS`, if CR4.PKS is set (IA-32e mode only): keys of supervisor-mode addresses.
    pub supervisor_keys: Option<KeyRights>,
}

impl AccessControl {
    /// Nothing is controlled, as without paging.
    pub(crate) const OFF: Self = Self {
        write_protect: false,
        smep: false,
        smap: false,
        user_keys: None,
        supervisor_keys: None,
    };

    /// What `registers` control; protection keys exist in IA-32e mode only.
    pub(crate) const fn new(registers: &Registers, keys: Keys) -> Self {
        let exist = matches!(keys, Keys::Exist);
        Self {
            write_protect: registers.cr0 & cr0::WP != 0,
            smep: registers.cr4 & cr4::SMEP != 0,
            smap: registers.cr4 & cr4::SMAP != 0,
            user_keys: if exist && registers.cr4 & cr4::PKE != 0 {
                Some(KeyRights(registers.pkru))
            } else {
                None
            },
            supervisor_keys: if exist && registers.cr4 & cr4::PKS != 0 {
                Some(KeyRights(registers.pkrs))
            } else {
                None
            },
        }
    }

    /// Why `access` to an address with `page` is not allowed, or `None` if it is.
    ///
    /// [`Refusal::Key`] comes last: whether keys refuse too, whatever else does, is
    /// [`key_refuses`](Self::key_refuses).
    #[inline]
    #[must_use]
    pub fn refusal(&self, page: GuestAttributes, access: Access) -> Option<Refusal> {
        self.rights_refusal(page, access).or_else(|| {
            self.key_refuses(page, access)
                .then_some(Refusal::Key { key: page.key() })
        })
    }

    /// Why U/S, R/W, XD, SMEP, SMAP or the shadow-stack rules do not allow it.
    #[inline]
    fn rights_refusal(&self, page: GuestAttributes, access: Access) -> Option<Refusal> {
        let user = access.privilege.user();
        if access.kind.shadow_stack() {
            // "Made only to" shadow stacks of the same mode; SMAP and CR0.WP have no say.
            return if user && !page.user() {
                Some(Refusal::Supervisor)
            } else if page.user() != user || !page.shadow_stack() {
                Some(Refusal::NotShadowStack)
            } else {
                None
            };
        }
        if user && !page.user() {
            return Some(Refusal::Supervisor);
        }
        let supervisor_to_user = !user && page.user();
        if access.kind == Kind::Fetch {
            return if supervisor_to_user && self.smep {
                Some(Refusal::Smep)
            } else if !page.executable() {
                Some(Refusal::ExecuteDisabled)
            } else {
                None
            };
        }
        if supervisor_to_user && self.smap && access.privilege != Privilege::SupervisorAc {
            return Some(Refusal::Smap);
        }
        let honours_writable = user || self.write_protect;
        (access.kind.writes() && honours_writable && !page.writable()).then_some(Refusal::ReadOnly)
    }

    /// Whether the address's protection key disallows `access`: PK in the error code, whatever else
    /// refuses it.
    ///
    /// User-mode addresses have their rights in PKRU, supervisor-mode ones in `IA32_PKRS`, whoever
    /// makes the access.
    #[inline]
    #[must_use]
    pub const fn key_refuses(&self, page: GuestAttributes, access: Access) -> bool {
        if matches!(access.kind, Kind::Fetch) {
            return false;
        }
        let keys = if page.user() {
            self.user_keys
        } else {
            self.supervisor_keys
        };
        let Some(keys) = keys else {
            return false;
        };
        keys.access_disabled(page.key())
            || keys.write_disabled(page.key())
                && access.kind.writes()
                && (access.privilege.user() || self.write_protect)
    }
}

/// Whether the paging mode has protection keys.
#[derive(Clone, Copy)]
pub(crate) enum Keys {
    /// 4- and 5-level paging.
    Exist,
    /// The rest.
    None,
}
