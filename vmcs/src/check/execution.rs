// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on VM-execution control fields.

use super::{
    context::{Controls, Run},
    memory::PhysicalMemory,
    report::{Expected, Place, Sink},
    rule::{Area, Rule, declare},
    second_stage,
};
use crate::{
    controls::{Allowed, Entry, ExitPrimary, PinBased, Primary, Secondary, Tertiary},
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Controls, "VM-Execution Control Fields";
    PIN = "execution.pin-based.reserved", [PIN_BASED_CONTROLS],
        "Reserved bits in the pin-based VM-execution controls must be set properly.";
    PRIMARY = "execution.primary.reserved", [PRIMARY_CONTROLS],
        "Reserved bits in the primary processor-based VM-execution controls must be set properly.";
    SECONDARY = "execution.secondary.reserved", [SECONDARY_CONTROLS],
        "If they are activated, reserved bits in the secondary processor-based VM-execution controls must be clear.";
    TERTIARY = "execution.tertiary.reserved", [TERTIARY_CONTROLS],
        "If they are activated, reserved bits in the tertiary processor-based VM-execution controls must be clear.";
    CR3_TARGETS = "execution.cr3-target-count", [CR3_TARGET_COUNT],
        "The CR3-target count must not exceed what IA32_VMX_MISC reports.";
    IO_A = "execution.io-bitmap-a.address", [IO_BITMAP_A],
        "If \"use I/O bitmaps\" is 1, the address of I/O bitmap A must be page-aligned and within the physical-address width.";
    IO_B = "execution.io-bitmap-b.address", [IO_BITMAP_B],
        "If \"use I/O bitmaps\" is 1, the address of I/O bitmap B must be page-aligned and within the physical-address width.";
    MSR_BITMAPS = "execution.msr-bitmap.address", [MSR_BITMAP],
        "If \"use MSR bitmaps\" is 1, the MSR-bitmap address must be page-aligned and within the physical-address width.";
    VIRTUAL_APIC = "execution.virtual-apic.address", [VIRTUAL_APIC_ADDRESS],
        "If \"use TPR shadow\" is 1, the virtual-APIC address must be page-aligned and within the physical-address width.";
    APIC_ACCESS = "execution.apic-access.address", [APIC_ACCESS_ADDRESS],
        "If \"virtualize APIC accesses\" is 1, the APIC-access address must be page-aligned and within the physical-address width.";
    VMREAD = "execution.vmread-bitmap.address", [VMREAD_BITMAP],
        "If \"VMCS shadowing\" is 1, the VMREAD-bitmap address must be page-aligned and within the physical-address width.";
    VMWRITE = "execution.vmwrite-bitmap.address", [VMWRITE_BITMAP],
        "If \"VMCS shadowing\" is 1, the VMWRITE-bitmap address must be page-aligned and within the physical-address width.";
    PASID_LOW = "execution.pasid-directory-low.address", [LOW_PASID_DIRECTORY],
        "If \"PASID translation\" is 1, the low PASID directory address must be page-aligned and within the physical-address width.";
    PASID_HIGH = "execution.pasid-directory-high.address", [HIGH_PASID_DIRECTORY],
        "If \"PASID translation\" is 1, the high PASID directory address must be page-aligned and within the physical-address width.";
    TPR_RESERVED = "execution.tpr-threshold.reserved", [TPR_THRESHOLD, SECONDARY_CONTROLS],
        "If \"use TPR shadow\" is 1 and \"virtual-interrupt delivery\" is 0, bits 31:4 of the TPR threshold must be 0.";
    TPR_ABOVE_VTPR = "execution.tpr-threshold.vtpr", [TPR_THRESHOLD, VIRTUAL_APIC_ADDRESS],
        "If \"use TPR shadow\" is 1 and neither APIC accesses are virtualized nor virtual interrupts delivered, bits 3:0 of the TPR threshold must not exceed bits 7:4 of VTPR.";
    VIRTUAL_NMIS = "execution.virtual-nmis.nmi-exiting", [PIN_BASED_CONTROLS],
        "If \"NMI exiting\" is 0, \"virtual NMIs\" must be 0.";
    NMI_WINDOW = "execution.nmi-window.virtual-nmis", [PRIMARY_CONTROLS, PIN_BASED_CONTROLS],
        "If \"virtual NMIs\" is 0, \"NMI-window exiting\" must be 0.";
    NEEDS_TPR_SHADOW = "execution.apic-virtualization.tpr-shadow", [SECONDARY_CONTROLS, PRIMARY_CONTROLS],
        "If \"use TPR shadow\" is 0, \"virtualize x2APIC mode\", \"APIC-register virtualization\" and \"virtual-interrupt delivery\" must be 0.";
    IPI_NEEDS_TPR_SHADOW = "execution.ipi-virtualization.tpr-shadow", [TERTIARY_CONTROLS, PRIMARY_CONTROLS],
        "If \"use TPR shadow\" is 0, \"IPI virtualization\" must be 0.";
    X2APIC = "execution.x2apic.apic-accesses", [SECONDARY_CONTROLS],
        "If \"virtualize x2APIC mode\" is 1, \"virtualize APIC accesses\" must be 0.";
    VID_NEEDS_EXITING = "execution.virtual-interrupts.external-interrupt-exiting", [PIN_BASED_CONTROLS, SECONDARY_CONTROLS],
        "If \"virtual-interrupt delivery\" is 1, \"external-interrupt exiting\" must be 1.";
    POSTED_NEEDS_VID = "execution.posted-interrupts.virtual-interrupts", [SECONDARY_CONTROLS, PIN_BASED_CONTROLS, PRIMARY_CONTROLS],
        "If \"process posted interrupts\" is 1, \"virtual-interrupt delivery\" must be 1.";
    POSTED_NEEDS_ACK = "execution.posted-interrupts.acknowledge", [PRIMARY_EXIT_CONTROLS, PIN_BASED_CONTROLS],
        "If \"process posted interrupts\" is 1, \"acknowledge interrupt on exit\" must be 1.";
    POSTED_VECTOR = "execution.posted-interrupts.vector", [POSTED_INTERRUPT_VECTOR],
        "If \"process posted interrupts\" is 1, the notification vector must be at most 255.";
    POSTED_DESCRIPTOR = "execution.posted-interrupts.descriptor", [POSTED_INTERRUPT_DESCRIPTOR],
        "If \"process posted interrupts\" is 1, the descriptor address must be 64-byte aligned and within the physical-address width.";
    PID_TABLE = "execution.pid-pointer-table.address", [PID_POINTER_TABLE],
        "If \"IPI virtualization\" is 1, the PID-pointer table address must be 8-byte aligned and within the physical-address width.";
    PID_TABLE_END = "execution.pid-pointer-table.end", [PID_POINTER_TABLE, LAST_PID_POINTER_INDEX],
        "If \"IPI virtualization\" is 1, the last entry of the PID-pointer table must lie within the physical-address width.";
    VPID_ZERO = "execution.vpid.not-zero", [VPID],
        "If \"enable VPID\" is 1, the VPID must not be 0000H.";
    RTIT_TRACING = "execution.rtit.tracing", [ENTRY_CONTROLS],
        "If Intel PT is enabled at the time of VM entry, \"load IA32_RTIT_CTL\" must be 0.";
    PT_LOAD = "execution.pt-guest-physical.load-rtit", [ENTRY_CONTROLS, SECONDARY_CONTROLS],
        "If \"Intel PT uses guest physical addresses\" is 1, the \"load IA32_RTIT_CTL\" VM-entry control must be 1.";
    PT_CLEAR = "execution.pt-guest-physical.clear-rtit", [PRIMARY_EXIT_CONTROLS, SECONDARY_CONTROLS],
        "If \"Intel PT uses guest physical addresses\" is 1, the \"clear IA32_RTIT_CTL\" VM-exit control must be 1.";
    TSC_SCALING = "execution.tsc-multiplier.not-zero", [TSC_MULTIPLIER],
        "If \"use TSC scaling\" is 1, the TSC multiplier must not be zero.";
    TIMER_NEEDS_VID = "execution.apic-timer.virtual-interrupts", [SECONDARY_CONTROLS, TERTIARY_CONTROLS],
        "If \"APIC-timer virtualization\" is 1, \"virtual-interrupt delivery\" must be 1.";
    TIMER_RDTSC = "execution.apic-timer.rdtsc-exiting", [PRIMARY_CONTROLS, TERTIARY_CONTROLS],
        "If \"APIC-timer virtualization\" is 1, \"RDTSC exiting\" must be 0.";
    TIMER_VECTOR = "execution.apic-timer.vector", [VIRTUAL_TIMER_VECTOR],
        "If \"APIC-timer virtualization\" is 1, the virtual timer vector must be at most 255.";
}

pub(super) const PAGE: u64 = 0x1000;

/// Reports a combination of controls: the rule's first field is at fault.
macro_rules! combination {
    ($run:ident, $holds:expr, $rule:expr, $field:ident, $value:expr) => {
        $run.require(
            $holds,
            &$rule,
            (f::$field, u64::from($value.bits())),
            Expected::AsTheRuleSays,
        )
    };
}
pub(super) use combination;

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    reserved(run, c);
    let targets = run.get(f::CR3_TARGET_COUNT);
    let most = u64::from(run.cpu.vmx.misc.cr3_targets());
    let expected = Expected::AtMost(most);
    run.require(
        targets <= most,
        &CR3_TARGETS,
        (f::CR3_TARGET_COUNT, targets),
        expected,
    );

    if c.primary.contains(Primary::IO_BITMAPS) {
        run.address(PAGE, &IO_A, f::IO_BITMAP_A);
        run.address(PAGE, &IO_B, f::IO_BITMAP_B);
    }
    if c.primary.contains(Primary::MSR_BITMAPS) {
        run.address(PAGE, &MSR_BITMAPS, f::MSR_BITMAP);
    }
    nmis(run, c);
    apic(run, c);
    // Most entries use none of the rest; one test skips it.
    if !c.secondary.is_empty() {
        secondary(run, c);
        second_stage::secondary(run, c);
    }
    if !c.tertiary.is_empty() {
        tertiary(run, c);
        second_stage::tertiary(run, c);
    }
    if run.now.tracing {
        let may = !u64::from(Entry::LOAD_RTIT_CTL.bits());
        run.only_bits(
            may,
            &RTIT_TRACING,
            (f::ENTRY_CONTROLS, c.entry.bits().into()),
        );
    }
}

#[inline(always)]
fn reserved<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let bits = |allowed: Allowed| Expected::Bits {
        must_be_one: allowed.must_be_one,
        may_be_one: allowed.may_be_one,
    };
    let vmx = &run.cpu.vmx;
    let (value, allowed) = (u64::from(c.pin.bits()), vmx.pin_based);
    run.require(
        allowed.accepts(value),
        &PIN,
        (f::PIN_BASED_CONTROLS, value),
        bits(allowed),
    );
    let (value, allowed) = (u64::from(c.primary.bits()), vmx.primary);
    run.require(
        allowed.accepts(value),
        &PRIMARY,
        (f::PRIMARY_CONTROLS, value),
        bits(allowed),
    );
    // Without activation these are 0, which passes: no reserved bit of theirs must be 1.
    let (value, may) = (u64::from(c.secondary.bits()), vmx.secondary.may_be_one);
    run.only_bits(may, &SECONDARY, (f::SECONDARY_CONTROLS, value));
    run.only_bits(
        vmx.tertiary.may_be_one,
        &TERTIARY,
        (f::TERTIARY_CONTROLS, c.tertiary.bits()),
    );
}

#[inline(always)]
fn nmis<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, S, M, K>, c: &Controls) {
    let (nmi, virtual_nmis) = (
        c.pin.contains(PinBased::NMI_EXITING),
        c.pin.contains(PinBased::VIRTUAL_NMIS),
    );
    let holds = nmi || !virtual_nmis;
    let at = (f::PIN_BASED_CONTROLS, u64::from(c.pin.bits()));
    run.require(holds, &VIRTUAL_NMIS, at, Expected::AsTheRuleSays);
    let holds = virtual_nmis || !c.primary.contains(Primary::NMI_WINDOW_EXITING);
    let at = (f::PRIMARY_CONTROLS, u64::from(c.primary.bits()));
    run.require(holds, &NMI_WINDOW, at, Expected::AsTheRuleSays);
}

#[inline(always)]
fn apic<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, S, M, K>, c: &Controls) {
    let virtual_interrupts = c.secondary.contains(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
    let needing = Secondary::VIRTUALIZE_X2APIC_MODE
        | Secondary::APIC_REGISTER_VIRTUALIZATION
        | Secondary::VIRTUAL_INTERRUPT_DELIVERY;
    if c.primary.contains(Primary::TPR_SHADOW) {
        run.address(PAGE, &VIRTUAL_APIC, f::VIRTUAL_APIC_ADDRESS);
        if !virtual_interrupts {
            let threshold = run.get(f::TPR_THRESHOLD);
            run.only_bits(0xf, &TPR_RESERVED, (f::TPR_THRESHOLD, threshold));
            if !c.secondary.contains(Secondary::VIRTUALIZE_APIC_ACCESSES) {
                vtpr(run, threshold);
            }
        }
    } else {
        let holds = !c.secondary.intersects(needing);
        combination!(
            run,
            holds,
            NEEDS_TPR_SHADOW,
            SECONDARY_CONTROLS,
            c.secondary
        );
        let holds = !c.tertiary.contains(Tertiary::IPI_VIRTUALIZATION);
        combination!(
            run,
            holds,
            IPI_NEEDS_TPR_SHADOW,
            TERTIARY_CONTROLS,
            c.tertiary
        );
    }
    if c.pin.contains(PinBased::POSTED_INTERRUPTS) {
        combination!(
            run,
            virtual_interrupts,
            POSTED_NEEDS_VID,
            SECONDARY_CONTROLS,
            c.secondary
        );
        let acknowledges = c.exit.contains(ExitPrimary::ACKNOWLEDGE_INTERRUPT);
        combination!(
            run,
            acknowledges,
            POSTED_NEEDS_ACK,
            PRIMARY_EXIT_CONTROLS,
            c.exit
        );
        let vector = run.get(f::POSTED_INTERRUPT_VECTOR);
        run.only_bits(0xff, &POSTED_VECTOR, (f::POSTED_INTERRUPT_VECTOR, vector));
        run.address(64, &POSTED_DESCRIPTOR, f::POSTED_INTERRUPT_DESCRIPTOR);
    }
}

/// VTPR is at offset 80H of the virtual-APIC page. SDM Vol. 3C, "Virtualized APIC Registers". A threshold of 0 passes whatever VTPR is.
#[inline(always)]
fn vtpr<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    threshold: u64,
) {
    if threshold & 0xf == 0 {
        return;
    }
    let address = run.get(f::VIRTUAL_APIC_ADDRESS).wrapping_add(0x80);
    if let Some([vtpr]) = run.read_memory(&TPR_ABOVE_VTPR, address) {
        let class = u64::from(vtpr >> 4);
        let at = (f::TPR_THRESHOLD, threshold);
        run.require(
            threshold & 0xf <= class,
            &TPR_ABOVE_VTPR,
            at,
            Expected::AtMost(class),
        );
    }
}

#[inline(always)]
fn secondary<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let on = |control| c.secondary.contains(control);
    if on(Secondary::VIRTUALIZE_APIC_ACCESSES) {
        run.address(PAGE, &APIC_ACCESS, f::APIC_ACCESS_ADDRESS);
        let holds = !on(Secondary::VIRTUALIZE_X2APIC_MODE);
        combination!(run, holds, X2APIC, SECONDARY_CONTROLS, c.secondary);
    }
    if on(Secondary::VIRTUAL_INTERRUPT_DELIVERY) {
        let holds = c.pin.contains(PinBased::EXTERNAL_INTERRUPT_EXITING);
        combination!(run, holds, VID_NEEDS_EXITING, PIN_BASED_CONTROLS, c.pin);
    }
    if on(Secondary::ENABLE_VPID) {
        let vpid = run.get(f::VPID);
        run.require(vpid != 0, &VPID_ZERO, (f::VPID, vpid), Expected::AnyBut(0));
    }
    if on(Secondary::VMCS_SHADOWING) {
        run.address(PAGE, &VMREAD, f::VMREAD_BITMAP);
        run.address(PAGE, &VMWRITE, f::VMWRITE_BITMAP);
    }
    if on(Secondary::PASID_TRANSLATION) {
        run.address(PAGE, &PASID_LOW, f::LOW_PASID_DIRECTORY);
        run.address(PAGE, &PASID_HIGH, f::HIGH_PASID_DIRECTORY);
    }
    if on(Secondary::TSC_SCALING) {
        let multiplier = run.get(f::TSC_MULTIPLIER);
        let at = (f::TSC_MULTIPLIER, multiplier);
        run.require(multiplier != 0, &TSC_SCALING, at, Expected::AnyBut(0));
    }
    if on(Secondary::PT_GUEST_PHYSICAL) {
        let holds = c.entry.contains(Entry::LOAD_RTIT_CTL);
        combination!(run, holds, PT_LOAD, ENTRY_CONTROLS, c.entry);
        let holds = c.exit.contains(ExitPrimary::CLEAR_RTIT_CTL);
        combination!(run, holds, PT_CLEAR, PRIMARY_EXIT_CONTROLS, c.exit);
    }
}

#[inline(always)]
fn tertiary<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let on = |control| c.tertiary.contains(control);
    if on(Tertiary::IPI_VIRTUALIZATION) {
        run.address(8, &PID_TABLE, f::PID_POINTER_TABLE);
        let last = run.get(f::LAST_PID_POINTER_INDEX);
        area_end(run, &PID_TABLE_END, f::PID_POINTER_TABLE, last << 3);
    }
    if on(Tertiary::APIC_TIMER_VIRTUALIZATION) {
        let holds = c.secondary.contains(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
        combination!(run, holds, TIMER_NEEDS_VID, SECONDARY_CONTROLS, c.secondary);
        let holds = !c.primary.contains(Primary::RDTSC_EXITING);
        combination!(run, holds, TIMER_RDTSC, PRIMARY_CONTROLS, c.primary);
        let vector = run.get(f::VIRTUAL_TIMER_VECTOR);
        run.only_bits(0xff, &TIMER_VECTOR, (f::VIRTUAL_TIMER_VECTOR, vector));
    }
}

/// Requires that the byte `last` after the address in `field` lies within the physical-address width; the sum is taken
/// with more bits than the width has.
#[inline(always)]
pub(super) fn area_end<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    rule: &'static Rule,
    field: crate::Field<crate::field::W64, crate::field::ReadWrite>,
    last: u64,
) {
    let start = run.get(field);
    let end = start.checked_add(last);
    if end.is_none_or(|end| end & run.cpu.beyond_physical() != 0) {
        let most = (!run.cpu.beyond_physical()).saturating_sub(last);
        run.broken(
            rule,
            Place::Field(field.encoding()),
            start,
            Expected::AtMost(most),
        );
    }
}
