// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on guest descriptor-table registers, RIP, RFLAGS and SSP.
//!
//! That bits 63:32 of SSP must be 0 outside 64-bit mode is not in the list of checks; "Loading Guest RIP, RSP, RFLAGS, and
//! SSP" says that they are checked.

use super::Guest;
use crate::{
    check::{
        context::{Controls, Run},
        memory::PhysicalMemory,
        report::{Expected, Sink},
        rule::{Area, declare},
    },
    controls::Entry,
    event::EventKind,
    fields as f,
    store::Fields,
};

declare! { TABLE_RULES: Area::Guest(0), "Checks on Guest Descriptor-Table Registers";
    BASE = "guest.descriptor-table.base", [GUEST_GDTR_BASE, GUEST_IDTR_BASE],
        "The bases of GDTR and IDTR must be canonical.";
    LIMIT = "guest.descriptor-table.limit", [GUEST_GDTR_LIMIT, GUEST_IDTR_LIMIT],
        "Bits 31:16 of the limits of GDTR and IDTR must be 0.";
}

declare! { POINTER_RULES: Area::Guest(0), "Checks on Guest RIP, RFLAGS, and SSP";
    RIP_32 = "guest.rip.high", [GUEST_RIP, GUEST_CS_ACCESS_RIGHTS, ENTRY_CONTROLS],
        "Outside 64-bit mode (\"IA-32e mode guest\" or the L bit of CS is 0), bits 63:32 of RIP must be 0.";
    RIP_64 = "guest.rip.canonical", [GUEST_RIP, GUEST_CS_ACCESS_RIGHTS, ENTRY_CONTROLS],
        "In 64-bit mode, bits 63:N of RIP must be equal, N being the number of linear-address bits.";
    FLAGS_RESERVED = "guest.rflags.reserved", [GUEST_RFLAGS],
        "Bits 63:22, 15, 5 and 3 of RFLAGS must be 0, and bit 1 must be 1.";
    FLAGS_VM = "guest.rflags.vm", [GUEST_RFLAGS, ENTRY_CONTROLS, GUEST_CR0],
        "RFLAGS.VM must be 0 if \"IA-32e mode guest\" is 1 or CR0.PE is 0.";
    FLAGS_IF = "guest.rflags.if", [GUEST_RFLAGS, INJECTED_EVENT],
        "RFLAGS.IF must be 1 if an external interrupt is injected.";
    SSP_ALIGNED = "guest.ssp.aligned", [GUEST_SSP],
        "If \"load CET state\" is 1, bits 1:0 of SSP must be 0.";
    SSP_32 = "guest.ssp.high", [GUEST_SSP, GUEST_CS_ACCESS_RIGHTS, ENTRY_CONTROLS],
        "If \"load CET state\" is 1, bits 63:32 of SSP must be 0 outside 64-bit mode.";
    SSP_CANONICAL = "guest.ssp.canonical", [GUEST_SSP],
        "If \"load CET state\" is 1, bits 63:N of SSP must be equal, N being the number of linear-address bits.";
}

const RFLAGS: u64 = 0x003f_7fd7;

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    macro_rules! table {
        ($base:ident, $limit:ident) => {
            let base = run.get(f::$base);
            run.canonical(&BASE, (f::$base, base));
            let limit = run.get(f::$limit);
            run.only_bits(0xffff, &LIMIT, (f::$limit, limit));
        };
    }
    table!(GUEST_GDTR_BASE, GUEST_GDTR_LIMIT);
    table!(GUEST_IDTR_BASE, GUEST_IDTR_LIMIT);

    let rip = run.get(f::GUEST_RIP);
    if c.ia32e_guest() && guest.cs_long() {
        let bits = run.cpu.linear_address_bits;
        let holds = run.cpu.is_nearly_canonical(rip);
        run.require(
            holds,
            &RIP_64,
            (f::GUEST_RIP, rip),
            Expected::Canonical { bits },
        );
    } else {
        run.only_bits(0xffff_ffff, &RIP_32, (f::GUEST_RIP, rip));
    }

    let (flags, says) = ((f::GUEST_RFLAGS, guest.rflags), Expected::AsTheRuleSays);
    let holds = guest.rflags & !RFLAGS == 0 && guest.rflags & 2 != 0;
    let expected = Expected::Bits {
        must_be_one: 2,
        may_be_one: RFLAGS,
    };
    run.require(holds, &FLAGS_RESERVED, flags, expected);
    let no_vm = c.ia32e_guest() || !guest.protected();
    run.require(!(guest.virtual_8086() && no_vm), &FLAGS_VM, flags, says);
    let needs_if = c.event.is_a(EventKind::EXTERNAL_INTERRUPT);
    run.require(
        !needs_if || guest.rflags & 1 << 9 != 0,
        &FLAGS_IF,
        flags,
        says,
    );

    if c.entry.contains(Entry::LOAD_CET) {
        let ssp = (f::GUEST_SSP, run.get(f::GUEST_SSP));
        run.only_bits(!3, &SSP_ALIGNED, ssp);
        if c.ia32e_guest() && guest.cs_long() {
            let bits = run.cpu.linear_address_bits;
            let holds = run.cpu.is_nearly_canonical(ssp.1);
            run.require(holds, &SSP_CANONICAL, ssp, Expected::Canonical { bits });
        } else {
            run.only_bits(0xffff_ffff, &SSP_32, ssp);
        }
    }
}
