// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host Segment and Descriptor-Table Registers", "Checks
//! Related to Address-Space Size".

use super::*;

const EXIT: u32 = 0x400c;
const ENTRY: u32 = 0x4012;
const CR0: u32 = 0x6c00;
const CR4: u32 = 0x6c04;
const EFER: u32 = 0x2c02;
const RIP: u32 = 0x6c16;

/// A 32-bit host: LMA clear, "host address-space size" clear.
fn host_32() -> (Moment, Vec<Change>) {
    let moment = Moment {
        ia32e_mode: false,
        ..Moment::default()
    };
    (moment, vec![not(EXIT, 1 << 9), set(EFER, 0x800)])
}

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
    let mut cases = registers();
    cases.extend(fred());
    cases.extend(segments());
    cases.extend(sizes());
    cases
}

fn registers() -> Vec<Case> {
    let cet = [or(EXIT, 1 << 28)];
    let mut no_lam = presets::everything();
    no_lam.features = Default::default();
    vec![
        case("host.cr0.fixed")
            .breaks([not(CR0, 1 << 5)])
            .breaks([not(CR0, 1)])
            .breaks([not(CR0, 1 << 31)])
            .breaks([or(CR0, 1 << 32)])
            .passes([or(CR0, 3 << 29)])
            .reports(CR0.into(), 0x8001_0013),
        case("host.cr4.fixed")
            .breaks([not(CR4, 1 << 13)])
            .breaks([or(CR4, 1 << 15)])
            .passes([or(CR4, 1 << 12)]),
        case("host.cr4.cet-wp")
            .base([or(CR4, 1 << 23)])
            .breaks([not(CR0, 1 << 16)])
            .passes([]),
        case("host.cr3.reserved")
            .breaks([set(0x6c02, 1 << 46)])
            .breaks([set(0x6c02, 1 << 63)])
            .breaks([set(0x6c02, 1 << 52)])
            .passes([set(0x6c02, (1 << 46) - 1)])
            .passes([set(0x6c02, 3 << 61)]),
        case("host.cr3.reserved")
            .cpu(no_lam)
            .breaks([set(0x6c02, 1 << 61)])
            .passes([]),
        canonical("host.sysenter-esp.canonical", 0x6c10, []),
        canonical("host.sysenter-eip.canonical", 0x6c12, []),
        case("host.perf-global-ctrl.reserved")
            .base([or(EXIT, 1 << 12)])
            .breaks([set(0x2c04, 1 << 35)])
            .passes([set(0x2c04, 0x7_0000_00ff)])
            .passes([not(EXIT, 1 << 12), set(0x2c04, 1 << 35)]),
        case("host.pat.types")
            .breaks([set(0x2c00, 0x0007_0406_0007_0402)])
            .breaks([set(0x2c00, 0x0300_0000_0000_0000)])
            .breaks([set(0x2c00, 0x0008_0000_0000_0000)])
            .breaks([set(0x2c00, 0x8000_0000_0000_0000)])
            .passes([set(0x2c00, 0x0001_0405_0607_0001)])
            .passes([not(EXIT, 1 << 19), set(0x2c00, 2)]),
        case("host.efer.reserved")
            .breaks([or(EFER, 2)])
            .passes([or(EFER, 1)])
            .passes([not(EXIT, 1 << 21), or(EFER, 2)]),
        case("host.efer.mode")
            .breaks([not(EFER, 1 << 8)])
            .breaks([not(EFER, 1 << 10)])
            .passes([]),
        case("host.s-cet.reserved")
            .base(cet)
            .breaks([set(0x6c18, 1 << 6)])
            .breaks([set(0x6c18, 1 << 9)])
            .breaks([set(0x6c18, 3 << 10)])
            .passes([set(0x6c18, 0x103f)])
            .passes([set(0x6c18, 1 << 10)])
            .passes([set(0x6c18, 1 << 11)]),
        case("host.ssp.aligned")
            .base(cet)
            .breaks([set(0x6c1a, 2)])
            .passes([set(0x6c1a, 4)])
            .passes([not(EXIT, 1 << 28), set(0x6c1a, 2)]),
        case("host.pkrs.reserved")
            .base([or(EXIT, 1 << 29)])
            .breaks([set(0x2c06, 1 << 32)])
            .passes([set(0x2c06, 0xffff_ffff)]),
        case("host.spec-ctrl.reserved")
            .base([or(EXIT, 1 << 31), set(0x2044, 1 << 2)])
            .breaks([set(0x2c1a, 1 << 3)])
            .passes([set(0x2c1a, 0x5f7)]),
        canonical("host.interrupt-ssp-table.canonical", 0x6c1c, cet),
    ]
}

fn fred() -> Vec<Case> {
    let on = [or(EXIT, 1 << 31), set(0x2044, 1 << 1)];
    vec![
        case("host.fred-config.reserved")
            .base(on)
            .breaks([set(0x2c08, 1 << 2)])
            .breaks([set(0x2c08, 1 << 4)])
            .breaks([set(0x2c08, 1 << 5)])
            .breaks([set(0x2c08, 1 << 11)])
            .passes([set(0x2c08, 0xffff_ffff_ffff_f7cb)]),
        canonical("host.fred-config.canonical", 0x2c08, on),
        case("host.fred-rsp")
            .base(on)
            .breaks([set(0x2c0a, 32)])
            .breaks([set(0x2c0c, 1 << 56)])
            .breaks([set(0x2c0e, 1)])
            .passes([set(0x2c0a, 64), set(0x2c0e, 0xffff_ffff_ffff_ffc0)]),
        case("host.fred-ssp")
            .base(on)
            .breaks([set(0x2c12, 4)])
            .breaks([set(0x2c14, 1 << 56)])
            .breaks([set(0x2c16, 1)])
            .passes([set(0x2c12, 8), set(0x2c16, 0xffff_ffff_ffff_fff8)]),
    ]
}

fn segments() -> Vec<Case> {
    let selectors = [0xc00, 0xc02, 0xc04, 0xc06, 0xc08, 0xc0a, 0xc0c];
    let mut rpl = case("host.selector.rpl-ti");
    for field in selectors {
        rpl = rpl
            .breaks([or(field, 1)])
            .breaks([or(field, 2)])
            .breaks([or(field, 4)]);
    }
    let mut bases = case("host.base.canonical");
    for field in [0x6c06, 0x6c08, 0x6c0a, 0x6c0c, 0x6c0e] {
        bases = bases
            .breaks([set(field, 1 << 56)])
            .passes([set(field, 0xff00_0000_0000_0000)]);
    }
    let (moment, base) = host_32();
    vec![
        rpl.passes([set(0xc00, 0xfff8)]),
        bases,
        case("host.cs.not-null")
            .breaks([set(0xc02, 0)])
            .passes([set(0xc02, 8)]),
        case("host.tr.not-null")
            .breaks([set(0xc0c, 0)])
            .passes([set(0xc0c, 8)]),
        case("host.ss.not-null")
            .seed(Seed::Protected)
            .at(moment)
            .base(base)
            .breaks([set(0xc04, 0)])
            .passes([set(0xc04, 8)]),
        case("host.cs.not-null")
            .breaks([set(0xc02, 0)])
            .passes([set(0xc04, 0), set(0xc00, 0)]),
    ]
}

fn sizes() -> Vec<Case> {
    let (moment, base) = host_32();
    let small = |rule| {
        case(rule)
            .seed(Seed::Protected)
            .at(moment)
            .base(base.clone())
    };
    let cet = 1 << 28;
    vec![
        case("host.size.in-ia32e")
            .seed(Seed::Protected)
            .base([set(EFER, 0x800)])
            .breaks([not(EXIT, 1 << 9)])
            .passes([set(EFER, 0xd00)]),
        small("host.size.outside-ia32e")
            .breaks([or(EXIT, 1 << 9), set(EFER, 0xd00)])
            .passes([]),
        // A 64-bit guest on a 32-bit host breaks both.
        small("host.size.guest")
            .seed(Seed::LongMode)
            .breaks([])
            .along(["host.size.outside-ia32e"])
            .passes([not(ENTRY, 1 << 9), set(0x2806, 0), not(0x6804, 1 << 17)]),
        small("host.size.cr4-legacy")
            .breaks([or(CR4, 1 << 17)])
            .breaks([or(CR4, 1 << 32)])
            .passes([or(CR4, 1 << 16)]),
        small("host.size.rip-legacy")
            .breaks([set(RIP, 1 << 32)])
            .passes([set(RIP, 0xffff_ffff)]),
        small("host.size.cet-legacy")
            .breaks([or(EXIT, cet), set(0x6c18, 1 << 32)])
            .breaks([or(EXIT, cet), set(0x6c1a, 1 << 32)])
            .passes([
                or(EXIT, cet),
                set(0x6c18, 0xffff_f000),
                set(0x6c1a, 0xffff_fffc),
            ]),
        case("host.size.pae").breaks([not(CR4, 1 << 5)]).passes([]),
        canonical("host.size.rip-canonical", RIP, []),
        canonical("host.size.cet-canonical", 0x6c1a, [or(EXIT, cet)]),
        case("host.size.cet-canonical")
            .base([or(EXIT, cet)])
            .breaks([set(0x6c18, 1 << 56)])
            .passes([set(0x6c18, 0xff00_0000_0000_0000)]),
    ]
}
