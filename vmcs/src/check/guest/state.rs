// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on guest non-register state, but for the VMCS link pointer.
//!
//! Injecting an NMI into a guest that blocks by STI gives qualification 3; the manual gives no number of its own to
//! blocking by MOV SS, so that gives 0.
//!
//! Bit 11 of the pending debug exceptions must be 0, says the list of checks; the field's table gives it to bus locks. The list is followed.

use super::Guest;
use crate::{
    capability::Features,
    check::{
        context::{Controls, Run},
        memory::PhysicalMemory,
        report::{Expected, Sink},
        rule::{Area, declare},
    },
    controls::{Entry, PinBased},
    event::{ActivityState, EventKind, Interruptibility, PendingDebug},
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Guest(0), "Checks on Guest Non-Register State";
    ACTIVITY = "guest.activity.supported", [GUEST_ACTIVITY],
        "The activity state must be one that IA32_VMX_MISC reports.";
    ACTIVITY_HLT = "guest.activity.hlt-dpl", [GUEST_ACTIVITY, GUEST_SS_ACCESS_RIGHTS],
        "The activity state must not be HLT if the DPL of SS is not 0.";
    ACTIVITY_BLOCKING = "guest.activity.blocking", [GUEST_ACTIVITY, GUEST_INTERRUPTIBILITY],
        "The activity state must be active if there is blocking by STI or by MOV SS.";
    ACTIVITY_EVENT = "guest.activity.event", [GUEST_ACTIVITY, INJECTED_EVENT],
        "An injected event must be one that the activity state does not block.";
    ACTIVITY_SMM = "guest.activity.smm", [GUEST_ACTIVITY, ENTRY_CONTROLS],
        "If \"entry to SMM\" is 1, the activity state must not be wait-for-SIPI.";
    BLOCKING_RESERVED = "guest.interruptibility.reserved", [GUEST_INTERRUPTIBILITY],
        "Bits 31:5 of the interruptibility state must be 0.";
    BLOCKING_BOTH = "guest.interruptibility.sti-mov-ss", [GUEST_INTERRUPTIBILITY],
        "There must not be blocking both by STI and by MOV SS.";
    STI_IF = "guest.interruptibility.sti-if", [GUEST_INTERRUPTIBILITY, GUEST_RFLAGS],
        "If RFLAGS.IF is 0, there must be no blocking by STI.";
    INTERRUPT_BLOCKED = "guest.interruptibility.interrupt", [GUEST_INTERRUPTIBILITY, INJECTED_EVENT],
        "If an external interrupt is injected, there must be no blocking by STI or by MOV SS.";
    NMI_MOV_SS = "guest.interruptibility.nmi-mov-ss", [GUEST_INTERRUPTIBILITY, INJECTED_EVENT],
        "If an NMI is injected, there must be no blocking by MOV SS.";
    NMI_STI = "guest.interruptibility.nmi-sti" (Area::Guest(3)), [GUEST_INTERRUPTIBILITY, INJECTED_EVENT],
        "If an NMI is injected, there must be no blocking by STI.";
    SMI_OUTSIDE = "guest.interruptibility.smi-outside", [GUEST_INTERRUPTIBILITY],
        "If the processor is not in SMM, there must be no blocking by SMI.";
    SMI_ENTRY = "guest.interruptibility.smi-entry", [GUEST_INTERRUPTIBILITY, ENTRY_CONTROLS],
        "If \"entry to SMM\" is 1, there must be blocking by SMI.";
    NMI_BLOCKED = "guest.interruptibility.nmi-blocked", [GUEST_INTERRUPTIBILITY, PIN_BASED_CONTROLS, INJECTED_EVENT],
        "If \"virtual NMIs\" is 1 and an NMI is injected, there must be no blocking by NMI.";
    ENCLAVE = "guest.interruptibility.enclave", [GUEST_INTERRUPTIBILITY],
        "An enclave interruption excludes blocking by MOV SS, and needs SGX.";
    PENDING_RESERVED = "guest.pending-debug.reserved", [GUEST_PENDING_DEBUG],
        "Bits 11:4, 13, 15 and 63:17 of the pending debug exceptions must be 0.";
    PENDING_BS_SET = "guest.pending-debug.bs-set", [GUEST_PENDING_DEBUG, GUEST_RFLAGS, GUEST_DEBUGCTL],
        "With blocking by STI or MOV SS or in HLT, BS must be 1 if RFLAGS.TF is 1 and IA32_DEBUGCTL.BTF is 0.";
    PENDING_BS_CLEAR = "guest.pending-debug.bs-clear", [GUEST_PENDING_DEBUG, GUEST_RFLAGS, GUEST_DEBUGCTL],
        "With blocking by STI or MOV SS or in HLT, BS must be 0 if RFLAGS.TF is 0 or IA32_DEBUGCTL.BTF is 1.";
    PENDING_RTM = "guest.pending-debug.rtm", [GUEST_PENDING_DEBUG, GUEST_INTERRUPTIBILITY],
        "If the RTM bit is 1, bit 12 must be 1 and no other bit, the processor must support RTM, and there must be no blocking by MOV SS.";
}

const SAYS: Expected = Expected::AsTheRuleSays;

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    let activity = run.get(f::GUEST_ACTIVITY);
    if activity != 0 {
        inactive(run, c, guest, activity);
    }
    let outside = !run.now.smm;
    let to_smm = c.entry.contains(Entry::ENTRY_TO_SMM);
    let blocking = guest.interruptibility;
    if blocking != 0 {
        blocked(run, c, guest);
    }
    if to_smm {
        let holds = blocking & u64::from(Interruptibility::SMI.bits()) != 0;
        run.require(
            holds,
            &SMI_ENTRY,
            (f::GUEST_INTERRUPTIBILITY, blocking),
            SAYS,
        );
    }
    if outside {
        let may = !u64::from(Interruptibility::SMI.bits());
        run.only_bits(may, &SMI_OUTSIDE, (f::GUEST_INTERRUPTIBILITY, blocking));
    }
    let pending = run.get(f::GUEST_PENDING_DEBUG);
    let delays = blocking & 3 != 0 || activity == u64::from(ActivityState::HLT.0);
    if pending != 0 || delays {
        pending_debug(run, guest, pending, delays);
    }
}

/// The activity state is not "active".
#[inline(never)]
fn inactive<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
    activity: u64,
) {
    let at = (f::GUEST_ACTIVITY, activity);
    let state = ActivityState(activity as u32);
    run.require(
        run.cpu.vmx.misc.supports_activity(activity),
        &ACTIVITY,
        at,
        SAYS,
    );
    let holds = state != ActivityState::HLT || guest.ss_dpl() == 0;
    run.require(holds, &ACTIVITY_HLT, at, SAYS);
    run.require(
        guest.interruptibility & 3 == 0,
        &ACTIVITY_BLOCKING,
        at,
        Expected::Exactly(0),
    );
    let holds = !c.event.is_valid() || state.takes(c.event);
    run.require(holds, &ACTIVITY_EVENT, at, SAYS);
    let holds = state != ActivityState::WAIT_FOR_SIPI || !c.entry.contains(Entry::ENTRY_TO_SMM);
    run.require(holds, &ACTIVITY_SMM, at, SAYS);
}

/// Some bit of the interruptibility state is set.
#[inline(never)]
fn blocked<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    let value = guest.interruptibility;
    let at = (f::GUEST_INTERRUPTIBILITY, value);
    let blocking = Interruptibility::from_bits_retain(value as u32);
    let by = |bits| blocking.intersects(bits);
    let (sti, mov_ss) = (by(Interruptibility::STI), by(Interruptibility::MOV_SS));
    run.only_bits(0x1f, &BLOCKING_RESERVED, at);
    run.require(!(sti && mov_ss), &BLOCKING_BOTH, at, SAYS);
    run.require(!sti || guest.rflags & 1 << 9 != 0, &STI_IF, at, SAYS);
    if c.event.is_a(EventKind::EXTERNAL_INTERRUPT) {
        run.require(!sti && !mov_ss, &INTERRUPT_BLOCKED, at, SAYS);
    }
    if c.event.is_a(EventKind::NMI) {
        run.require(!mov_ss, &NMI_MOV_SS, at, SAYS);
        let free = run.cpu.features.contains(Features::NMI_DESPITE_STI);
        run.require(free || !sti, &NMI_STI, at, SAYS);
        let virtual_nmis = c.pin.contains(PinBased::VIRTUAL_NMIS);
        run.require(
            !(virtual_nmis && by(Interruptibility::NMI)),
            &NMI_BLOCKED,
            at,
            SAYS,
        );
    }
    let sgx = run.cpu.features.contains(Features::SGX);
    run.require(
        !by(Interruptibility::ENCLAVE) || sgx && !mov_ss,
        &ENCLAVE,
        at,
        SAYS,
    );
}

/// Debug exceptions are pending, or the guest delays them.
#[inline(never)]
fn pending_debug<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    guest: &Guest,
    pending: u64,
    delays: bool,
) {
    let at = (f::GUEST_PENDING_DEBUG, pending);
    run.only_bits(0x1_500f, &PENDING_RESERVED, at);
    if delays {
        let stepping = guest.rflags & 1 << 8 != 0 && guest.debugctl & 2 == 0;
        let bs = pending & PendingDebug::BS.bits() != 0;
        run.require(bs || !stepping, &PENDING_BS_SET, at, SAYS);
        run.require(!bs || stepping, &PENDING_BS_CLEAR, at, SAYS);
    }
    if pending & PendingDebug::RTM.bits() != 0 {
        let alone = PendingDebug::RTM | PendingDebug::ENABLED_BREAKPOINT;
        let holds = pending == alone.bits()
            && run.cpu.features.contains(Features::RTM)
            && guest.interruptibility & 2 == 0;
        run.require(holds, &PENDING_RTM, at, SAYS);
    }
}
