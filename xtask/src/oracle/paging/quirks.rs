// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Bochs does otherwise than the manual, so exactly that a case can be run by it.

use std::convert::Infallible;

use hvkit_shadow_paging::guest::{
    Access, Cause, ErrorCode, GuestFault, GuestTranslation, KeyRights, Kind, PagingMode, Privilege,
    Refusal, probe, translate,
};
use lab_cases::paging::{Case, Who};

use crate::oracle::memory::Memory;

/// Whether a quirk is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quirk {
    /// By the manual.
    Manual,
    /// By the model.
    Model,
}

/// Which quirks are followed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quirks {
    /// EFLAGS.AC suspends SMAP for implicit supervisor accesses too.
    pub(super) implicit_ac: Quirk,
    /// PKRU is applied by the mode of the access: for user-mode accesses AD and WD, for supervisor-mode
    /// ones WD alone (with CR0.WP), to user- and supervisor-mode addresses alike.
    pub(super) keys_by_access: Quirk,
}

impl Quirks {
    /// The manual.
    pub(super) const NONE: Self = Self {
        implicit_ac: Quirk::Manual,
        keys_by_access: Quirk::Manual,
    };

    /// The privilege of an implicit access.
    pub(super) fn implicit(self, who: Who) -> Privilege {
        match (self.implicit_ac, who) {
            (Quirk::Model, Who::SupervisorAc) => Privilege::SupervisorAc,
            _ => Privilege::Implicit,
        }
    }

    /// Our `translate`, or what the model makes of it.
    pub(super) fn translate(
        self,
        mode: &PagingMode,
        case: &Case,
        memory: &Memory,
        linear: u64,
        access: Access,
    ) -> Result<GuestTranslation, GuestFault<Infallible>> {
        if self.keys_by_access == Quirk::Manual {
            return translate(mode, memory, linear, access);
        }
        let without_keys = mode.with_keys(0, 0);
        let key = mode
            .walk(memory, linear)
            .and_then(|walk| Some(walk.outcome.ok()?.attributes.key()));
        let refused = key.is_some_and(|key| refuses(mode, case, key, access));
        match probe(&without_keys, memory, linear, access) {
            Ok(_) if refused => Err(GuestFault::Page {
                linear,
                code: describe(access),
                cause: Cause::Refused(Refusal::Key {
                    key: key.unwrap_or(0),
                }),
            }),
            Err(GuestFault::Page {
                linear,
                code,
                cause: cause @ Cause::Refused(_),
            }) if refused => Err(GuestFault::Page {
                linear,
                code: code | ErrorCode::KEY,
                cause,
            }),
            _ => translate(&without_keys, memory, linear, access),
        }
    }
}

/// Whether the model's PKRU refuses `access` to an address with `key`.
fn refuses(mode: &PagingMode, case: &Case, key: u8, access: Access) -> bool {
    let Some(KeyRights(pkru)) = mode.control().user_keys else {
        return false;
    };
    let (access_disabled, write_disabled) =
        (pkru >> (2 * key) & 1 != 0, pkru >> (2 * key + 1) & 1 != 0);
    let writes = access.kind.writes();
    match (access.kind, access.privilege) {
        (Kind::Fetch, _) => false,
        (_, Privilege::User) => access_disabled || write_disabled && writes,
        _ => write_disabled && writes && case.cr0 >> 16 & 1 != 0,
    }
}

/// The error code of a data access that only a key refuses.
fn describe(access: Access) -> ErrorCode {
    let mut code = ErrorCode::PRESENT | ErrorCode::KEY;
    if access.kind.writes() {
        code |= ErrorCode::WRITE;
    }
    if access.kind.shadow_stack() {
        code |= ErrorCode::SHADOW_STACK;
    }
    if access.privilege == Privilege::User {
        code |= ErrorCode::USER;
    }
    code
}
