// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on the guest-state area, a file per section of the manual.

pub(super) mod link;
pub(super) mod pdpte;
pub(super) mod registers;
pub(super) mod segments;
pub(super) mod state;
pub(super) mod system_segments;
pub(super) mod tables;

use super::{
    context::{Controls, Run},
    memory::PhysicalMemory,
    report::Sink,
};
use crate::{fields as f, store::Fields};

/// What several sections look at.
pub(super) struct Guest {
    pub(super) cr0: u64,
    pub(super) cr4: u64,
    pub(super) rflags: u64,
    pub(super) cs_rights: u64,
    pub(super) ss_rights: u64,
    pub(super) debugctl: u64,
    pub(super) interruptibility: u64,
}

impl Guest {
    /// CR0.PE.
    #[inline(always)]
    pub(super) fn protected(&self) -> bool {
        self.cr0 & 1 != 0
    }

    /// RFLAGS.VM: the guest will be virtual-8086.
    #[inline(always)]
    pub(super) fn virtual_8086(&self) -> bool {
        self.rflags & 1 << 17 != 0
    }

    /// CR4.FRED: the guest will use FRED transitions.
    #[inline(always)]
    pub(super) fn fred(&self) -> bool {
        self.cr4 & 1 << 32 != 0
    }

    /// The L bit of CS.
    #[inline(always)]
    pub(super) fn cs_long(&self) -> bool {
        self.cs_rights & 1 << 13 != 0
    }

    /// The DPL of SS, which will be the CPL.
    #[inline(always)]
    pub(super) fn ss_dpl(&self) -> u64 {
        self.ss_rights >> 5 & 3
    }
}

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let guest = Guest {
        cr0: c.guest_cr0,
        cr4: run.get(f::GUEST_CR4),
        rflags: run.get(f::GUEST_RFLAGS),
        cs_rights: run.get(f::GUEST_CS_ACCESS_RIGHTS),
        ss_rights: run.get(f::GUEST_SS_ACCESS_RIGHTS),
        debugctl: run.get(f::GUEST_DEBUGCTL),
        interruptibility: run.get(f::GUEST_INTERRUPTIBILITY),
    };
    registers::check(run, c, &guest);
    segments::check(run, c, &guest);
    system_segments::check(run, c);
    tables::check(run, c, &guest);
    state::check(run, c, &guest);
    link::check(run, c);
    pdpte::check(run, c, &guest);
}
