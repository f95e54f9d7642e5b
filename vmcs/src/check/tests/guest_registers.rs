// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! "Checks on Guest Control Registers, Debug Registers, and MSRs", and on descriptor tables, RIP, RFLAGS and SSP.

use super::*;

const ENTRY: u32 = 0x4012;
const CR0: u32 = 0x6800;
const CR4: u32 = 0x6804;
const EFER: u32 = 0x2806;
const RIP: u32 = 0x681e;
const RFLAGS: u32 = 0x6820;
const CS: u32 = 0x4816;

fn canonical(rule: &'static str, field: u32, enabled: impl Into<Vec<Change>>) -> Case {
    case(rule)
        .base(enabled)
        .breaks([set(field, 1 << 56)])
        .breaks([set(field, 0xfeff_ffff_ffff_f000)])
        .passes([set(field, 0x00ff_ffff_ffff_f000)])
        .passes([set(field, 0xff00_0000_0000_0000)])
        .reports(field.into(), 1 << 56)
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = control_registers();
    cases.extend(msrs());
    cases.extend(newer());
    cases.extend(pointers());
    cases
}

fn control_registers() -> Vec<Case> {
    let mut no_lam = presets::everything();
    no_lam.features = Default::default();
    vec![
        case("guest.cr0.fixed")
            .breaks([not(CR0, 1 << 5)])
            .breaks([or(CR0, 1 << 32)])
            .passes([or(CR0, 3 << 29)])
            .passes([or(CR0, 1 << 18)]),
        // Without "unrestricted guest", PE and PG are fixed too.
        case("guest.cr0.fixed")
            .seed(Seed::Protected)
            .breaks([not(CR0, 1 << 31)])
            .passes([or(0x401e, 0x82), not(CR0, 1 << 31)]),
        // NE stays fixed in real mode.
        case("guest.cr0.fixed")
            .seed(Seed::RealMode)
            .breaks([not(CR0, 1 << 5)])
            .passes([]),
        case("guest.cr0.pg-pe")
            .seed(Seed::RealMode)
            .breaks([or(CR0, 1 << 31)])
            .passes([or(CR0, 1 << 31 | 1)])
            .reports(CR0.into(), 0x8000_0030),
        case("guest.cr4.fixed")
            .breaks([not(CR4, 1 << 13)])
            .breaks([or(CR4, 1 << 15)])
            .breaks([or(CR4, 1 << 63)])
            .passes([or(CR4, 1 << 22)]),
        case("guest.cr4.cet-wp")
            .base([or(CR4, 1 << 23)])
            .breaks([not(CR0, 1 << 16)])
            .passes([]),
        case("guest.ia32e.paging")
            .seed(Seed::LongMode)
            .base([or(0x401e, 0x82)])
            .breaks([not(CR0, 1 << 31)])
            .passes([]),
        case("guest.ia32e.pae")
            .breaks([not(CR4, 1 << 5)])
            .passes([]),
        case("guest.cr4.pcide")
            .seed(Seed::Protected)
            .breaks([or(CR4, 1 << 17)])
            .passes([]),
        case("guest.cr4.pcide")
            .seed(Seed::Pae)
            .breaks([or(CR4, 1 << 17)])
            .passes([]),
        case("guest.cr4.fred")
            .seed(Seed::Protected)
            .breaks([or(CR4, 1 << 32)])
            .along(["guest.fred.long"])
            .passes([]),
        case("guest.cr3.reserved")
            .breaks([set(0x6802, 1 << 46)])
            .breaks([set(0x6802, 1 << 63)])
            .passes([set(0x6802, (1 << 46) - 1)])
            .passes([set(0x6802, 3 << 61)]),
        case("guest.cr3.reserved")
            .cpu(no_lam)
            .breaks([set(0x6802, 1 << 62)])
            .passes([]),
    ]
}

fn msrs() -> Vec<Case> {
    vec![
        case("guest.debugctl.reserved")
            .breaks([set(0x2802, 1 << 2)])
            .breaks([set(0x2802, 1 << 16)])
            .passes([set(0x2802, 0xffc3)])
            .passes([not(ENTRY, 1 << 2), set(0x2802, 1 << 2)]),
        case("guest.dr7.reserved")
            .breaks([set(0x681a, 1 << 32)])
            .passes([set(0x681a, 0xffff_ffff)])
            .passes([not(ENTRY, 1 << 2), set(0x681a, 1 << 32)]),
        canonical("guest.sysenter-esp.canonical", 0x6824, []),
        canonical("guest.sysenter-eip.canonical", 0x6826, []),
        case("guest.perf-global-ctrl.reserved")
            .base([or(ENTRY, 1 << 13)])
            .breaks([set(0x2808, 1 << 8)])
            .passes([set(0x2808, 0x7_0000_00ff)]),
        case("guest.pat.types")
            .breaks([set(0x2804, 2)])
            .breaks([set(0x2804, 3 << 56)])
            .breaks([set(0x2804, 8 << 8)])
            .breaks([set(0x2804, 0xff << 24)])
            .passes([set(0x2804, 0x0001_0405_0607_0100)])
            .passes([not(ENTRY, 1 << 14), set(0x2804, 2)]),
        case("guest.efer.reserved")
            .breaks([or(EFER, 1 << 1)])
            .breaks([or(EFER, 1 << 9)])
            .passes([or(EFER, 1)])
            .passes([not(ENTRY, 1 << 15), set(EFER, u64::MAX)]),
        case("guest.efer.lma")
            .breaks([not(EFER, 5 << 8)])
            .passes([]),
        case("guest.efer.lma")
            .seed(Seed::RealMode)
            .breaks([or(EFER, 1 << 10)])
            .passes([or(EFER, 1 << 8)]),
        case("guest.efer.lme")
            .breaks([not(EFER, 1 << 8)])
            .passes([]),
        case("guest.efer.lme")
            .seed(Seed::Protected)
            .breaks([or(EFER, 1 << 8)])
            .passes([]),
    ]
}

fn newer() -> Vec<Case> {
    let cet = [or(ENTRY, 1 << 20)];
    let fred = [or(ENTRY, 1 << 23)];
    vec![
        case("guest.bndcfgs.reserved")
            .base([or(ENTRY, 1 << 16)])
            .breaks([set(0x2812, 4)])
            .breaks([set(0x2812, 1 << 11)])
            .passes([set(0x2812, 3)]),
        canonical("guest.bndcfgs.canonical", 0x2812, [or(ENTRY, 1 << 16)]),
        case("guest.rtit-ctl.reserved")
            .base([or(ENTRY, 1 << 18)])
            .breaks([set(0x2814, 1 << 63)])
            .passes([set(0x2814, 1)]),
        canonical("guest.s-cet.canonical", 0x6828, cet),
        case("guest.s-cet.reserved")
            .base(cet)
            .breaks([set(0x6828, 1 << 6)])
            .breaks([set(0x6828, 3 << 10)])
            .passes([set(0x6828, 0x103f)])
            .passes([set(0x6828, 1 << 11)])
            .passes([not(ENTRY, 1 << 20), set(0x6828, 1 << 6)]),
        canonical("guest.interrupt-ssp-table.canonical", 0x682c, cet),
        case("guest.lbr-ctl.reserved")
            .base([or(ENTRY, 1 << 21)])
            .breaks([set(0x2816, 1 << 23)])
            .passes([set(0x2816, 0x7f_000f)]),
        case("guest.pkrs.reserved")
            .base([or(ENTRY, 1 << 22)])
            .breaks([set(0x2818, 1 << 32)])
            .passes([set(0x2818, 0xffff_ffff)]),
        case("guest.uinv.reserved")
            .base([or(ENTRY, 1 << 19)])
            .breaks([set(0x814, 0x100)])
            .passes([set(0x814, 0xff)]),
        case("guest.fred-config.reserved")
            .base(fred)
            .breaks([set(0x281a, 1 << 2)])
            .breaks([set(0x281a, 1 << 11)])
            .passes([set(0x281a, 0xffff_ffff_ffff_f7cb)]),
        canonical("guest.fred-config.canonical", 0x281a, fred),
        case("guest.fred-rsp")
            .base(fred)
            .breaks([set(0x281c, 32)])
            .breaks([set(0x281e, 1 << 56)])
            .breaks([set(0x2820, 1)])
            .passes([set(0x2820, 0xffff_ffff_ffff_ffc0)]),
        case("guest.fred-ssp")
            .base(fred)
            .breaks([set(0x2824, 4)])
            .breaks([set(0x2826, 1 << 56)])
            .breaks([set(0x2828, 1)])
            .passes([set(0x2828, 0xffff_ffff_ffff_fff8)]),
        case("guest.spec-ctrl.reserved")
            .base([or(ENTRY, 1 << 24)])
            .breaks([set(0x282e, 1 << 3)])
            .passes([set(0x282e, 0x5f7)]),
        case("guest.ssp.aligned")
            .base(cet)
            .breaks([set(0x682a, 1)])
            .breaks([set(0x682a, 2)])
            .passes([set(0x682a, 4)]),
        case("guest.ssp.high")
            .seed(Seed::Protected)
            .base(cet)
            .breaks([set(0x682a, 1 << 32)])
            .passes([set(0x682a, 0xffff_fffc)])
            .passes([not(ENTRY, 1 << 20), set(0x682a, 1 << 32)]),
        case("guest.ssp.canonical")
            .base(cet)
            .breaks([set(0x682a, 1 << 57)])
            .breaks([set(0x682a, 1 << 63)])
            .passes([set(0x682a, 1 << 56)])
            .passes([set(0x682a, 0xfe00_0000_0000_0000)]),
    ]
}

fn pointers() -> Vec<Case> {
    let mut bases = case("guest.descriptor-table.base");
    for field in [0x6816, 0x6818] {
        bases = bases
            .breaks([set(field, 1 << 56)])
            .passes([set(field, 0xff00_0000_0000_0000)]);
    }
    vec![
        bases,
        case("guest.descriptor-table.limit")
            .breaks([set(0x4810, 0x1_0000)])
            .breaks([set(0x4812, 0x8000_0000)])
            .passes([set(0x4810, 0xffff), set(0x4812, 0)]),
        case("guest.rip.high")
            .seed(Seed::Protected)
            .breaks([set(RIP, 1 << 32)])
            .passes([set(RIP, 0xffff_ffff)]),
        // Compatibility mode: the L bit is clear.
        case("guest.rip.high")
            .base([not(CS, 1 << 13), or(CS, 1 << 14)])
            .breaks([set(RIP, 1 << 32)])
            .passes([set(RIP, 0xffff_ffff)]),
        case("guest.rip.canonical")
            .breaks([set(RIP, 1 << 57)])
            .breaks([set(RIP, 0xfdff_ffff_ffff_ffff)])
            // The guest may be one past the canonical range.
            .passes([set(RIP, 1 << 56)])
            .passes([set(RIP, 0xfe00_0000_0000_0000)]),
        case("guest.rflags.reserved")
            .breaks([set(RFLAGS, 0)])
            .breaks([set(RFLAGS, 0xa)])
            .breaks([set(RFLAGS, 0x22)])
            .breaks([set(RFLAGS, 0x8002)])
            .breaks([set(RFLAGS, 0x40_0002)])
            .breaks([set(RFLAGS, 1 << 63 | 2)])
            .passes([set(RFLAGS, 0x3d_7fd7)]),
        case("guest.rflags.vm")
            .seed(Seed::RealMode)
            .base([
                set(0x4814, 0xf3),
                set(0x4816, 0xf3),
                set(0x4818, 0xf3),
                set(0x481a, 0xf3),
                set(0x481c, 0xf3),
                set(0x481e, 0xf3),
            ])
            .breaks([or(RFLAGS, 1 << 17)])
            .passes([or(RFLAGS, 1 << 17), or(CR0, 1)]),
        case("guest.rflags.if")
            .breaks([set(0x4016, 0x8000_0020)])
            .passes([set(0x4016, 0x8000_0020), or(RFLAGS, 1 << 9)])
            .passes([set(0x4016, 0x0000_0020)]),
    ]
}
