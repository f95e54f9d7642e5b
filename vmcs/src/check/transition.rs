// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on VM-exit and VM-entry control fields.
//!
//! The manual wants an instruction length of 0 to 15 for injected software events; 0 only where `IA32_VMX_MISC` bit 30
//! is 1.

use super::{
    context::{Controls, Run},
    execution::area_end,
    memory::PhysicalMemory,
    report::{Expected, Sink},
    rule::{Area, Rule, declare},
};
use crate::{
    Field,
    controls::{Allowed, Entry, ExitPrimary, PinBased, Primary},
    event::EventKind,
    field::{ReadWrite, W32, W64},
    fields as f,
    store::Fields,
};

declare! { EXIT_RULES: Area::Controls, "VM-Exit Control Fields";
    EXIT = "exit.primary.reserved", [PRIMARY_EXIT_CONTROLS],
        "Reserved bits in the primary VM-exit controls must be set properly.";
    EXIT2 = "exit.secondary.reserved", [SECONDARY_EXIT_CONTROLS],
        "If they are activated, reserved bits in the secondary VM-exit controls must be clear.";
    SAVE_TIMER = "exit.save-preemption-timer", [PRIMARY_EXIT_CONTROLS, PIN_BASED_CONTROLS],
        "If \"activate VMX-preemption timer\" is 0, \"save VMX-preemption timer value\" must be 0.";
    EXIT_STORE = "exit.msr-store.address", [EXIT_MSR_STORE_ADDRESS],
        "If the VM-exit MSR-store count is not zero, the address must be 16-byte aligned and within the physical-address width.";
    EXIT_STORE_END = "exit.msr-store.end", [EXIT_MSR_STORE_ADDRESS, EXIT_MSR_STORE_COUNT],
        "The last byte of the VM-exit MSR-store area must lie within the physical-address width.";
    EXIT_LOAD = "exit.msr-load.address", [EXIT_MSR_LOAD_ADDRESS],
        "If the VM-exit MSR-load count is not zero, the address must be 16-byte aligned and within the physical-address width.";
    EXIT_LOAD_END = "exit.msr-load.end", [EXIT_MSR_LOAD_ADDRESS, EXIT_MSR_LOAD_COUNT],
        "The last byte of the VM-exit MSR-load area must lie within the physical-address width.";
}

declare! { ENTRY_RULES: Area::Controls, "VM-Entry Control Fields";
    ENTRY = "entry-controls.reserved", [ENTRY_CONTROLS],
        "Reserved bits in the VM-entry controls must be set properly.";
    EVENT_KIND = "event.type", [INJECTED_EVENT],
        "The type of an injected event must not be reserved: 1 is on all processors, 7 where neither \"monitor trap flag\" nor FRED is supported.";
    EVENT_VECTOR = "event.vector", [INJECTED_EVENT, GUEST_CR4],
        "The vector must fit the type: 2 for an NMI, at most 31 for a hardware exception; for other events 0 (pending MTF), or with FRED transitions 1 (SYSCALL) or 2 (SYSENTER).";
    EVENT_ERROR_MISSING = "event.error-code.missing", [INJECTED_EVENT, GUEST_CR0, PRIMARY_CONTROLS, SECONDARY_CONTROLS],
        "An exception that has an error code must deliver one, unless the guest is an unrestricted one in real mode or IA32_VMX_BASIC bit 56 is 1.";
    EVENT_ERROR_FORBIDDEN = "event.error-code.forbidden", [INJECTED_EVENT, GUEST_CR0],
        "No error code may be delivered for anything but a hardware exception, nor in real mode, nor (if IA32_VMX_BASIC bit 56 is 0) for an exception that has none.";
    EVENT_NESTED = "event.nested", [INJECTED_EVENT],
        "The nested-exception bit may be 1 only for a hardware exception, and only if IA32_VMX_BASIC bit 58 is 1.";
    EVENT_RESERVED = "event.reserved", [INJECTED_EVENT],
        "Reserved bits 30:14 and 12 of an injected event must be 0.";
    EVENT_ERROR_CODE = "event.error-code.value", [INJECTED_EVENT_ERROR_CODE],
        "If an error code is delivered, its bits 31:16 must be 0.";
    EVENT_LENGTH = "event.instruction-length", [ENTRY_INSTRUCTION_LENGTH],
        "For a software interrupt or exception, and for SYSCALL and SYSENTER, the instruction length must be 1 to 15, or 0 where IA32_VMX_MISC bit 30 is 1.";
    ENTRY_LOAD = "entry-controls.msr-load.address", [ENTRY_MSR_LOAD_ADDRESS],
        "If the VM-entry MSR-load count is not zero, the address must be 16-byte aligned and within the physical-address width.";
    ENTRY_LOAD_END = "entry-controls.msr-load.end", [ENTRY_MSR_LOAD_ADDRESS, ENTRY_MSR_LOAD_COUNT],
        "The last byte of the VM-entry MSR-load area must lie within the physical-address width.";
    OUTSIDE_SMM = "entry-controls.smm.outside", [ENTRY_CONTROLS],
        "Outside SMM, \"entry to SMM\" and \"deactivate dual-monitor treatment\" must be 0.";
    SMM_BOTH = "entry-controls.smm.both", [ENTRY_CONTROLS],
        "\"Entry to SMM\" and \"deactivate dual-monitor treatment\" must not both be 1.";
}

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let bits = |allowed: Allowed| Expected::Bits {
        must_be_one: allowed.must_be_one,
        may_be_one: allowed.may_be_one,
    };
    let (value, allowed) = (u64::from(c.exit.bits()), run.cpu.vmx.exit);
    run.require(
        allowed.accepts(value),
        &EXIT,
        (f::PRIMARY_EXIT_CONTROLS, value),
        bits(allowed),
    );
    let may = run.cpu.vmx.exit2.may_be_one;
    run.only_bits(may, &EXIT2, (f::SECONDARY_EXIT_CONTROLS, c.exit2.bits()));
    let holds = c.pin.contains(PinBased::PREEMPTION_TIMER)
        || !c.exit.contains(ExitPrimary::SAVE_PREEMPTION_TIMER);
    run.require(
        holds,
        &SAVE_TIMER,
        (f::PRIMARY_EXIT_CONTROLS, value),
        Expected::AsTheRuleSays,
    );
    msr_area(
        run,
        [&EXIT_STORE, &EXIT_STORE_END],
        f::EXIT_MSR_STORE_COUNT,
        f::EXIT_MSR_STORE_ADDRESS,
    );
    msr_area(
        run,
        [&EXIT_LOAD, &EXIT_LOAD_END],
        f::EXIT_MSR_LOAD_COUNT,
        f::EXIT_MSR_LOAD_ADDRESS,
    );

    let (value, allowed) = (u64::from(c.entry.bits()), run.cpu.vmx.entry);
    run.require(
        allowed.accepts(value),
        &ENTRY,
        (f::ENTRY_CONTROLS, value),
        bits(allowed),
    );
    if c.event.is_valid() {
        event(run, c);
    }
    msr_area(
        run,
        [&ENTRY_LOAD, &ENTRY_LOAD_END],
        f::ENTRY_MSR_LOAD_COUNT,
        f::ENTRY_MSR_LOAD_ADDRESS,
    );
    let smm = Entry::ENTRY_TO_SMM | Entry::DEACTIVATE_DUAL_MONITOR;
    if !run.now.smm {
        run.only_bits(
            !u64::from(smm.bits()),
            &OUTSIDE_SMM,
            (f::ENTRY_CONTROLS, value),
        );
    }
    let holds = !c.entry.contains(smm);
    run.require(
        holds,
        &SMM_BOTH,
        (f::ENTRY_CONTROLS, value),
        Expected::AsTheRuleSays,
    );
}

#[inline(always)]
fn msr_area<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    [start, end]: [&'static Rule; 2],
    count: Field<W32, ReadWrite>,
    address: Field<W64, ReadWrite>,
) {
    let count = run.get(count);
    if count != 0 {
        run.address(16, start, address);
        area_end(run, end, address, (count << 4).wrapping_sub(1));
    }
}

/// Exceptions that deliver an error code on every processor: #DF, #TS, #NP, #SS, #GP, #PF, #AC.
const WITH_ERROR_CODE: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17;
/// Exceptions that deliver none, if `IA32_VMX_BASIC` bit 56 is 0. Newer processors have #CP (21) with an error code;
/// they set that bit.
const WITHOUT_ERROR_CODE: u32 = !WITH_ERROR_CODE;

/// Checks on the event to inject. Apart, as most entries inject none.
#[inline(never)]
fn event<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, S, M, K>, c: &Controls) {
    let (event, vmx) = (c.event, &run.cpu.vmx);
    let (kind, vector) = (event.kind(), event.vector());
    let at = (f::INJECTED_EVENT, u64::from(event.0));
    let says = Expected::AsTheRuleSays;
    let fred = run.get(f::GUEST_CR4) >> 32 & 1 != 0;
    let mtf = vmx.primary.may_be_one & u64::from(Primary::MONITOR_TRAP_FLAG.bits()) != 0;
    let fred_supported = vmx.cr4_fixed1 >> 32 & 1 != 0;

    let known = match kind {
        EventKind(1) => false,
        EventKind::OTHER => mtf || fred_supported,
        _ => true,
    };
    run.require(known, &EVENT_KIND, at, says);
    let fits = match kind {
        EventKind::NMI => vector == 2,
        EventKind::HARDWARE_EXCEPTION => vector <= 31,
        EventKind::OTHER => vector == 0 && mtf || fred && (vector == 1 || vector == 2),
        _ => true,
    };
    run.require(fits, &EVENT_VECTOR, at, says);

    let exception = kind == EventKind::HARDWARE_EXCEPTION;
    let real_mode = c.unrestricted() && c.guest_cr0 & 1 == 0;
    let strict = !vmx.basic.has_free_error_codes();
    let among = |set: u32| vector < 32 && set >> vector & 1 != 0;
    let owes = exception && !real_mode && strict && among(WITH_ERROR_CODE);
    run.require(
        event.has_error_code() || !owes,
        &EVENT_ERROR_MISSING,
        at,
        says,
    );
    let forbidden = !exception || real_mode || strict && among(WITHOUT_ERROR_CODE);
    run.require(
        !(event.has_error_code() && forbidden),
        &EVENT_ERROR_FORBIDDEN,
        at,
        says,
    );
    let may_nest = exception && vmx.basic.has_nested_exceptions();
    run.require(!event.is_nested() || may_nest, &EVENT_NESTED, at, says);
    run.only_bits(0x8000_2fff, &EVENT_RESERVED, at);
    if event.has_error_code() {
        let code = run.get(f::INJECTED_EVENT_ERROR_CODE);
        run.only_bits(
            0xffff,
            &EVENT_ERROR_CODE,
            (f::INJECTED_EVENT_ERROR_CODE, code),
        );
    }
    let by_instruction = matches!(
        kind,
        EventKind::SOFTWARE_INTERRUPT
            | EventKind::SOFTWARE_EXCEPTION
            | EventKind::PRIVILEGED_SOFTWARE_EXCEPTION
    );
    if by_instruction || kind == EventKind::OTHER && (vector == 1 || vector == 2) {
        let length = run.get(f::ENTRY_INSTRUCTION_LENGTH);
        let least = u64::from(!run.cpu.vmx.misc.allows_zero_length());
        let at = (f::ENTRY_INSTRUCTION_LENGTH, length);
        run.require((least..=15).contains(&length), &EVENT_LENGTH, at, says);
    }
}
