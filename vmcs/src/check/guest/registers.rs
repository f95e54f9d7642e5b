// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on guest control registers, debug registers, and MSRs.

use super::Guest;
use crate::{
    Field,
    capability::{Features, Processor},
    check::{
        context::{Controls, Run},
        memory::PhysicalMemory,
        report::{Expected, Sink},
        rule::{Area, Rule, declare},
    },
    controls::{Allowed, Entry},
    field::{Natural, ReadWrite, W64},
    fields as f,
    store::Fields,
};

declare! { RULES: Area::Guest(0), "Checks on Guest Control Registers, Debug Registers, and MSRs";
    CR0 = "guest.cr0.fixed", [GUEST_CR0, SECONDARY_CONTROLS, PRIMARY_CONTROLS],
        "CR0 must not set any bit to a value not supported in VMX operation; PE and PG are free if \"unrestricted guest\" is 1, NW and CD always.";
    PG_PE = "guest.cr0.pg-pe", [GUEST_CR0],
        "If CR0.PG is 1, CR0.PE must be 1.";
    CR4 = "guest.cr4.fixed", [GUEST_CR4],
        "CR4 must not set any bit to a value not supported in VMX operation.";
    CET_WP = "guest.cr4.cet-wp", [GUEST_CR4, GUEST_CR0],
        "If CR4.CET is 1, CR0.WP must be 1.";
    DEBUGCTL = "guest.debugctl.reserved", [GUEST_DEBUGCTL],
        "If \"load debug controls\" is 1, reserved bits of IA32_DEBUGCTL must be 0.";
    IA32E_PAGING = "guest.ia32e.paging", [GUEST_CR0, ENTRY_CONTROLS],
        "If \"IA-32e mode guest\" is 1, CR0.PG must be 1.";
    IA32E_PAE = "guest.ia32e.pae", [GUEST_CR4, ENTRY_CONTROLS],
        "If \"IA-32e mode guest\" is 1, CR4.PAE must be 1.";
    PCIDE = "guest.cr4.pcide", [GUEST_CR4, ENTRY_CONTROLS],
        "If \"IA-32e mode guest\" is 0, CR4.PCIDE must be 0.";
    CR4_FRED = "guest.cr4.fred", [GUEST_CR4, ENTRY_CONTROLS],
        "If \"IA-32e mode guest\" is 0, CR4.FRED must be 0.";
    CR3 = "guest.cr3.reserved", [GUEST_CR3],
        "Reserved bits of CR3 must be 0: those beyond the physical-address width.";
    DR7 = "guest.dr7.reserved", [GUEST_DR7],
        "If \"load debug controls\" is 1, bits 63:32 of DR7 must be 0.";
    SYSENTER_ESP = "guest.sysenter-esp.canonical", [GUEST_SYSENTER_ESP],
        "IA32_SYSENTER_ESP must be canonical.";
    SYSENTER_EIP = "guest.sysenter-eip.canonical", [GUEST_SYSENTER_EIP],
        "IA32_SYSENTER_EIP must be canonical.";
    S_CET_CANONICAL = "guest.s-cet.canonical", [GUEST_S_CET],
        "If \"load CET state\" is 1, IA32_S_CET must be canonical.";
    SSP_TABLE = "guest.interrupt-ssp-table.canonical", [GUEST_INTERRUPT_SSP_TABLE],
        "If \"load CET state\" is 1, IA32_INTERRUPT_SSP_TABLE_ADDR must be canonical.";
    PERF_GLOBAL = "guest.perf-global-ctrl.reserved", [GUEST_PERF_GLOBAL_CTRL],
        "If \"load IA32_PERF_GLOBAL_CTRL\" is 1, reserved bits must be 0.";
    PAT = "guest.pat.types", [GUEST_PAT],
        "If \"load IA32_PAT\" is 1, each byte must be 0 (UC), 1 (WC), 4 (WT), 5 (WP), 6 (WB) or 7 (UC-).";
    EFER_RESERVED = "guest.efer.reserved", [GUEST_EFER],
        "If \"load IA32_EFER\" is 1, reserved bits must be 0.";
    EFER_LMA = "guest.efer.lma", [GUEST_EFER, ENTRY_CONTROLS],
        "If \"load IA32_EFER\" is 1, LMA must equal \"IA-32e mode guest\".";
    EFER_LME = "guest.efer.lme", [GUEST_EFER, GUEST_CR0],
        "If \"load IA32_EFER\" and CR0.PG are 1, LMA must equal LME.";
    BNDCFGS_RESERVED = "guest.bndcfgs.reserved", [GUEST_BNDCFGS],
        "If \"load IA32_BNDCFGS\" is 1, bits 11:2 must be 0.";
    BNDCFGS_CANONICAL = "guest.bndcfgs.canonical", [GUEST_BNDCFGS],
        "If \"load IA32_BNDCFGS\" is 1, the address in bits 63:12 must be canonical.";
    RTIT_CTL = "guest.rtit-ctl.reserved", [GUEST_RTIT_CTL],
        "If \"load IA32_RTIT_CTL\" is 1, reserved bits must be 0.";
    S_CET = "guest.s-cet.reserved", [GUEST_S_CET],
        "If \"load CET state\" is 1, reserved bits of IA32_S_CET must be 0, and SUPPRESS and TRACKER must not both be 1.";
    LBR_CTL = "guest.lbr-ctl.reserved", [GUEST_LBR_CTL],
        "If \"load guest IA32_LBR_CTL\" is 1, reserved bits must be 0.";
    PKRS = "guest.pkrs.reserved", [GUEST_PKRS],
        "If \"load PKRS\" is 1, bits 63:32 of IA32_PKRS must be 0.";
    UINV = "guest.uinv.reserved", [GUEST_UINV],
        "If \"load UINV\" is 1, bits 15:8 of UINV must be 0.";
    FRED_CONFIG = "guest.fred-config.reserved", [GUEST_FRED_CONFIG],
        "If \"load FRED\" is 1, bits 2, 5:4 and 11 of IA32_FRED_CONFIG must be 0.";
    FRED_CONFIG_CANONICAL = "guest.fred-config.canonical", [GUEST_FRED_CONFIG],
        "If \"load FRED\" is 1, IA32_FRED_CONFIG must be canonical.";
    FRED_RSP = "guest.fred-rsp", [GUEST_FRED_RSP1, GUEST_FRED_RSP2, GUEST_FRED_RSP3],
        "If \"load FRED\" is 1, IA32_FRED_RSP1 to RSP3 must be canonical and 64-byte aligned.";
    FRED_SSP = "guest.fred-ssp", [GUEST_FRED_SSP1, GUEST_FRED_SSP2, GUEST_FRED_SSP3],
        "If \"load FRED\" is 1, IA32_FRED_SSP1 to SSP3 must be canonical and 8-byte aligned.";
    SPEC_CTRL = "guest.spec-ctrl.reserved", [GUEST_SPEC_CTRL],
        "If \"load IA32_SPEC_CTRL\" is 1, reserved bits must be 0.";
}

const PE: u64 = 1;
const WP: u64 = 1 << 16;
const NW_CD: u64 = 3 << 29;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const CET: u64 = 1 << 23;

/// What CR0 may hold. Entries and exits change neither NW nor CD, so those are never checked; nor are the bits of `free`.
#[inline(always)]
pub(in crate::check) fn cr0_expected(cpu: &Processor, free: u64) -> Allowed {
    let unchecked = NW_CD | free;
    Allowed {
        must_be_one: cpu.vmx.cr0_fixed0 & !unchecked,
        may_be_one: cpu.vmx.cr0_fixed1 | unchecked,
    }
}

/// Whether each of the eight bytes is a memory type that WRMSR accepts: up to 7, but not 2 or 3.
#[inline(always)]
pub(in crate::check) fn pat_is_valid(pat: u64) -> bool {
    let too_large = pat & 0xf8f8_f8f8_f8f8_f8f8;
    let two_or_three = pat >> 1 & !(pat >> 2) & 0x0101_0101_0101_0101;
    too_large | two_or_three == 0
}

/// Fields with FRED state, of host or guest.
pub(in crate::check) struct Fred {
    pub(in crate::check) config: Field<W64, ReadWrite>,
    pub(in crate::check) rsp: [Field<W64, ReadWrite>; 3],
    pub(in crate::check) ssp: [Field<W64, ReadWrite>; 3],
}

/// The rules for them.
pub(in crate::check) struct FredRules {
    pub(in crate::check) config: &'static Rule,
    pub(in crate::check) config_canonical: &'static Rule,
    pub(in crate::check) rsp: &'static Rule,
    pub(in crate::check) ssp: &'static Rule,
}

/// IA32_FRED_STKLVLS has no reserved bits.
#[inline(never)]
pub(in crate::check) fn fred<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    fields: &Fred,
    rules: &FredRules,
) {
    let config = (fields.config, run.get(fields.config));
    run.only_bits(!0x834, rules.config, config);
    run.canonical(rules.config_canonical, config);
    for (list, alignment, rule) in [(fields.rsp, 64, rules.rsp), (fields.ssp, 8, rules.ssp)] {
        for field in list {
            let at = (field, run.get(field));
            run.only_bits(!u64::wrapping_sub(alignment, 1), rule, at);
            run.canonical(rule, at);
        }
    }
}

/// Reserved bits of IA32_S_CET, and the two that exclude each other.
#[inline(always)]
pub(in crate::check) fn s_cet<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    rule: &'static Rule,
    at: (Field<Natural, ReadWrite>, u64),
) {
    const SUPPRESS_AND_TRACKER: u64 = 3 << 10;
    let may_be_one = run.cpu.writable.s_cet & 0xfff | !0xfff;
    let holds = at.1 & !may_be_one == 0 && at.1 & SUPPRESS_AND_TRACKER != SUPPRESS_AND_TRACKER;
    run.require(
        holds,
        rule,
        at,
        Expected::Bits {
            must_be_one: 0,
            may_be_one,
        },
    );
}

#[inline(always)]
pub(in crate::check) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    control_registers(run, c, guest);
    let esp = run.get(f::GUEST_SYSENTER_ESP);
    run.canonical(&SYSENTER_ESP, (f::GUEST_SYSENTER_ESP, esp));
    let eip = run.get(f::GUEST_SYSENTER_EIP);
    run.canonical(&SYSENTER_EIP, (f::GUEST_SYSENTER_EIP, eip));
    if c.entry.contains(Entry::LOAD_DEBUG_CONTROLS) {
        let may = run.cpu.writable.debugctl;
        run.only_bits(may, &DEBUGCTL, (f::GUEST_DEBUGCTL, guest.debugctl));
        let dr7 = run.get(f::GUEST_DR7);
        run.only_bits(0xffff_ffff, &DR7, (f::GUEST_DR7, dr7));
    }
    if c.entry.contains(Entry::LOAD_PERF_GLOBAL_CTRL) {
        let value = run.get(f::GUEST_PERF_GLOBAL_CTRL);
        let may = run.cpu.writable.perf_global_ctrl;
        run.only_bits(may, &PERF_GLOBAL, (f::GUEST_PERF_GLOBAL_CTRL, value));
    }
    if c.entry.contains(Entry::LOAD_PAT) {
        let pat = run.get(f::GUEST_PAT);
        run.require(
            pat_is_valid(pat),
            &PAT,
            (f::GUEST_PAT, pat),
            Expected::AsTheRuleSays,
        );
    }
    if c.entry.contains(Entry::LOAD_EFER) {
        efer(run, c, guest);
    }
    let newer = Entry::from_bits_retain(!0 << 16);
    if c.entry.intersects(newer) {
        newer_msrs(run, c);
    }
}

#[inline(always)]
fn control_registers<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    let (cpu, says) = (run.cpu, Expected::AsTheRuleSays);
    let (cr0, cr4) = ((f::GUEST_CR0, guest.cr0), (f::GUEST_CR4, guest.cr4));
    let allowed = cr0_expected(cpu, if c.unrestricted() { PE | PG } else { 0 });
    let expected = Expected::Bits {
        must_be_one: allowed.must_be_one,
        may_be_one: allowed.may_be_one,
    };
    run.require(allowed.accepts(guest.cr0), &CR0, cr0, expected);
    run.require(
        guest.cr0 & PG == 0 || guest.cr0 & PE != 0,
        &PG_PE,
        cr0,
        says,
    );
    let (must_be_one, may_be_one) = (cpu.vmx.cr4_fixed0, cpu.vmx.cr4_fixed1);
    let holds = must_be_one & !guest.cr4 == 0 && guest.cr4 & !may_be_one == 0;
    run.require(
        holds,
        &CR4,
        cr4,
        Expected::Bits {
            must_be_one,
            may_be_one,
        },
    );
    run.require(
        guest.cr4 & CET == 0 || guest.cr0 & WP != 0,
        &CET_WP,
        cr4,
        says,
    );
    if c.ia32e_guest() {
        run.require(guest.cr0 & PG != 0, &IA32E_PAGING, cr0, says);
        run.require(guest.cr4 & PAE != 0, &IA32E_PAE, cr4, says);
    } else {
        run.only_bits(!(1 << 17), &PCIDE, cr4);
        run.only_bits(!(1 << 32), &CR4_FRED, cr4);
    }
    let cr3 = run.get(f::GUEST_CR3);
    let masking = if cpu.features.contains(Features::LAM) {
        3 << 61
    } else {
        0
    };
    run.only_bits(!cpu.beyond_physical() | masking, &CR3, (f::GUEST_CR3, cr3));
}

#[inline(always)]
fn efer<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    guest: &Guest,
) {
    let efer = run.get(f::GUEST_EFER);
    let at = (f::GUEST_EFER, efer);
    run.only_bits(run.cpu.writable.efer, &EFER_RESERVED, at);
    let (lme, lma) = (efer >> 8 & 1 != 0, efer >> 10 & 1 != 0);
    run.require(
        lma == c.ia32e_guest(),
        &EFER_LMA,
        at,
        Expected::AsTheRuleSays,
    );
    let holds = guest.cr0 & PG == 0 || lma == lme;
    run.require(holds, &EFER_LME, at, Expected::AsTheRuleSays);
}

/// State that came after the first processors with VMX: apart, as many entries load none of it.
#[inline(never)]
fn newer_msrs<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    const FRED: FredRules = FredRules {
        config: &FRED_CONFIG,
        config_canonical: &FRED_CONFIG_CANONICAL,
        rsp: &FRED_RSP,
        ssp: &FRED_SSP,
    };
    const FRED_FIELDS: Fred = Fred {
        config: f::GUEST_FRED_CONFIG,
        rsp: [f::GUEST_FRED_RSP1, f::GUEST_FRED_RSP2, f::GUEST_FRED_RSP3],
        ssp: [f::GUEST_FRED_SSP1, f::GUEST_FRED_SSP2, f::GUEST_FRED_SSP3],
    };
    let on = |control| c.entry.contains(control);
    let writable = run.cpu.writable;
    if on(Entry::LOAD_BNDCFGS) {
        let bndcfgs = run.get(f::GUEST_BNDCFGS);
        run.only_bits(!0xffc, &BNDCFGS_RESERVED, (f::GUEST_BNDCFGS, bndcfgs));
        run.canonical(&BNDCFGS_CANONICAL, (f::GUEST_BNDCFGS, bndcfgs));
    }
    if on(Entry::LOAD_RTIT_CTL) {
        let value = run.get(f::GUEST_RTIT_CTL);
        run.only_bits(writable.rtit_ctl, &RTIT_CTL, (f::GUEST_RTIT_CTL, value));
    }
    if on(Entry::LOAD_CET) {
        let at = (f::GUEST_S_CET, run.get(f::GUEST_S_CET));
        run.canonical(&S_CET_CANONICAL, at);
        s_cet(run, &S_CET, at);
        let table = run.get(f::GUEST_INTERRUPT_SSP_TABLE);
        run.canonical(&SSP_TABLE, (f::GUEST_INTERRUPT_SSP_TABLE, table));
    }
    if on(Entry::LOAD_LBR_CTL) {
        let value = run.get(f::GUEST_LBR_CTL);
        run.only_bits(writable.lbr_ctl, &LBR_CTL, (f::GUEST_LBR_CTL, value));
    }
    if on(Entry::LOAD_PKRS) {
        let pkrs = run.get(f::GUEST_PKRS);
        run.only_bits(0xffff_ffff, &PKRS, (f::GUEST_PKRS, pkrs));
    }
    if on(Entry::LOAD_UINV) {
        let uinv = run.get(f::GUEST_UINV);
        run.only_bits(0xff, &UINV, (f::GUEST_UINV, uinv));
    }
    if on(Entry::LOAD_FRED) {
        fred(run, &FRED_FIELDS, &FRED);
    }
    if on(Entry::LOAD_SPEC_CTRL) {
        let value = run.get(f::GUEST_SPEC_CTRL);
        run.only_bits(writable.spec_ctrl, &SPEC_CTRL, (f::GUEST_SPEC_CTRL, value));
    }
}
