// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which bits of the MSRs that VM entry loads are not reserved, as CPUID says. SDM Vol. 2A, "CPUID—CPU Identification"; each
//! register's own chapter.

use hvkit_vmcs::capability::Writable;

use super::Machine;

/// Every bit of `bits` where `set`.
const fn if_set(set: bool, bits: u64) -> u64 {
    if set { bits } else { 0 }
}

/// The lowest `count` bits.
fn lowest(count: u32) -> u64 {
    1u64.checked_shl(count)
        .map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

const fn bit(word: u32, number: u32) -> bool {
    word >> number & 1 != 0
}

/// What CPUID tells; the rest as in [`Writable::default`].
pub(super) fn writable(machine: &impl Machine) -> Writable {
    let last = machine.cpuid(0, 0).eax;
    let leaf = |leaf: u32, subleaf: u32| {
        if leaf <= last {
            machine.cpuid(leaf, subleaf)
        } else {
            super::Cpuid::default()
        }
    };
    let features = leaf(7, 0);
    let more = if features.eax >= 2 {
        leaf(7, 2)
    } else {
        super::Cpuid::default()
    };
    let usual = Writable::default();
    // Shadow stacks: SH_STK_EN, WR_SHSTK_EN. Indirect-branch tracking: the other bits below 12.
    let s_cet = if_set(bit(features.ecx, 7), 0x3) | if_set(bit(features.edx, 20), 0xc3c);
    // IBRS and STIBP, SSBD; IPRED_DIS_U and _S, RRSBA_DIS_U and _S, PSFD, DDPD_U, BHI_DIS_S.
    let spec_ctrl = if_set(bit(features.edx, 26) || bit(features.edx, 27), 0x3)
        | if_set(bit(features.edx, 31), 1 << 2)
        | if_set(bit(more.edx, 1), 0x3 << 3)
        | if_set(bit(more.edx, 2), 0x3 << 5)
        | if_set(bit(more.edx, 0), 1 << 7)
        | if_set(bit(more.edx, 3), 1 << 8)
        | if_set(bit(more.edx, 4), 1 << 10);
    Writable {
        // BLD: bus-lock detection.
        debugctl: usual.debugctl | if_set(bit(features.ecx, 24), 1 << 2),
        perf_global_ctrl: performance_counters(leaf(0xa, 0), leaf(1, 0)),
        rtit_ctl: if bit(features.ebx, 25) {
            processor_trace(leaf(0x14, 0), leaf(0x14, 1))
        } else {
            0
        },
        lbr_ctl: if bit(features.edx, 19) {
            last_branches(leaf(0x1c, 0))
        } else {
            0
        },
        spec_ctrl,
        s_cet,
        ..usual
    }
}

/// A bit for each counter, and one for the metrics. SDM Vol. 3B, "Architectural Performance Monitoring".
///
/// Whether there are metrics is in `IA32_PERF_CAPABILITIES`, which Bochs 2.7 lacks though its CPUID tells of it: where there may be
/// some, the bit is not called reserved.
fn performance_counters(leaf: super::Cpuid, features: super::Cpuid) -> u64 {
    let [version, general, ..] = leaf.eax.to_le_bytes();
    if version < 2 {
        return 0;
    }
    let fixed = lowest(leaf.edx & 0x1f) & 0xffff;
    let listed = if_set(version >= 5, u64::from(leaf.ecx) & 0xffff);
    let metrics = version >= 5 && bit(features.ecx, 15);
    lowest(u32::from(general).min(32)) | (fixed | listed) << 32 | if_set(metrics, 1 << 48)
}

/// `IA32_RTIT_CTL`. SDM Vol. 3C, "Intel Processor Trace", "IA32_RTIT_CTL MSR".
fn processor_trace(found: super::Cpuid, ranges: super::Cpuid) -> u64 {
    // TraceEn, OS, User, TSCEn, DisRETC, BranchEn.
    const ALWAYS: u64 = 0b10_1100_0000_1101;
    let ebx = |number, bits| if_set(bit(found.ebx, number), bits);
    let ranges = if found.eax >= 1 && bit(found.ebx, 2) {
        ranges.eax & 7
    } else {
        0
    };
    ALWAYS
        | ebx(0, 1 << 7) // CR3Filter
        | ebx(1, 1 << 1 | 0xf << 19 | 0xf << 24) // CYCEn, CycThresh, PSBFreq
        | ebx(3, 1 << 9 | 0xf << 14) // MTCEn, MTCFreq
        | ebx(4, 1 << 5 | 1 << 12) // FUPonPTW, PTWEn
        | ebx(5, 1 << 4) // PwrEvtEn
        | ebx(6, 1 << 56) // InjectPsbPmiOnEnable
        | ebx(7, 1 << 31) // EventEn
        | ebx(8, 1 << 55) // DisTNT
        | if_set(bit(found.ecx, 0), 1 << 8) // ToPA
        | if_set(bit(found.ecx, 3), 1 << 6) // FabricEn
        | lowest(ranges.min(4) << 2) << 32 // ADDRn_CFG
}

/// `IA32_LBR_CTL`. SDM Vol. 3B, "Last Branch Records".
fn last_branches(found: super::Cpuid) -> u64 {
    let ebx = |number, bits| if_set(bit(found.ebx, number), bits);
    // LBREn; OS and USR; the branch filters; CALL_STACK.
    1 | ebx(0, 0x6) | ebx(1, 0x7f << 16) | ebx(2, 1 << 3)
}
