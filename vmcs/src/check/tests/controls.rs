// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! "Checks on VMX Controls": execution, exit and entry control fields.

use super::*;

const PIN: u32 = 0x4000;
const PRIMARY: u32 = 0x4002;
const SECONDARY: u32 = 0x401e;
const TERTIARY: u32 = 0x2034;
const EXIT: u32 = 0x400c;
const ENTRY: u32 = 0x4012;
const EVENT: u32 = 0x4016;
const EPTP: u32 = 0x201a;

const TPR_SHADOW: u64 = 1 << 21;
const EPT: u64 = 1 << 1;

/// A page-aligned (or otherwise aligned) physical address of at most 46 bits, checked where `enabled`.
fn address(
    rule: &'static str,
    field: u32,
    alignment: u64,
    enabled: impl Into<Vec<Change>>,
) -> Case {
    case(rule)
        .base(enabled)
        .breaks([set(field, alignment / 2)])
        .breaks([set(field, 1 << 46)])
        .breaks([set(field, 1 << 63)])
        .passes([set(field, 0)])
        .passes([set(field, (1 << 46) - alignment)])
        .reports(field.into(), alignment / 2)
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

pub(super) fn cases() -> Vec<Case> {
    let mut cases = reserved();
    cases.extend(addresses());
    cases.extend(apic());
    cases.extend(ept());
    cases.extend(tertiary());
    cases.extend(transitions());
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

fn reserved() -> Vec<Case> {
    vec![
        case("execution.pin-based.reserved")
            .breaks([or(PIN, 1 << 8)])
            .breaks([not(PIN, 1 << 1)])
            .passes([or(PIN, 1 << 5)])
            .reports(PIN.into(), 0x11e),
        case("execution.primary.reserved")
            .breaks([not(PRIMARY, 1 << 13)])
            .breaks([or(PRIMARY, 1)])
            .passes([or(PRIMARY, 1 << 15 | 1 << 16)]),
        case("execution.secondary.reserved")
            .cpu(presets::bochs_skylake_x())
            .breaks([or(SECONDARY, 1 << 15)])
            .passes([not(PRIMARY, 1 << 31), or(SECONDARY, 1 << 15)])
            .passes([or(SECONDARY, 1 << 12)])
            .reports(SECONDARY.into(), 1 << 15),
        case("execution.tertiary.reserved")
            .breaks([or(PRIMARY, 1 << 17), set(TERTIARY, 1 << 10)])
            .passes([set(TERTIARY, 1 << 10)])
            .passes([or(PRIMARY, 1 << 17), set(TERTIARY, 1 << 9)]),
        case("execution.cr3-target-count")
            .breaks([set(0x400a, 5)])
            .passes([set(0x400a, 4)])
            .reports(0x400a, 5),
        case("execution.virtual-nmis.nmi-exiting")
            .breaks([not(PIN, 1 << 3), or(PIN, 1 << 5)])
            .passes([not(PIN, 1 << 3)]),
        case("execution.nmi-window.virtual-nmis")
            .breaks([or(PRIMARY, 1 << 22)])
            .passes([or(PRIMARY, 1 << 22), or(PIN, 1 << 5)]),
        case("execution.vpid.not-zero")
            .base([or(SECONDARY, 1 << 5)])
            .breaks([set(0, 0)])
            .passes([set(0, 1)])
            .passes([set(0, 0xffff)]),
        case("execution.tsc-multiplier.not-zero")
            .base([or(SECONDARY, 1 << 25)])
            .breaks([set(0x2032, 0)])
            .passes([set(0x2032, 1)]),
        case("execution.rtit.tracing")
            .at(Moment {
                tracing: true,
                ..Moment::default()
            })
            .breaks([or(ENTRY, 1 << 18)])
            .passes([]),
        case("execution.pt-guest-physical.load-rtit")
            .base([or(SECONDARY, 1 << 24 | EPT), or(EXIT, 1 << 25)])
            .breaks([])
            .passes([or(ENTRY, 1 << 18)]),
        case("execution.pt-guest-physical.clear-rtit")
            .base([or(SECONDARY, 1 << 24 | EPT), or(ENTRY, 1 << 18)])
            .breaks([])
            .passes([or(EXIT, 1 << 25)]),
    ]
}

fn addresses() -> Vec<Case> {
    let io = [or(PRIMARY, 1 << 25)];
    let shadowing = [or(SECONDARY, 1 << 14)];
    let pasid = [or(SECONDARY, 1 << 21)];
    vec![
        address("execution.io-bitmap-a.address", 0x2000, 0x1000, io),
        address("execution.io-bitmap-b.address", 0x2002, 0x1000, io),
        address(
            "execution.msr-bitmap.address",
            0x2004,
            0x1000,
            [or(PRIMARY, 1 << 28)],
        ),
        address(
            "execution.virtual-apic.address",
            0x2012,
            0x1000,
            [or(PRIMARY, TPR_SHADOW)],
        ),
        address(
            "execution.apic-access.address",
            0x2014,
            0x1000,
            [or(SECONDARY, 1)],
        ),
        address(
            "execution.pml.address",
            0x200e,
            0x1000,
            [or(SECONDARY, 1 << 17 | EPT)],
        ),
        address(
            "execution.spp-table.address",
            0x2030,
            0x1000,
            [or(SECONDARY, 1 << 23 | EPT)],
        ),
        address(
            "execution.eptp-list.address",
            0x2024,
            0x1000,
            [or(SECONDARY, 1 << 13 | EPT), set(0x2018, 1)],
        ),
        address("execution.vmread-bitmap.address", 0x2026, 0x1000, shadowing),
        address(
            "execution.vmwrite-bitmap.address",
            0x2028,
            0x1000,
            shadowing,
        ),
        address(
            "execution.ve-information.address",
            0x202a,
            0x1000,
            [or(SECONDARY, 1 << 18)],
        ),
        address(
            "execution.pasid-directory-low.address",
            0x2038,
            0x1000,
            pasid,
        ),
        address(
            "execution.pasid-directory-high.address",
            0x203a,
            0x1000,
            pasid,
        ),
        // With a switched-off control, anything goes.
        case("execution.io-bitmap-a.address")
            .breaks([or(PRIMARY, 1 << 25), set(0x2000, 1)])
            .passes([
                set(0x2000, 1),
                set(0x2002, u64::MAX),
                set(0x2004, 5),
                set(0x2012, 7),
            ]),
    ]
}

fn apic() -> Vec<Case> {
    let posted = [
        or(PIN, 1 << 7 | 1),
        or(PRIMARY, TPR_SHADOW),
        or(SECONDARY, 1 << 9),
        or(EXIT, 1 << 15),
    ];
    vec![
        case("execution.tpr-threshold.reserved")
            .base([or(PRIMARY, TPR_SHADOW), or(SECONDARY, 1)])
            .breaks([set(0x401c, 0x10)])
            .passes([set(0x401c, 0xf)])
            .passes([or(SECONDARY, 1 << 9), or(PIN, 1), set(0x401c, 0x10)]),
        case("execution.apic-virtualization.tpr-shadow")
            .breaks([or(SECONDARY, 1 << 4)])
            .breaks([or(SECONDARY, 1 << 8)])
            .breaks([or(SECONDARY, 1 << 9), or(PIN, 1)])
            .passes([or(SECONDARY, 1 << 4 | 1 << 8), or(PRIMARY, TPR_SHADOW)]),
        case("execution.ipi-virtualization.tpr-shadow")
            .base([or(PRIMARY, 1 << 17), set(TERTIARY, 1 << 4)])
            .breaks([])
            .passes([or(PRIMARY, TPR_SHADOW)]),
        case("execution.x2apic.apic-accesses")
            .base([or(PRIMARY, TPR_SHADOW)])
            .breaks([or(SECONDARY, 1 << 4 | 1)])
            .passes([or(SECONDARY, 1 << 4)]),
        case("execution.virtual-interrupts.external-interrupt-exiting")
            .base([or(PRIMARY, TPR_SHADOW), or(SECONDARY, 1 << 9)])
            .breaks([])
            .passes([or(PIN, 1)]),
        case("execution.posted-interrupts.virtual-interrupts")
            .base(posted)
            .breaks([not(SECONDARY, 1 << 9)])
            .passes([]),
        case("execution.posted-interrupts.acknowledge")
            .base(posted)
            .breaks([not(EXIT, 1 << 15)])
            .passes([]),
        case("execution.posted-interrupts.vector")
            .base(posted)
            .breaks([set(2, 0x100)])
            .passes([set(2, 0xff)]),
        address("execution.posted-interrupts.descriptor", 0x2016, 64, posted),
    ]
}

fn ept() -> Vec<Case> {
    let on = [or(SECONDARY, EPT)];
    vec![
        case("execution.eptp.memory-type")
            .base(on)
            .breaks([not(EPTP, 7), or(EPTP, 1)])
            .breaks([or(EPTP, 7)])
            .passes([not(EPTP, 7)]),
        case("execution.eptp.walk-length")
            .base(on)
            .breaks([not(EPTP, 7 << 3), or(EPTP, 2 << 3)])
            .breaks([or(EPTP, 7 << 3)])
            .passes([not(EPTP, 7 << 3), or(EPTP, 4 << 3)]),
        case("execution.eptp.walk-length")
            .cpu(presets::core_i7_5600u())
            .base(on)
            .breaks([not(EPTP, 7 << 3), or(EPTP, 4 << 3)])
            .passes([]),
        case("execution.eptp.accessed-dirty")
            .cpu(presets::core_i7_3960x())
            .base(on)
            .breaks([or(EPTP, 1 << 6)])
            .passes([]),
        case("execution.eptp.reserved")
            .base(on)
            .breaks([or(EPTP, 1 << 8)])
            .breaks([or(EPTP, 1 << 11)])
            .passes([or(EPTP, 1 << 7 | 1 << 6)]),
        case("execution.eptp.reserved")
            .cpu(presets::bochs_skylake_x())
            .base(on)
            .breaks([or(EPTP, 1 << 7)])
            .passes([or(EPTP, 1 << 6)]),
        case("execution.eptp.address")
            .base(on)
            .breaks([or(EPTP, 1 << 46)])
            .passes([or(EPTP, 1 << 45)]),
        case("execution.secondary.ept")
            .breaks([or(SECONDARY, 1 << 17)])
            .breaks([or(SECONDARY, 1 << 7)])
            .breaks([or(SECONDARY, 1 << 22)])
            .breaks([or(SECONDARY, 1 << 23)])
            .breaks([
                or(SECONDARY, 1 << 24),
                or(ENTRY, 1 << 18),
                or(EXIT, 1 << 25),
            ])
            .passes([or(SECONDARY, 1 << 17 | 1 << 7 | 1 << 22 | 1 << 23 | EPT)]),
        case("execution.vm-functions.reserved")
            .base([or(SECONDARY, 1 << 13)])
            .breaks([set(0x2018, 2)])
            .passes([set(0x2018, 0)]),
        case("execution.eptp-switching.ept")
            .base([or(SECONDARY, 1 << 13)])
            .breaks([set(0x2018, 1)])
            .passes([set(0x2018, 1), or(SECONDARY, EPT)]),
    ]
}

fn tertiary() -> Vec<Case> {
    let on = |bit: u32| {
        [
            or(PRIMARY, 1 << 17 | TPR_SHADOW),
            or(SECONDARY, EPT),
            set(TERTIARY, 1 << bit),
        ]
    };
    let ipi = on(4);
    let timer = [
        or(PRIMARY, 1 << 17 | TPR_SHADOW),
        or(SECONDARY, 1 << 9),
        or(PIN, 1),
        set(TERTIARY, 1 << 8),
    ];
    vec![
        case("execution.tertiary.ept")
            .base([or(PRIMARY, 1 << 17)])
            .breaks([set(TERTIARY, 1 << 1)])
            .breaks([set(TERTIARY, 1 << 2)])
            .breaks([set(TERTIARY, 1 << 3)])
            .breaks([set(TERTIARY, 1 << 12)])
            .passes([
                set(TERTIARY, 1 << 1 | 1 << 2 | 1 << 3 | 1 << 12),
                or(SECONDARY, EPT),
            ])
            .passes([set(TERTIARY, 1 << 7 | 1)]),
        case("execution.pid-pointer-table.address")
            .base(ipi)
            .breaks([set(0x2042, 4)])
            .passes([set(0x2042, 8)]),
        case("execution.pid-pointer-table.end")
            .base(ipi)
            .breaks([set(0x2042, (1 << 46) - 8), set(8, 1)])
            .passes([set(0x2042, (1 << 46) - 8), set(8, 0)])
            .passes([set(0x2042, (1 << 46) - 0x8_0000), set(8, 0xffff)]),
        case("execution.hlatp.reserved")
            .base(on(1))
            .breaks([set(0x2040, 1)])
            .breaks([set(0x2040, 1 << 5)])
            .breaks([set(0x2040, 1 << 11)])
            .passes([set(0x2040, 0x1018)]),
        case("execution.hlatp.address")
            .base(on(1))
            .breaks([set(0x2040, 1 << 46)])
            .passes([set(0x2040, 1 << 45)]),
        case("execution.apic-timer.virtual-interrupts")
            .base(timer)
            .breaks([not(SECONDARY, 1 << 9)])
            .passes([]),
        case("execution.apic-timer.rdtsc-exiting")
            .base(timer)
            .breaks([or(PRIMARY, 1 << 12)])
            .passes([]),
        case("execution.apic-timer.vector")
            .base(timer)
            .breaks([set(0xa, 0x100)])
            .passes([set(0xa, 0xff)]),
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
