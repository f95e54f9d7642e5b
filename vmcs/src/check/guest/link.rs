// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on the VMCS link pointer. Breaking one gives qualification 4.

use crate::{
    check::{
        CurrentVmcs,
        context::{Controls, Run},
        memory::PhysicalMemory,
        report::{Expected, Place, Sink},
        rule::{Area, declare},
    },
    controls::{Entry, Secondary},
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Guest(4), "Checks on Guest Non-Register State";
    ADDRESS = "guest.link-pointer.address", [VMCS_LINK_POINTER],
        "Unless all ones, the VMCS link pointer must be page-aligned and within the physical-address width.";
    REVISION = "guest.link-pointer.revision", [VMCS_LINK_POINTER, SECONDARY_CONTROLS],
        "The first 4 bytes of the VMCS it names must hold the processor's revision identifier, and in bit 31 the setting of \"VMCS shadowing\".";
    CURRENT = "guest.link-pointer.current", [VMCS_LINK_POINTER],
        "Outside SMM, and for an entry to SMM, it must not be the current VMCS pointer.";
    EXECUTIVE = "guest.link-pointer.executive", [VMCS_LINK_POINTER, EXECUTIVE_VMCS_POINTER, ENTRY_CONTROLS],
        "For an entry that leaves SMM, it must differ from the executive-VMCS pointer.";
}

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let link = run.get(f::VMCS_LINK_POINTER);
    if link != u64::MAX {
        linked(run, c, link);
    }
}

#[inline(never)]
fn linked<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    link: u64,
) {
    let at = (f::VMCS_LINK_POINTER, link);
    let is_address = link & (run.cpu.beyond_physical() | 0xfff) == 0;
    run.address(0x1000, &ADDRESS, f::VMCS_LINK_POINTER);
    if is_address && let Some(bytes) = run.read_memory(&REVISION, link) {
        let have = u64::from(u32::from_le_bytes(bytes));
        let shadow = u64::from(c.secondary.contains(Secondary::VMCS_SHADOWING)) << 31;
        let want = u64::from(run.cpu.vmx.basic.revision()) | shadow;
        if have != want {
            let place = Place::Memory { address: link };
            run.broken(&REVISION, place, have, Expected::Exactly(want));
        }
    }
    if !run.now.smm || c.entry.contains(Entry::ENTRY_TO_SMM) {
        let itself = run.now.current_vmcs == CurrentVmcs::At(link);
        run.require(!itself, &CURRENT, at, Expected::AnyBut(link));
    } else {
        let executive = run.get(f::EXECUTIVE_VMCS_POINTER);
        run.require(
            link != executive,
            &EXECUTIVE,
            at,
            Expected::AnyBut(executive),
        );
    }
}
