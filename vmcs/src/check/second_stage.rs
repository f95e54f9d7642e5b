// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on VM-execution control fields: EPT and what needs it.
//!
//! EPTP bit 7 (supervisor shadow-stack control) is among the reserved bits in this section of the manual, and a control
//! in "Extended-Page-Table Pointer (EPTP)": here it is allowed where the processor reports the feature.

use super::{
    context::{Controls, Run},
    execution::{PAGE, combination},
    memory::PhysicalMemory,
    report::{Expected, Sink},
    rule::{Area, declare},
};
use crate::{
    controls::{Secondary, Tertiary},
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Controls, "VM-Execution Control Fields";
    PML = "execution.pml.address", [PML_ADDRESS],
        "If \"enable PML\" is 1, the PML address must be page-aligned and within the physical-address width.";
    SPP = "execution.spp-table.address", [SPP_TABLE_POINTER],
        "If \"sub-page write permissions for EPT\" is 1, the SPPTP must be page-aligned and within the physical-address width.";
    EPTP_LIST = "execution.eptp-list.address", [EPTP_LIST_ADDRESS],
        "If \"EPTP switching\" is 1, the EPTP-list address must be page-aligned and within the physical-address width.";
    VE_INFORMATION = "execution.ve-information.address", [VE_INFORMATION_ADDRESS],
        "If \"EPT-violation #VE\" is 1, the virtualization-exception information address must be page-aligned and within the physical-address width.";
    EPTP_MEMORY_TYPE = "execution.eptp.memory-type", [EPT_POINTER],
        "If \"enable EPT\" is 1, the EPT memory type must be one that IA32_VMX_EPT_VPID_CAP reports.";
    EPTP_WALK = "execution.eptp.walk-length", [EPT_POINTER],
        "If \"enable EPT\" is 1, bits 5:3 of the EPTP must be 1 less than a page-walk length that IA32_VMX_EPT_VPID_CAP reports.";
    EPTP_ACCESSED_DIRTY = "execution.eptp.accessed-dirty", [EPT_POINTER],
        "If \"enable EPT\" is 1 and the processor has no accessed and dirty flags for EPT, bit 6 of the EPTP must be 0.";
    EPTP_RESERVED = "execution.eptp.reserved", [EPT_POINTER],
        "If \"enable EPT\" is 1, reserved bits 11:7 of the EPTP must be 0; bit 7 is not reserved where the processor supports supervisor shadow-stack control.";
    EPTP_ADDRESS = "execution.eptp.address", [EPT_POINTER],
        "If \"enable EPT\" is 1, the address in the EPTP must be within the physical-address width.";
    NEEDS_EPT = "execution.secondary.ept", [SECONDARY_CONTROLS],
        "PML, unrestricted guest, mode-based execute control, sub-page write permissions and guest-physical addresses for Intel PT each need \"enable EPT\".";
    TERTIARY_NEEDS_EPT = "execution.tertiary.ept", [TERTIARY_CONTROLS, SECONDARY_CONTROLS],
        "HLAT, EPT paging-write control, guest-paging verification and guest-physical addresses for PEBS each need \"enable EPT\".";
    FUNCTIONS = "execution.vm-functions.reserved", [VM_FUNCTION_CONTROLS],
        "If \"enable VM functions\" is 1, reserved bits in the VM-function controls must be clear.";
    EPTP_SWITCHING = "execution.eptp-switching.ept", [VM_FUNCTION_CONTROLS, SECONDARY_CONTROLS],
        "If \"EPTP switching\" is 1, \"enable EPT\" must be 1.";
    HLATP_RESERVED = "execution.hlatp.reserved", [HLAT_POINTER],
        "If \"enable HLAT\" is 1, bits 2:0 and 11:5 of the HLATP must be 0.";
    HLATP_ADDRESS = "execution.hlatp.address", [HLAT_POINTER],
        "If \"enable HLAT\" is 1, the address in the HLATP must be within the physical-address width.";
}

#[inline(always)]
pub(super) fn secondary<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let on = |control| c.secondary.contains(control);
    let enabled = on(Secondary::ENABLE_EPT);
    if enabled {
        eptp(run);
    }
    let needing = Secondary::ENABLE_PML
        | Secondary::UNRESTRICTED_GUEST
        | Secondary::MODE_BASED_EXECUTE_EPT
        | Secondary::SUB_PAGE_WRITE_EPT
        | Secondary::PT_GUEST_PHYSICAL;
    let holds = enabled || !c.secondary.intersects(needing);
    combination!(run, holds, NEEDS_EPT, SECONDARY_CONTROLS, c.secondary);
    if on(Secondary::ENABLE_PML) {
        run.address(PAGE, &PML, f::PML_ADDRESS);
    }
    if on(Secondary::SUB_PAGE_WRITE_EPT) {
        run.address(PAGE, &SPP, f::SPP_TABLE_POINTER);
    }
    if on(Secondary::EPT_VIOLATION_VE) {
        run.address(PAGE, &VE_INFORMATION, f::VE_INFORMATION_ADDRESS);
    }
    if on(Secondary::ENABLE_VM_FUNCTIONS) {
        let functions = run.get(f::VM_FUNCTION_CONTROLS);
        let at = (f::VM_FUNCTION_CONTROLS, functions);
        run.only_bits(run.cpu.vmx.vm_functions.may_be_one, &FUNCTIONS, at);
        if functions & 1 != 0 {
            run.require(enabled, &EPTP_SWITCHING, at, Expected::AsTheRuleSays);
            run.address(PAGE, &EPTP_LIST, f::EPTP_LIST_ADDRESS);
        }
    }
}

#[inline(always)]
fn eptp<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, S, M, K>) {
    let eptp = run.get(f::EPT_POINTER);
    let (at, cap) = ((f::EPT_POINTER, eptp), run.cpu.vmx.ept_vpid);
    let says = Expected::AsTheRuleSays;
    run.require(
        cap.supports_memory_type(eptp & 7),
        &EPTP_MEMORY_TYPE,
        at,
        says,
    );
    run.require(
        cap.supports_walk_length((eptp >> 3 & 7).wrapping_add(1)),
        &EPTP_WALK,
        at,
        says,
    );
    run.require(
        cap.has_accessed_dirty() || eptp & 1 << 6 == 0,
        &EPTP_ACCESSED_DIRTY,
        at,
        says,
    );
    let reserved = if cap.has_supervisor_shadow_stack() {
        0xf00
    } else {
        0xf80
    };
    run.only_bits(!reserved, &EPTP_RESERVED, at);
    run.only_bits(!run.cpu.beyond_physical(), &EPTP_ADDRESS, at);
}

#[inline(always)]
pub(super) fn tertiary<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let needing = Tertiary::ENABLE_HLAT
        | Tertiary::EPT_PAGING_WRITE
        | Tertiary::GUEST_PAGING_VERIFICATION
        | Tertiary::PEBS_GUEST_PHYSICAL;
    let holds = c.secondary.contains(Secondary::ENABLE_EPT) || !c.tertiary.intersects(needing);
    combination!(
        run,
        holds,
        TERTIARY_NEEDS_EPT,
        TERTIARY_CONTROLS,
        c.tertiary
    );
    if c.tertiary.contains(Tertiary::ENABLE_HLAT) {
        let hlatp = run.get(f::HLAT_POINTER);
        run.only_bits(!0xfe7, &HLATP_RESERVED, (f::HLAT_POINTER, hlatp));
        run.only_bits(
            !run.cpu.beyond_physical(),
            &HLATP_ADDRESS,
            (f::HLAT_POINTER, hlatp),
        );
    }
}
