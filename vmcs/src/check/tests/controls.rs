// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! "VM-Execution Control Fields".

use super::*;

const PIN: u32 = 0x4000;
const PRIMARY: u32 = 0x4002;
const SECONDARY: u32 = 0x401e;
const TERTIARY: u32 = 0x2034;
const EXIT: u32 = 0x400c;
const ENTRY: u32 = 0x4012;
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

pub(super) fn cases() -> Vec<Case> {
    let mut cases = reserved();
    cases.extend(addresses());
    cases.extend(apic());
    cases.extend(ept());
    cases.extend(tertiary());
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
