// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! "Checks on Guest Non-Register State" and "Checks on Guest Page-Directory-Pointer-Table Entries".

use super::*;

const EVENT: u32 = 0x4016;
const BLOCKING: u32 = 0x4824;
const ACTIVITY: u32 = 0x4826;
const RFLAGS: u32 = 0x6820;
const PENDING: u32 = 0x6822;
const DEBUGCTL: u32 = 0x2802;
const LINK: u32 = 0x2800;

const IF: Change = Change {
    field: RFLAGS,
    clear: 0,
    set: 1 << 9,
};
const TF: Change = Change {
    field: RFLAGS,
    clear: 0,
    set: 1 << 8,
};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = activity();
    cases.extend(interruptibility());
    cases.extend(pending_debug());
    cases.extend(link_pointer());
    cases.extend(pdptes());
    cases
}

fn smm() -> Moment {
    Moment {
        smm: true,
        ..Moment::default()
    }
}

fn activity() -> Vec<Case> {
    let mut poor = presets::everything();
    poor.vmx.misc.0 &= !(1 << 7);
    let user = [
        or(0x804, 3),
        or(0x802, 3),
        or(0x4818, 3 << 5),
        or(0x4816, 3 << 5),
    ];
    let event =
        |state: u64, word: u64| [set(ACTIVITY, state), set(EVENT, word), IF, set(0x401a, 2)];
    vec![
        case("guest.activity.supported")
            .breaks([set(ACTIVITY, 4)])
            .breaks([set(ACTIVITY, u32::MAX.into())])
            .passes([set(ACTIVITY, 3)]),
        case("guest.activity.supported")
            .cpu(poor)
            .breaks([set(ACTIVITY, 2)])
            .passes([set(ACTIVITY, 1)])
            .passes([set(ACTIVITY, 3)]),
        case("guest.activity.hlt-dpl")
            .base(user)
            .breaks([set(ACTIVITY, 1)])
            .passes([set(ACTIVITY, 2)]),
        case("guest.activity.blocking")
            .base([IF])
            .breaks([set(ACTIVITY, 1), set(BLOCKING, 1)])
            .breaks([set(ACTIVITY, 2), set(BLOCKING, 2)])
            .passes([set(ACTIVITY, 1), set(BLOCKING, 8)]),
        case("guest.activity.event")
            // HLT: no #GP, no INT n, no SYSCALL.
            .breaks(event(1, 0x8000_0b0d))
            .breaks(event(1, 0x8000_0480))
            // Shutdown: no external interrupt, no #DB.
            .breaks(event(2, 0x8000_0020))
            .breaks(event(2, 0x8000_0301))
            // Wait-for-SIPI: nothing.
            .breaks(event(3, 0x8000_0202))
            .passes(event(1, 0x8000_0020))
            .passes(event(1, 0x8000_0202))
            .passes(event(1, 0x8000_0301))
            .passes(event(1, 0x8000_0312))
            .passes(event(1, 0x8000_0700))
            .passes(event(2, 0x8000_0202))
            .passes(event(2, 0x8000_0312))
            .passes(event(3, 0x0000_0202)),
        case("guest.activity.smm")
            .at(smm())
            .base([or(0x4012, 1 << 10), set(BLOCKING, 4)])
            .breaks([set(ACTIVITY, 3)])
            .passes([set(ACTIVITY, 1)]),
    ]
}

fn interruptibility() -> Vec<Case> {
    let mut old = presets::everything();
    old.features = crate::capability::Features::NMI_DESPITE_STI;
    let interrupt = [set(EVENT, 0x8000_0020), IF];
    let nmi = [set(EVENT, 0x8000_0202), IF];
    vec![
        case("guest.interruptibility.reserved")
            .breaks([set(BLOCKING, 1 << 5)])
            .breaks([set(BLOCKING, 1 << 31)])
            .passes([set(BLOCKING, 0x18)]),
        case("guest.interruptibility.sti-mov-ss")
            .base([IF])
            .breaks([set(BLOCKING, 3)])
            .passes([set(BLOCKING, 1)])
            .passes([set(BLOCKING, 2)]),
        case("guest.interruptibility.sti-if")
            .breaks([set(BLOCKING, 1)])
            .passes([set(BLOCKING, 1), IF])
            .passes([set(BLOCKING, 2)]),
        case("guest.interruptibility.interrupt")
            .base(interrupt)
            .breaks([set(BLOCKING, 1)])
            .breaks([set(BLOCKING, 2)])
            .passes([set(BLOCKING, 8)]),
        case("guest.interruptibility.nmi-mov-ss")
            .base(nmi)
            .breaks([set(BLOCKING, 2)])
            .passes([set(BLOCKING, 8)]),
        case("guest.interruptibility.nmi-sti")
            .base(nmi)
            .breaks([set(BLOCKING, 1)])
            .passes([]),
        case("guest.interruptibility.nmi-mov-ss")
            .cpu(old)
            .base(nmi)
            .breaks([set(BLOCKING, 2)])
            .passes([set(BLOCKING, 1)]),
        case("guest.interruptibility.smi-outside")
            .breaks([set(BLOCKING, 4)])
            .passes([]),
        case("guest.interruptibility.smi-outside")
            .breaks([set(BLOCKING, 0xc)])
            .passes([set(BLOCKING, 8)]),
        case("guest.interruptibility.smi-entry")
            .at(smm())
            .base([or(0x4012, 1 << 10)])
            .breaks([])
            .passes([set(BLOCKING, 4)]),
        case("guest.interruptibility.nmi-blocked")
            .base(nmi)
            .breaks([set(BLOCKING, 8), or(0x4000, 1 << 5)])
            .passes([set(BLOCKING, 8)])
            .passes([set(BLOCKING, 8), or(0x4000, 1 << 5), set(EVENT, 0)]),
        case("guest.interruptibility.enclave")
            .breaks([set(BLOCKING, 0x12)])
            .passes([set(BLOCKING, 0x10)]),
        case("guest.interruptibility.enclave")
            .cpu(presets::bochs_skylake_x())
            .breaks([set(BLOCKING, 0x10)])
            .passes([]),
    ]
}

fn pending_debug() -> Vec<Case> {
    let rtm = 1 << 16 | 1 << 12;
    let mut reserved = case("guest.pending-debug.reserved");
    for bit in [4, 10, 11, 13, 15, 17, 31, 63] {
        reserved = reserved.breaks([set(PENDING, 1 << bit)]);
    }
    vec![
        reserved.passes([set(PENDING, 0x500f)]),
        case("guest.pending-debug.bs-set")
            .base([IF, TF])
            .breaks([set(BLOCKING, 1)])
            .breaks([set(BLOCKING, 2)])
            .breaks([set(ACTIVITY, 1)])
            .passes([set(BLOCKING, 1), set(PENDING, 1 << 14)])
            .passes([set(BLOCKING, 1), set(DEBUGCTL, 2)])
            .passes([]),
        case("guest.pending-debug.bs-clear")
            .base([IF, set(PENDING, 1 << 14)])
            .breaks([set(BLOCKING, 1)])
            .breaks([set(ACTIVITY, 1)])
            .breaks([set(BLOCKING, 2), TF, set(DEBUGCTL, 2)])
            .passes([set(BLOCKING, 2), TF])
            .passes([]),
        case("guest.pending-debug.rtm")
            .breaks([set(PENDING, 1 << 16)])
            .breaks([set(PENDING, rtm | 1)])
            .breaks([set(PENDING, rtm | 1 << 14)])
            .breaks([set(PENDING, rtm), set(BLOCKING, 2)])
            .passes([set(PENDING, rtm)]),
        case("guest.pending-debug.rtm")
            .cpu(presets::bochs_skylake_x())
            .breaks([set(PENDING, rtm)])
            .passes([]),
    ]
}

fn link_pointer() -> Vec<Case> {
    vec![
        case("guest.link-pointer.address")
            .breaks([set(LINK, 0x800)])
            .breaks([set(LINK, 1 << 46)])
            .breaks([set(LINK, u64::MAX - 1)])
            .passes([set(LINK, (1 << 46) - 0x1000)])
            .passes([set(LINK, u64::MAX)]),
        case("guest.link-pointer.current")
            .at(Moment {
                current_vmcs: CurrentVmcs::At(0x5000),
                ..Moment::default()
            })
            .breaks([set(LINK, 0x5000)])
            .passes([set(LINK, 0x6000)]),
        // An entry to SMM is checked the same way.
        case("guest.link-pointer.current")
            .at(Moment {
                current_vmcs: CurrentVmcs::At(0x5000),
                ..smm()
            })
            .base([or(0x4012, 1 << 10), set(BLOCKING, 4)])
            .breaks([set(LINK, 0x5000)])
            .passes([set(LINK, 0x6000), set(0x200c, 0x6000)]),
        case("guest.link-pointer.executive")
            .at(Moment {
                current_vmcs: CurrentVmcs::At(0x5000),
                ..smm()
            })
            .base([set(0x200c, 0x6000)])
            .breaks([set(LINK, 0x6000)])
            .passes([set(LINK, 0x5000)]),
    ]
}

fn pdptes() -> Vec<Case> {
    let mut fields = case("guest.pdpte.field").seed(Seed::Pae);
    for field in [0x280a, 0x280c, 0x280e, 0x2810] {
        for bit in [1, 2, 5, 8, 46, 52, 63] {
            fields = fields.breaks([set(field, 1 | 1 << bit)]);
        }
        fields = fields
            .passes([set(field, !1)])
            .passes([set(field, 0x0000_3fff_ffff_fe19)]);
    }
    vec![
        fields,
        // Not with PAE paging off, nor in IA-32e mode.
        case("guest.pdpte.field")
            .seed(Seed::Pae)
            .breaks([set(0x280a, 3)])
            .passes([set(0x280a, 3), not(0x6804, 1 << 5)])
            .passes([set(0x280a, 3), not(0x6800, 1 << 31)]),
    ]
}
