// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Checks on the entries of the VM-entry MSR-load area.
//!
//! Which value an MSR takes is the model's affair; [`MsrLoading`] is where a caller says it. [`Processor`] knows the
//! architectural MSRs a hypervisor usually loads.

use super::{
    context::{Controls, Run},
    memory::PhysicalMemory,
    report::{Expected, Place, Sink},
    rule::{Area, declare},
};
use crate::{capability::Processor, fields as f, store::Fields};

declare! { RULES: Area::MsrLoad, "Loading MSRs";
    FS_GS_BASE = "msr-load.fs-gs-base", [ENTRY_MSR_LOAD_ADDRESS],
        "An entry must not load IA32_FS_BASE (C0000100H) or IA32_GS_BASE (C0000101H).";
    X2APIC = "msr-load.x2apic", [ENTRY_MSR_LOAD_ADDRESS],
        "An entry must not load an MSR from 800H to 8FFH, which are x2APIC registers.";
    SMM_ONLY = "msr-load.smm-only", [ENTRY_MSR_LOAD_ADDRESS],
        "Outside SMM, an entry must not load an MSR that only SMM may write, such as IA32_SMM_MONITOR_CTL (9BH).";
    MODEL = "msr-load.model", [ENTRY_MSR_LOAD_ADDRESS],
        "An entry must not load an MSR that the processor keeps from being loaded, such as IA32_BIOS_UPDT_TRIG (79H).";
    RESERVED = "msr-load.reserved", [ENTRY_MSR_LOAD_ADDRESS],
        "Bits 63:32 of an entry must be 0.";
    VALUE = "msr-load.value", [ENTRY_MSR_LOAD_ADDRESS],
        "An entry must hold a value that WRMSR would write at CPL 0 without a general-protection exception.";
}

/// `IA32_EFER`.
const EFER: u64 = 0xc000_0080;

/// What becomes of loading a value into an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum MsrVerdict {
    /// The MSR takes the value.
    Loads,
    /// WRMSR would fault.
    Faults,
    /// The processor does not load this MSR on VM entry.
    NotLoadable,
    /// Nobody knows; the rule is undecided.
    Unknown,
}

/// Knows which values MSRs take.
pub trait MsrLoading {
    /// What becomes of loading `value` into MSR `index`. Not asked of MSRs that no processor loads; that `IA32_EFER.LME` stays while
    /// the guest pages is checked besides.
    fn load(&self, index: u32, value: u64) -> MsrVerdict;
}

impl MsrLoading for Processor {
    fn load(&self, index: u32, value: u64) -> MsrVerdict {
        let faults_unless = |fine| {
            if fine {
                MsrVerdict::Loads
            } else {
                MsrVerdict::Faults
            }
        };
        let only = |bits: u64| faults_unless(value & !bits == 0);
        match u64::from(index) {
            // IA32_BIOS_UPDT_TRIG
            0x79 => MsrVerdict::NotLoadable,
            // IA32_SPEC_CTRL
            0x48 => only(self.writable.spec_ctrl),
            // IA32_SYSENTER_CS
            0x174 => MsrVerdict::Loads,
            // IA32_SYSENTER_ESP and EIP, LSTAR, CSTAR, KERNEL_GS_BASE
            0x175 | 0x176 | 0xc000_0082 | 0xc000_0083 | 0xc000_0102 => {
                faults_unless(self.is_canonical(value))
            }
            // IA32_DEBUGCTL
            0x1d9 => only(self.writable.debugctl),
            // IA32_PAT
            0x277 => faults_unless(super::guest::registers::pat_is_valid(value)),
            // IA32_PERF_GLOBAL_CTRL
            0x38f => only(self.writable.perf_global_ctrl),
            // IA32_EFER: LMA is not written; that LME changes only without paging is the caller's to see.
            EFER => only(self.writable.efer),
            // IA32_STAR, IA32_FMASK
            0xc000_0081 => MsrVerdict::Loads,
            0xc000_0084 => only(0xffff_ffff),
            // IA32_TSC_AUX
            0xc000_0103 => only(0xffff_ffff),
            _ => MsrVerdict::Unknown,
        }
    }
}

/// Entries looked at, at most. Counts above what `IA32_VMX_MISC` recommends may cause a machine check; a count of
/// 2^32 - 1 must not cost minutes here.
const MOST_ENTRIES: u64 = 4096;

#[inline(always)]
pub(super) fn check<S: Fields, M: PhysicalMemory, K: Sink + ?Sized, L: MsrLoading>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    loading: &L,
) {
    let count = run.get(f::ENTRY_MSR_LOAD_COUNT);
    if count != 0 {
        entries(run, c, count, loading);
    }
}

/// Whether loading `value` into `IA32_EFER` changes LME while the guest has paging enabled: then, when the list is read, LME is as
/// "IA-32e mode guest" says.
fn changes_lme(c: &Controls, value: u64) -> bool {
    const PG: u64 = 1 << 31;
    const LME: u64 = 1 << 8;
    c.guest_cr0 & PG != 0 && (value & LME != 0) != c.ia32e_guest()
}

#[inline(never)]
fn entries<S: Fields, M: PhysicalMemory, K: Sink + ?Sized, L: MsrLoading>(
    run: &mut Run<'_, S, M, K>,
    c: &Controls,
    count: u64,
    loading: &L,
) {
    let start = run.get(f::ENTRY_MSR_LOAD_ADDRESS);
    for at in 0..count.min(MOST_ENTRIES) {
        let Some(bytes) = run.read_memory::<16>(&VALUE, start.wrapping_add(at << 4)) else {
            return;
        };
        let entry = u128::from_le_bytes(bytes);
        let (word, value) = (entry as u64, (entry >> 64) as u64);
        let place = Place::MsrEntry {
            number: (at as u32).saturating_add(1),
            index: word,
        };
        let rule = match word {
            0xc000_0100 | 0xc000_0101 => &FS_GS_BASE,
            0x800..=0x8ff => &X2APIC,
            0x9b if !run.now.smm => &SMM_ONLY,
            0x1_0000_0000.. => &RESERVED,
            index => match loading.load(index as u32, value) {
                MsrVerdict::Loads | MsrVerdict::Unknown
                    if index == EFER && changes_lme(c, value) =>
                {
                    &VALUE
                }
                MsrVerdict::Loads => continue,
                MsrVerdict::Faults => &VALUE,
                MsrVerdict::NotLoadable => &MODEL,
                MsrVerdict::Unknown => {
                    run.undecided(&VALUE);
                    continue;
                }
            },
        };
        run.broken(rule, place, value, Expected::AsTheRuleSays);
    }
    if count > MOST_ENTRIES {
        run.undecided(&VALUE);
    }
}
