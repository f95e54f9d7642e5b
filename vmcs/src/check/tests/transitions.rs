// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! "VM-Exit Control Fields" and "VM-Entry Control Fields".

use super::*;

const PIN: u32 = 0x4000;
const EXIT: u32 = 0x400c;
const ENTRY: u32 = 0x4012;
const EVENT: u32 = 0x4016;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = transitions();
    cases.extend(events());
    cases.extend(msr_list(
        "entry-controls.msr-load.address",
        "entry-controls.msr-load.end",
        0x4014,
        0x200a,
    ));
    cases.extend(msr_list(
        "exit.msr-store.address",
        "exit.msr-store.end",
        0x400e,
        0x2006,
    ));
    cases.extend(msr_list(
        "exit.msr-load.address",
        "exit.msr-load.end",
        0x4010,
        0x2008,
    ));
    cases
}

/// A list of `count` MSRs: 16-byte aligned, last byte within 46 bits.
fn msr_list(start: &'static str, end: &'static str, count: u32, field: u32) -> [Case; 2] {
    [
        case(start)
            .base([set(count, 1)])
            .breaks([set(field, 8)])
            .passes([set(field, 0x10)])
            .passes([set(count, 0), set(field, 8)])
            .passes([set(field, (1 << 46) - 16)])
            .reports(field.into(), 8),
        case(end)
            .breaks([set(count, 2), set(field, (1 << 46) - 16)])
            .breaks([set(count, 0x1_0001), set(field, (1 << 46) - 0x10_0000)])
            .passes([set(count, 2), set(field, (1 << 46) - 32)])
            .reports(field.into(), (1 << 46) - 16),
    ]
}

fn transitions() -> Vec<Case> {
    let smm = Moment {
        smm: true,
        ..Moment::default()
    };
    vec![
        case("exit.primary.reserved")
            .breaks([not(EXIT, 1)])
            .cpu(presets::bochs_skylake_x())
            .breaks([or(EXIT, 1 << 23)])
            .passes([or(EXIT, 1 << 18)]),
        case("exit.secondary.reserved")
            .breaks([or(EXIT, 1 << 31), set(0x2044, 1 << 4)])
            .passes([set(0x2044, 1 << 4)])
            .passes([or(EXIT, 1 << 31), set(0x2044, 0xf)]),
        case("exit.save-preemption-timer")
            .breaks([or(EXIT, 1 << 22)])
            .passes([or(EXIT, 1 << 22), or(PIN, 1 << 6)]),
        case("entry-controls.reserved")
            .cpu(presets::bochs_skylake_x())
            .breaks([or(ENTRY, 1 << 16)])
            .breaks([not(ENTRY, 1)])
            .passes([not(ENTRY, 1 << 2)]),
        case("entry-controls.smm.outside")
            .breaks([or(ENTRY, 1 << 11)])
            .passes([])
            .reports(ENTRY.into(), 0xdbff),
        case("entry-controls.smm.both")
            .at(smm)
            .base([or(0x4824, 4), set(0x200c, 0x1000)])
            .breaks([or(ENTRY, 3 << 10)])
            .passes([or(ENTRY, 1 << 10)])
            .passes([or(ENTRY, 1 << 11)]),
    ]
}

fn events() -> Vec<Case> {
    let event = |word: u64| [set(EVENT, word)];
    let real = |word: u64| [set(EVENT, word), set(0x4018, 0)];
    let mut old = presets::everything();
    old.vmx.primary.may_be_one &= !(1 << 27);
    old.vmx.cr4_fixed1 &= !(1 << 32);
    let mut free = presets::everything();
    free.vmx.basic.0 |= 1 << 56;
    let mut strict_length = presets::everything();
    strict_length.vmx.misc.0 &= !(1 << 30);
    vec![
        case("event.type")
            .breaks(event(0x8000_0120))
            .passes(event(0x0000_0120)),
        case("event.type")
            .cpu(old)
            .breaks(event(0x8000_0700))
            .passes([])
            .along(["event.vector"]),
        case("event.vector")
            .breaks(event(0x8000_0203))
            .breaks(event(0x8000_0320))
            .breaks(event(0x8000_0703))
            .breaks(event(0x8000_0701))
            .passes(event(0x8000_0202))
            .passes(event(0x8000_031f))
            .passes(event(0x8000_0700))
            // SYSCALL and SYSENTER, if the guest will use FRED transitions.
            .passes([set(EVENT, 0x8000_0701), or(0x6804, 1 << 32), set(0x401a, 2)])
            .passes([set(EVENT, 0x8000_0702), or(0x6804, 1 << 32), set(0x401a, 2)]),
        case("event.error-code.missing")
            .breaks(event(0x8000_0308))
            .breaks(event(0x8000_030a))
            .breaks(event(0x8000_030b))
            .breaks(event(0x8000_030c))
            .breaks(event(0x8000_030d))
            .breaks(event(0x8000_030e))
            .breaks(event(0x8000_0311))
            .passes(event(0x8000_0b0d))
            .passes(event(0x8000_0b11))
            .passes(event(0x8000_0309)),
        // With IA32_VMX_BASIC bit 56 any exception may come with an error code or without, but not in real mode.
        case("event.error-code.forbidden")
            .cpu(free)
            .breaks(event(0x8000_0a02))
            .passes(event(0x8000_030d))
            .passes(event(0x8000_0b00)),
        case("event.error-code.forbidden")
            .breaks(event(0x8000_0b00))
            .breaks(event(0x8000_0b07))
            .breaks(event(0x8000_0b09))
            .breaks(event(0x8000_0b0f))
            .breaks(event(0x8000_0b12))
            .breaks(event(0x8000_0b15))
            .breaks(event(0x8000_0a02))
            .breaks([set(EVENT, 0x8000_0c80), set(0x401a, 2)])
            .passes(event(0x8000_0b08)),
        case("event.error-code.forbidden")
            .seed(Seed::RealMode)
            .breaks(real(0x8000_0b0d))
            .passes(real(0x8000_030d)),
        case("event.nested")
            .breaks(event(0x8000_2202))
            .passes(event(0x8000_2b0d)),
        case("event.nested")
            .cpu(presets::bochs_skylake_x())
            .breaks(event(0x8000_2b0d))
            .passes(event(0x8000_0b0d)),
        case("event.reserved")
            .breaks(event(0x8000_1202))
            .breaks(event(0x8000_4202))
            .breaks(event(0xc000_0202))
            .passes(event(0x4000_0202)),
        case("event.error-code.value")
            .base(event(0x8000_0b0d))
            .breaks([set(0x4018, 0x1_0000)])
            .passes([set(0x4018, 0xffff)])
            .passes([set(EVENT, 0x8000_0301), set(0x4018, 0x1_0000)]),
        case("event.instruction-length")
            .breaks([set(EVENT, 0x8000_0480), set(0x401a, 16)])
            .breaks([set(EVENT, 0x8000_0501), set(0x401a, 16)])
            .breaks([set(EVENT, 0x8000_0603), set(0x401a, u32::MAX.into())])
            .breaks([
                set(EVENT, 0x8000_0701),
                or(0x6804, 1 << 32),
                set(0x401a, 16),
            ])
            .passes([set(EVENT, 0x8000_0480), set(0x401a, 15)])
            .passes([set(EVENT, 0x8000_0480), set(0x401a, 0)])
            .passes([set(EVENT, 0x8000_0202), set(0x401a, 16)]),
        case("event.instruction-length")
            .cpu(strict_length)
            .breaks([set(EVENT, 0x8000_0480), set(0x401a, 0)])
            .passes([set(EVENT, 0x8000_0480), set(0x401a, 1)]),
    ]
}
