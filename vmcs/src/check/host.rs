// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on the host-state area.
//!
//! Violations of "Checks Related to Address-Space Size" count as host state (error 8) even where a control is at fault:
//! so does every implementation known to us.

use super::{
    context::{Controls, Run},
    guest::registers::{Fred, FredRules, cr0_expected, fred, pat_is_valid},
    memory::PhysicalMemory,
    report::{Expected, Sink},
    rule::{Area, declare},
};
use crate::{
    capability::Features,
    controls::{ExitPrimary, ExitSecondary},
    fields as f,
    store::Fields,
};

declare! { REGISTER_RULES: Area::Host, "Checks on Host Control Registers, MSRs, and SSP";
    CR0 = "host.cr0.fixed", [HOST_CR0],
        "CR0 must not set any bit to a value not supported in VMX operation; NW and CD are never checked.";
    CR4 = "host.cr4.fixed", [HOST_CR4],
        "CR4 must not set any bit to a value not supported in VMX operation.";
    CET_WP = "host.cr4.cet-wp", [HOST_CR4, HOST_CR0],
        "If CR4.CET is 1, CR0.WP must be 1.";
    CR3 = "host.cr3.reserved", [HOST_CR3],
        "Reserved bits of CR3 must be 0: those beyond the physical-address width.";
    SYSENTER_ESP = "host.sysenter-esp.canonical", [HOST_SYSENTER_ESP],
        "IA32_SYSENTER_ESP must be canonical.";
    SYSENTER_EIP = "host.sysenter-eip.canonical", [HOST_SYSENTER_EIP],
        "IA32_SYSENTER_EIP must be canonical.";
    PERF_GLOBAL = "host.perf-global-ctrl.reserved", [HOST_PERF_GLOBAL_CTRL],
        "If \"load IA32_PERF_GLOBAL_CTRL\" is 1, reserved bits must be 0.";
    PAT = "host.pat.types", [HOST_PAT],
        "If \"load IA32_PAT\" is 1, each byte must be 0 (UC), 1 (WC), 4 (WT), 5 (WP), 6 (WB) or 7 (UC-).";
    EFER_RESERVED = "host.efer.reserved", [HOST_EFER],
        "If \"load IA32_EFER\" is 1, reserved bits must be 0.";
    EFER_MODE = "host.efer.mode", [HOST_EFER, PRIMARY_EXIT_CONTROLS],
        "If \"load IA32_EFER\" is 1, LMA and LME must each equal \"host address-space size\".";
    S_CET = "host.s-cet.reserved", [HOST_S_CET],
        "If \"load CET state\" is 1, reserved bits of IA32_S_CET must be 0, and SUPPRESS and TRACKER must not both be 1.";
    SSP_ALIGNED = "host.ssp.aligned", [HOST_SSP],
        "If \"load CET state\" is 1, bits 1:0 of SSP must be 0.";
    PKRS = "host.pkrs.reserved", [HOST_PKRS],
        "If \"load PKRS\" is 1, bits 63:32 of IA32_PKRS must be 0.";
    FRED_CONFIG = "host.fred-config.reserved", [HOST_FRED_CONFIG],
        "If \"load FRED\" is 1, bits 2, 5:4 and 11 of IA32_FRED_CONFIG must be 0.";
    FRED_CONFIG_CANONICAL = "host.fred-config.canonical", [HOST_FRED_CONFIG],
        "If \"load FRED\" is 1, IA32_FRED_CONFIG must be canonical.";
    FRED_RSP = "host.fred-rsp", [HOST_FRED_RSP1, HOST_FRED_RSP2, HOST_FRED_RSP3],
        "If \"load FRED\" is 1, IA32_FRED_RSP1 to RSP3 must be canonical and 64-byte aligned.";
    FRED_SSP = "host.fred-ssp", [HOST_FRED_SSP1, HOST_FRED_SSP2, HOST_FRED_SSP3],
        "If \"load FRED\" is 1, IA32_FRED_SSP1 to SSP3 must be canonical and 8-byte aligned.";
    SPEC_CTRL = "host.spec-ctrl.reserved", [HOST_SPEC_CTRL],
        "If \"load IA32_SPEC_CTRL\" is 1, reserved bits must be 0.";
}

declare! { SEGMENT_RULES: Area::Host, "Checks on Host Segment and Descriptor-Table Registers";
    SELECTOR = "host.selector.rpl-ti", [HOST_CS_SELECTOR, HOST_SS_SELECTOR, HOST_DS_SELECTOR, HOST_ES_SELECTOR, HOST_FS_SELECTOR, HOST_GS_SELECTOR, HOST_TR_SELECTOR],
        "In each selector, RPL and TI must be 0.";
    CS_NULL = "host.cs.not-null", [HOST_CS_SELECTOR],
        "The CS selector must not be 0000H.";
    TR_NULL = "host.tr.not-null", [HOST_TR_SELECTOR],
        "The TR selector must not be 0000H.";
    SS_NULL = "host.ss.not-null", [HOST_SS_SELECTOR, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 0, the SS selector must not be 0000H.";
    BASE = "host.base.canonical", [HOST_FS_BASE, HOST_GS_BASE, HOST_GDTR_BASE, HOST_IDTR_BASE, HOST_TR_BASE],
        "The base addresses of FS, GS, GDTR, IDTR and TR must be canonical.";
}

declare! { SIZE_RULES: Area::Host, "Checks Related to Address-Space Size";
    OUTSIDE_IA32E = "host.size.outside-ia32e", [PRIMARY_EXIT_CONTROLS, ENTRY_CONTROLS],
        "Outside IA-32e mode, \"IA-32e mode guest\" and \"host address-space size\" must be 0.";
    IN_IA32E = "host.size.in-ia32e", [PRIMARY_EXIT_CONTROLS],
        "In IA-32e mode, \"host address-space size\" must be 1.";
    GUEST_LARGER = "host.size.guest", [ENTRY_CONTROLS, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 0, \"IA-32e mode guest\" must be 0.";
    CR4_LEGACY = "host.size.cr4-legacy", [HOST_CR4, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 0, CR4.PCIDE and CR4.FRED must be 0.";
    RIP_LEGACY = "host.size.rip-legacy", [HOST_RIP, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 0, bits 63:32 of RIP must be 0.";
    CET_LEGACY = "host.size.cet-legacy", [HOST_S_CET, HOST_SSP, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 0 and CET state is loaded, bits 63:32 of IA32_S_CET and SSP must be 0.";
    PAE = "host.size.pae", [HOST_CR4, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 1, CR4.PAE must be 1.";
    RIP = "host.size.rip-canonical", [HOST_RIP, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 1, RIP must be canonical.";
    CET = "host.size.cet-canonical", [HOST_S_CET, HOST_SSP, PRIMARY_EXIT_CONTROLS],
        "If \"host address-space size\" is 1 and CET state is loaded, IA32_S_CET and SSP must be canonical.";
    SSP_TABLE = "host.interrupt-ssp-table.canonical", [HOST_INTERRUPT_SSP_TABLE],
        "If CET state is loaded, IA32_INTERRUPT_SSP_TABLE_ADDR must be canonical.";
}

const FRED: FredRules = FredRules {
    config: &FRED_CONFIG,
    config_canonical: &FRED_CONFIG_CANONICAL,
    rsp: &FRED_RSP,
    ssp: &FRED_SSP,
};

const FRED_FIELDS: Fred = Fred {
    config: f::HOST_FRED_CONFIG,
    rsp: [f::HOST_FRED_RSP1, f::HOST_FRED_RSP2, f::HOST_FRED_RSP3],
    ssp: [f::HOST_FRED_SSP1, f::HOST_FRED_SSP2, f::HOST_FRED_SSP3],
};

const WP: u64 = 1 << 16;
const CET_ENABLE: u64 = 1 << 23;

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    registers(run, c);
    segments(run, c);
    size(run, c);
}

#[inline(always)]
fn registers<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    let cpu = run.cpu;
    let cr0 = run.get(f::HOST_CR0);
    let allowed = cr0_expected(cpu, 0);
    let expected = Expected::Bits {
        must_be_one: allowed.must_be_one,
        may_be_one: allowed.may_be_one,
    };
    run.require(allowed.accepts(cr0), &CR0, (f::HOST_CR0, cr0), expected);
    let cr4 = run.get(f::HOST_CR4);
    let (must_be_one, may_be_one) = (cpu.vmx.cr4_fixed0, cpu.vmx.cr4_fixed1);
    let holds = must_be_one & !cr4 == 0 && cr4 & !may_be_one == 0;
    run.require(
        holds,
        &CR4,
        (f::HOST_CR4, cr4),
        Expected::Bits {
            must_be_one,
            may_be_one,
        },
    );
    let holds = cr4 & CET_ENABLE == 0 || cr0 & WP != 0;
    run.require(holds, &CET_WP, (f::HOST_CR4, cr4), Expected::AsTheRuleSays);
    let cr3 = run.get(f::HOST_CR3);
    let masking = if cpu.features.contains(Features::LAM) {
        3 << 61
    } else {
        0
    };
    run.only_bits(!cpu.beyond_physical() | masking, &CR3, (f::HOST_CR3, cr3));
    let esp = run.get(f::HOST_SYSENTER_ESP);
    run.canonical(&SYSENTER_ESP, (f::HOST_SYSENTER_ESP, esp));
    let eip = run.get(f::HOST_SYSENTER_EIP);
    run.canonical(&SYSENTER_EIP, (f::HOST_SYSENTER_EIP, eip));

    let on = |control| c.exit.contains(control);
    if on(ExitPrimary::LOAD_PERF_GLOBAL_CTRL) {
        let value = run.get(f::HOST_PERF_GLOBAL_CTRL);
        let at = (f::HOST_PERF_GLOBAL_CTRL, value);
        run.only_bits(cpu.writable.perf_global_ctrl, &PERF_GLOBAL, at);
    }
    if on(ExitPrimary::LOAD_PAT) {
        let pat = run.get(f::HOST_PAT);
        run.require(
            pat_is_valid(pat),
            &PAT,
            (f::HOST_PAT, pat),
            Expected::AsTheRuleSays,
        );
    }
    if on(ExitPrimary::LOAD_EFER) {
        let efer = run.get(f::HOST_EFER);
        run.only_bits(cpu.writable.efer, &EFER_RESERVED, (f::HOST_EFER, efer));
        let want = if on(ExitPrimary::HOST_ADDRESS_SPACE_SIZE) {
            0x500
        } else {
            0
        };
        let at = (f::HOST_EFER, efer);
        run.require(
            efer & 0x500 == want,
            &EFER_MODE,
            at,
            Expected::AsTheRuleSays,
        );
    }
    if on(ExitPrimary::LOAD_PKRS) {
        let pkrs = run.get(f::HOST_PKRS);
        run.only_bits(0xffff_ffff, &PKRS, (f::HOST_PKRS, pkrs));
    }
    if c.exit2.contains(ExitSecondary::LOAD_FRED) {
        fred(run, &FRED_FIELDS, &FRED);
    }
    if c.exit2.contains(ExitSecondary::LOAD_SPEC_CTRL) {
        let value = run.get(f::HOST_SPEC_CTRL);
        run.only_bits(
            cpu.writable.spec_ctrl,
            &SPEC_CTRL,
            (f::HOST_SPEC_CTRL, value),
        );
    }
}

#[inline(always)]
fn segments<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
) {
    macro_rules! selectors {
        ($($field:ident),*) => {$(
            let value = run.get(f::$field);
            run.only_bits(0xfff8, &SELECTOR, (f::$field, value));
        )*};
    }
    selectors!(
        HOST_CS_SELECTOR,
        HOST_SS_SELECTOR,
        HOST_DS_SELECTOR,
        HOST_ES_SELECTOR
    );
    selectors!(HOST_FS_SELECTOR, HOST_GS_SELECTOR, HOST_TR_SELECTOR);
    let cs = run.get(f::HOST_CS_SELECTOR);
    run.require(
        cs != 0,
        &CS_NULL,
        (f::HOST_CS_SELECTOR, cs),
        Expected::AnyBut(0),
    );
    let tr = run.get(f::HOST_TR_SELECTOR);
    run.require(
        tr != 0,
        &TR_NULL,
        (f::HOST_TR_SELECTOR, tr),
        Expected::AnyBut(0),
    );
    if !c.exit.contains(ExitPrimary::HOST_ADDRESS_SPACE_SIZE) {
        let ss = run.get(f::HOST_SS_SELECTOR);
        run.require(
            ss != 0,
            &SS_NULL,
            (f::HOST_SS_SELECTOR, ss),
            Expected::AnyBut(0),
        );
    }
    macro_rules! bases {
        ($($field:ident),*) => {$(
            let value = run.get(f::$field);
            run.canonical(&BASE, (f::$field, value));
        )*};
    }
    bases!(
        HOST_FS_BASE,
        HOST_GS_BASE,
        HOST_GDTR_BASE,
        HOST_IDTR_BASE,
        HOST_TR_BASE
    );
}

#[inline(always)]
fn size<S: Fields, M: PhysicalMemory, K: Sink + ?Sized>(run: &mut Run<'_, S, M, K>, c: &Controls) {
    let large = c.exit.contains(ExitPrimary::HOST_ADDRESS_SPACE_SIZE);
    let at = (f::PRIMARY_EXIT_CONTROLS, u64::from(c.exit.bits()));
    let says = Expected::AsTheRuleSays;
    if run.now.ia32e_mode {
        run.require(large, &IN_IA32E, at, says);
    } else {
        run.require(!large && !c.ia32e_guest(), &OUTSIDE_IA32E, at, says);
    }
    let (cr4, rip) = (run.get(f::HOST_CR4), run.get(f::HOST_RIP));
    if large {
        run.require(cr4 & 1 << 5 != 0, &PAE, (f::HOST_CR4, cr4), says);
        run.canonical(&RIP, (f::HOST_RIP, rip));
    } else {
        let entry = (f::ENTRY_CONTROLS, u64::from(c.entry.bits()));
        run.require(!c.ia32e_guest(), &GUEST_LARGER, entry, says);
        run.only_bits(!(1 << 17 | 1 << 32), &CR4_LEGACY, (f::HOST_CR4, cr4));
        run.only_bits(0xffff_ffff, &RIP_LEGACY, (f::HOST_RIP, rip));
    }
    if c.exit.contains(ExitPrimary::LOAD_CET) {
        let (s_cet, ssp) = (
            (f::HOST_S_CET, run.get(f::HOST_S_CET)),
            (f::HOST_SSP, run.get(f::HOST_SSP)),
        );
        super::guest::registers::s_cet(run, &S_CET, s_cet);
        run.only_bits(!3, &SSP_ALIGNED, ssp);
        for value in [s_cet, ssp] {
            if large {
                run.canonical(&CET, value);
            } else {
                run.only_bits(0xffff_ffff, &CET_LEGACY, value);
            }
        }
        let table = (
            f::HOST_INTERRUPT_SSP_TABLE,
            run.get(f::HOST_INTERRUPT_SSP_TABLE),
        );
        run.canonical(&SSP_TABLE, table);
    }
}
