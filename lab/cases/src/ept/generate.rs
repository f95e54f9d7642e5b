// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a number to a case.
//!
//! What no case may do, for the monitor must survive: run anything but the sequences and the pattern's code, and write
//! anything but tables and the pattern. So a page that code runs from is always where it was meant to be; a page that is
//! written may be missing, but is no other.

use super::ept_tables::{EptTables, Role};
use super::guest_tables::GuestTables;
use super::map::{
    CODE, CODE_OFFSETS, DATA_OFFSETS, EPT_TABLES, PATTERN, PATTERN_BYTES, SEQUENCE_BYTES,
};
use super::{Case, Doing, EptCpu, Mode, Nmi, Who, secondary};
use crate::{Entries, Random};

/// CR0.PE, CR0.WP, CR0.PG.
const PE: u64 = 1;
const WP: u64 = 1 << 16;
const PG: u64 = 1 << 31;
/// CR4.PSE, CR4.PAE.
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
/// EFER.LME, EFER.NXE.
const LME: u64 = 1 << 8;
const NXE: u64 = 1 << 11;
/// Of the EPTP: four levels, accessed and dirty flags.
const FOUR_LEVELS: u64 = 3 << 3;
const ACCESSED_DIRTY: u64 = 1 << 6;

pub(super) fn case(seed: u64, index: u64, cpu: &EptCpu) -> Case {
    let mut random = Random::of_case(seed, index);
    let r = &mut random;
    let mode = match r.below(16) {
        0 => Mode::Real,
        1 | 2 => Mode::Unpaged,
        3..=5 => Mode::ThirtyTwoBit,
        6..=9 => Mode::Pae,
        _ => Mode::FourLevel,
    };
    let doing = match (mode, r.below(12)) {
        (_, 0 | 1) => Doing::Read,
        (_, 2 | 3) => Doing::Write,
        (_, 4 | 5) => Doing::Exchange,
        (_, 6 | 7) => Doing::Fetch,
        (Mode::Real, _) => Doing::Read,
        (Mode::Pae, 8 | 9) => Doing::LoadPdptes,
        (_, 10) => Doing::Iret,
        _ => Doing::Implicit,
    };
    let user = mode != Mode::Real && doing != Doing::LoadPdptes && r.chance(1, 2);
    let paging = if mode.is_unpaged() { 0 } else { PG };
    let mut case = Case {
        mode,
        doing,
        who: if user { Who::User } else { Who::Supervisor },
        cr0: paging | r.bit(WP, 1, 2) | if mode == Mode::Real { 0 } else { PE },
        cr3: 0,
        cr4: r.bit(PSE, 3, 4)
            | match mode {
                Mode::Pae | Mode::FourLevel => PAE,
                _ => 0,
            },
        efer: if mode == Mode::FourLevel { LME } else { 0 } | r.bit(NXE, 3, 4),
        pdptes: [0; 4],
        code: 0,
        linear: 0,
        eptp: EPT_TABLES | FOUR_LEVELS | r.pick(&[0, 6]) | r.bit(ACCESSED_DIRTY, 2, 3),
        secondary: controls(r, cpu),
        pml_index: r.pick(&[511, 511, 100, 3, 2, 1, 0, 0xffff, 512]),
        ve_busy: r.pick(&[0, 0, 0, 1, u32::MAX]),
        nmi: r.pick(&[Nmi::Open, Nmi::Blocked, Nmi::VirtualBlocked]),
        entries: Entries::default(),
    };
    let hostility = r.pick(&[0, 1, 2, 4, 8]);
    if may(cpu, secondary::MODE_BASED_EXECUTE) {
        // The one model that has it, Bochs 3.0, panics where a supervisor's write marks a page dirty whose R/W is clear.
        case.cr0 |= WP;
    }
    let mut ept = EptTables::new(cpu.physical_address_bits, hostility);
    fill(&mut case, &mut ept, r, cpu);
    case
}

/// What the processor has of the controls, each now and then.
fn controls(r: &mut Random, cpu: &EptCpu) -> u64 {
    [
        (secondary::PML, 3),
        (secondary::VIOLATION_EXCEPTION, 3),
        (secondary::MODE_BASED_EXECUTE, 2),
    ]
    .into_iter()
    .map(|(control, of)| r.bit(control, 1, of))
    .filter(|control| may(cpu, *control))
    .sum()
}

fn may(cpu: &EptCpu, control: u64) -> bool {
    cpu.processor().vmx.secondary.may_be_one & control != 0
}

fn fill(case: &mut Case, ept: &mut EptTables, r: &mut Random, cpu: &EptCpu) {
    let doing = case.doing;
    let page = if doing.keeps_to_its_page() {
        Role::Fixed
    } else if doing.stores() {
        Role::Written
    } else {
        Role::Free
    };
    // A table that is another one is no danger, unless what it leads to is run.
    let tables = if page == Role::Fixed {
        Role::Fixed
    } else {
        Role::Free
    };
    let sequence = Doing::ALL
        .iter()
        .position(|known| *known == doing)
        .unwrap_or(0) as u64;
    let pattern = PATTERN + (r.below(PATTERN_BYTES >> 12) << 12);
    let offset = match doing {
        Doing::Fetch => r.pick(&CODE_OFFSETS),
        // Twenty bytes are popped.
        Doing::Iret => r.pick(&DATA_OFFSETS[..2]),
        _ => r.pick(&DATA_OFFSETS),
    };
    let width = u64::from(cpu.physical_address_bits);
    let mut guest = GuestTables::new(case, ept, r, width, Role::Fixed);
    let code = guest.map(CODE + sequence * SEQUENCE_BYTES, 0, Role::Fixed);
    guest.role = tables;
    let linear = if doing == Doing::LoadPdptes {
        // One page is all there is to go wrong.
        guest.ept.hostility *= 4;
        let (host, at) = guest.frame(32);
        let slot = guest.r.below(128) << 5;
        for (index, entry) in (0..).zip(guest.case.pdptes) {
            let spoilt = if guest.r.chance(guest.ept.hostility, 64) {
                1 << guest.r.pick(&[0, 1, 2, 5, 8, width, 51, 52, 63])
            } else {
                0
            };
            let entries = &mut guest.case.entries;
            entries.add(host + slot + index * 8, 8, entry ^ spoilt);
        }
        at + slot
    } else {
        guest.map(pattern + offset, 1, page)
    };
    (case.code, case.linear) = (code, linear);
}
