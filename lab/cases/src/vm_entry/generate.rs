// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a number to a case.

use hvkit_vmcs::{
    Encoding, Vmcs,
    check::{CurrentVmcs, EntryInstruction, LaunchState, Moment, Outcome, Violation},
    encoding::{Class, Width},
    fields::{self as f},
    seed::Seed,
    store::{Fields, FieldsMut},
};

use super::{
    Case, Cpu, ENTRY_MSRS, EXIT_MSRS, HOST_RIP, LINK, Memory, PDPT, SHADOW, VIRTUAL_APIC, VMCS,
    ZEROS,
};
use crate::Random;

/// Fields that decide where the payload goes on, and where the guest's first words are: never changed by lot.
const FIXED: [Encoding; 7] = [
    f::HOST_RSP.encoding(),
    f::EXCEPTION_BITMAP.encoding(),
    f::PAGE_FAULT_ERROR_MASK.encoding(),
    f::PAGE_FAULT_ERROR_MATCH.encoding(),
    f::PREEMPTION_TIMER_VALUE.encoding(),
    f::EXECUTIVE_VMCS_POINTER.encoding(),
    f::GUEST_SMBASE.encoding(),
];

/// Fields where most rules meet: changed more often.
const BUSY: &[Encoding] = &[
    f::PIN_BASED_CONTROLS.encoding(),
    f::PRIMARY_CONTROLS.encoding(),
    f::SECONDARY_CONTROLS.encoding(),
    f::PRIMARY_EXIT_CONTROLS.encoding(),
    f::ENTRY_CONTROLS.encoding(),
    f::INJECTED_EVENT.encoding(),
    f::INJECTED_EVENT.encoding(),
    f::GUEST_INTERRUPTIBILITY.encoding(),
    f::GUEST_INTERRUPTIBILITY.encoding(),
    f::GUEST_ACTIVITY.encoding(),
    f::GUEST_PENDING_DEBUG.encoding(),
    f::GUEST_RFLAGS.encoding(),
    f::GUEST_RFLAGS.encoding(),
    f::GUEST_CS_ACCESS_RIGHTS.encoding(),
    f::GUEST_SS_ACCESS_RIGHTS.encoding(),
    f::GUEST_TR_ACCESS_RIGHTS.encoding(),
    f::GUEST_LDTR_ACCESS_RIGHTS.encoding(),
    f::GUEST_CR0.encoding(),
    f::GUEST_CR4.encoding(),
    f::EPT_POINTER.encoding(),
    f::VMCS_LINK_POINTER.encoding(),
];

pub(super) fn case(seed: u64, index: u64, cpu: &Cpu) -> Case {
    let random = &mut Random::of_case(seed, index);
    let processor = cpu.processor();
    let kind = random.pick(&Seed::ALL);
    let mut case = Case {
        seed: kind,
        vmcs: kind.vmcs(&processor),
        moment: moment(random),
        memory: Memory {
            revision: processor.vmx.basic.revision(),
            vtpr: random.next() as u8,
            msrs: [msr(random), msr(random)],
            pdptes: [pdpte(random), pdpte(random), 0, 0],
        },
        free_error_codes: processor.vmx.basic.has_free_error_codes(),
    };
    place(&mut case.vmcs);
    for _ in 0..random.below(3) {
        enrich(&mut case.vmcs, random);
    }
    for _ in 0..1 + random.below(3) {
        change(&mut case.vmcs, random);
    }
    tame(&mut case, cpu);
    case
}

/// One entry in twenty begins in another way than by the first VMLAUNCH.
fn moment(random: &mut Random) -> Moment {
    let mut moment = Moment {
        current_vmcs: CurrentVmcs::At(VMCS),
        ..Moment::default()
    };
    match random.below(80) {
        0 => moment.current_vmcs = CurrentVmcs::None,
        1 => moment.mov_ss_blocking = true,
        2 => moment.instruction = EntryInstruction::Resume,
        3 => moment.launch_state = LaunchState::Launched,
        4 => {
            moment.instruction = EntryInstruction::Resume;
            moment.launch_state = LaunchState::Launched;
        }
        _ => {}
    }
    moment
}

fn msr(random: &mut Random) -> (u64, u64) {
    let index = match random.below(12) {
        0 => 0xc000_0100,
        1 => 0xc000_0101,
        2 => 0x800 + random.below(0x100),
        3 => 0x1_0000_0174,
        4 => 0x277,
        5 => 0xc000_0082,
        6 => 0x176,
        _ => 0x174,
    };
    let value = match random.below(4) {
        0 => 1 << random.below(64),
        _ => 0,
    };
    (index, value)
}

fn pdpte(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => 1 | 1 << random.below(64),
        1 => ZEROS | 1,
        _ => 0,
    }
}

fn set(vmcs: &mut Vmcs, field: impl Into<Encoding>, value: u64) {
    // All fields named here exist.
    let _ = vmcs.set(field.into(), value);
}

fn get(vmcs: &Vmcs, field: impl Into<Encoding>) -> u64 {
    vmcs.get(field.into()).unwrap_or(0)
}

/// Addresses that belong to the cases, and exits for whatever happens.
fn place(vmcs: &mut Vmcs) {
    set(vmcs, f::EPT_POINTER, ZEROS | 0x1e);
    set(vmcs, f::GUEST_CR3, PDPT);
    set(vmcs, f::EXCEPTION_BITMAP, 0xffff_ffff);
    set(
        vmcs,
        f::PIN_BASED_CONTROLS,
        get(vmcs, f::PIN_BASED_CONTROLS) | 1 << 6 | 1,
    );
    set(vmcs, f::VIRTUAL_APIC_ADDRESS, VIRTUAL_APIC);
    set(vmcs, f::TSC_MULTIPLIER, 1);
    set(vmcs, f::VPID, 1);
    for field in [
        f::IO_BITMAP_A,
        f::IO_BITMAP_B,
        f::MSR_BITMAP,
        f::APIC_ACCESS_ADDRESS,
        f::PML_ADDRESS,
        f::VMREAD_BITMAP,
        f::VMWRITE_BITMAP,
        f::VE_INFORMATION_ADDRESS,
        f::EPTP_LIST_ADDRESS,
        f::POSTED_INTERRUPT_DESCRIPTOR,
    ] {
        set(vmcs, field, ZEROS);
    }
    set(vmcs, f::ENTRY_MSR_LOAD_ADDRESS, ENTRY_MSRS);
    set(vmcs, f::EXIT_MSR_STORE_ADDRESS, EXIT_MSRS);
    set(vmcs, f::EXIT_MSR_LOAD_ADDRESS, EXIT_MSRS);
}

/// Makes a VMCS that enters exit before the guest's first instruction.
pub fn exit_at_once(vmcs: &mut Vmcs) {
    place(vmcs);
}

/// Turns something on that brings further rules, set up as it should be.
fn enrich(vmcs: &mut Vmcs, random: &mut Random) {
    let mut or = |field: Encoding, bits: u64| set(vmcs, field, get(vmcs, field) | bits);
    let primary = f::PRIMARY_CONTROLS.encoding();
    let secondary = f::SECONDARY_CONTROLS.encoding();
    match random.below(17) {
        0 => {
            or(primary, 1 << 21);
            or(f::TPR_THRESHOLD.encoding(), random.below(0x18));
        }
        1 => or(primary, 1 << 25 | 1 << 28),
        2 => or(secondary, 1 << 1 | 1 << 5),
        3 => or(
            secondary,
            1 << 1 | random.bit(1 << 17, 1, 2) | random.bit(1 << 18, 1, 2),
        ),
        4 => {
            or(secondary, 1 << 14);
            let link = random.pick(&[LINK, SHADOW, u64::MAX]);
            set(vmcs, f::VMCS_LINK_POINTER, link);
        }
        5 => or(f::PIN_BASED_CONTROLS.encoding(), 1 << 5),
        6 => set(vmcs, f::ENTRY_MSR_LOAD_COUNT, 1 + random.below(2)),
        7 => {
            or(primary, 1 << 21);
            or(secondary, 1 << 9 | 1 << 8);
        }
        8 => {
            or(secondary, 1 << 25 | 1 << 13 | random.bit(1 << 1, 1, 2));
            let functions = random.below(2);
            set(vmcs, f::VM_FUNCTION_CONTROLS, functions);
            set(vmcs, f::EPTP_LIST_ADDRESS, ZEROS | random.bit(8, 1, 4));
        }
        9 => {
            set(vmcs, f::GUEST_LDTR_ACCESS_RIGHTS, 0x82);
            set(vmcs, f::GUEST_LDTR_SELECTOR, 0x20);
        }
        10 => msr_list(vmcs, random),
        11 => {
            or(secondary, 1 | random.bit(1 << 4, 1, 2));
            or(primary, 1 << 21);
        }
        13 => {
            // To save a timer that is not active.
            set(
                vmcs,
                f::PIN_BASED_CONTROLS,
                get(vmcs, f::PIN_BASED_CONTROLS) & !(1 << 6),
            );
            set(
                vmcs,
                f::PRIMARY_EXIT_CONTROLS,
                get(vmcs, f::PRIMARY_EXIT_CONTROLS) | 1 << 22,
            );
        }
        14 => {
            // CET state, where there is such a thing.
            set(
                vmcs,
                f::ENTRY_CONTROLS,
                get(vmcs, f::ENTRY_CONTROLS) | 1 << 20,
            );
            set(
                vmcs,
                f::PRIMARY_EXIT_CONTROLS,
                get(vmcs, f::PRIMARY_EXIT_CONTROLS) | 1 << 28,
            );
            let field = random.pick(&[
                f::GUEST_S_CET,
                f::GUEST_SSP,
                f::GUEST_INTERRUPT_SSP_TABLE,
                f::HOST_S_CET,
                f::HOST_SSP,
                f::HOST_INTERRUPT_SSP_TABLE,
            ]);
            set(
                vmcs,
                field,
                1 << random.below(64) | random.bit(1 << 10, 1, 4),
            );
        }
        12 => {
            // Also with the value 0, which must not be.
            or(secondary, random.pick(&[1 << 5, 1 << 25]));
            let value = random.below(2);
            set(vmcs, f::VPID, value);
            set(vmcs, f::TSC_MULTIPLIER, value);
        }
        _ => event(vmcs, random),
    }
}

/// A list of MSRs for an exit or the entry, whose address is likely to be a bad one.
fn msr_list(vmcs: &mut Vmcs, random: &mut Random) {
    let (count, address) = random.pick(&[
        (f::EXIT_MSR_STORE_COUNT, f::EXIT_MSR_STORE_ADDRESS),
        (f::EXIT_MSR_LOAD_COUNT, f::EXIT_MSR_LOAD_ADDRESS),
        (f::ENTRY_MSR_LOAD_COUNT, f::ENTRY_MSR_LOAD_ADDRESS),
    ]);
    let entries = random.pick(&[1, 2, 0xfff_ffff]);
    set(vmcs, count, entries);
    let at = random.pick(&[
        EXIT_MSRS,
        EXIT_MSRS + 8,
        (1 << 40) - 16,
        (1 << 40) - 32,
        1 << 40,
    ]);
    set(vmcs, address, at);
}

/// An event as a hypervisor would inject it, more or less.
fn event(vmcs: &mut Vmcs, random: &mut Random) {
    let kind = random.below(8);
    let vector = match random.below(4) {
        0 => random.below(256),
        1 => 2,
        _ => random.below(33),
    };
    let error = random.bit(1 << 11, 1, 3);
    let odd = 1 << (12 + random.below(19));
    let reserved = random.bit(odd, 1, 10);
    set(
        vmcs,
        f::INJECTED_EVENT,
        1 << 31 | reserved | error | kind << 8 | vector,
    );
    let code = 1 << random.below(32);
    set(vmcs, f::INJECTED_EVENT_ERROR_CODE, random.bit(code, 1, 2));
    set(
        vmcs,
        f::ENTRY_INSTRUCTION_LENGTH,
        random.pick(&[0, 1, 2, 15, 16]),
    );
    if random.chance(1, 2) {
        set(vmcs, f::GUEST_RFLAGS, get(vmcs, f::GUEST_RFLAGS) | 1 << 9);
    }
}

/// Changes one field.
fn change(vmcs: &mut Vmcs, random: &mut Random) {
    let field = if random.chance(2, 5) {
        random.pick(BUSY)
    } else {
        let any = f::ALL[random.below(f::COUNT as u64) as usize].encoding;
        if any.class() == Class::ExitInformation || FIXED.contains(&any) {
            return change(vmcs, random);
        }
        any
    };
    let old = get(vmcs, field);
    let new = special(field, old, random).unwrap_or_else(|| plain(field, old, random));
    set(vmcs, field, new & field.width().mask());
}

/// Values that some fields are likely to meet.
fn special(field: Encoding, old: u64, random: &mut Random) -> Option<u64> {
    let is = |known: Encoding| known == field;
    if is(f::INJECTED_EVENT.encoding()) {
        let kind = random.below(8);
        let vector = random.pick(&[0, 1, 2, 3, 8, 13, 14, 17, 18, 21, 31, 32, 255]);
        return Some(1 << 31 | random.bit(1 << 11, 1, 2) | kind << 8 | vector);
    }
    if is(f::GUEST_INTERRUPTIBILITY.encoding()) {
        let reserved = 1 << random.below(32);
        return Some(random.below(32) | random.bit(reserved, 1, 10));
    }
    if is(f::GUEST_ACTIVITY.encoding()) {
        return Some(random.below(5));
    }
    if is(f::GUEST_RFLAGS.encoding()) && random.chance(1, 2) {
        return Some(old ^ random.pick(&[1 << 8, 1 << 9, 1 << 17, 3 << 12, 2]));
    }
    if is(f::GUEST_PENDING_DEBUG.encoding()) && random.chance(1, 2) {
        return Some(random.pick(&[1 << 14, 1 << 12, 0xf, 1 << 16 | 1 << 12, 0x500f]));
    }
    if is(f::VMCS_LINK_POINTER.encoding()) && random.chance(1, 2) {
        return Some(random.pick(&[LINK, SHADOW, VMCS, ZEROS, LINK + 8]));
    }
    let is_rights = field.width() == Width::Bits32
        && field.class() == Class::Guest
        && (10..18).contains(&field.index());
    if is_rights && random.chance(1, 2) {
        return Some(match random.below(4) {
            0 => old & !0xf | random.below(16),
            1 => old ^ random.below(4) << 5,
            2 => old ^ 1 << 16,
            _ => old ^ 1 << random.below(18),
        });
    }
    if field.width() == Width::Bits16 && random.chance(1, 2) {
        return Some(random.below(0x20));
    }
    None
}

fn plain(field: Encoding, old: u64, random: &mut Random) -> u64 {
    let bits = 8 * field.width().bytes() as u64;
    match random.below(6) {
        0 => 0,
        1 => u64::MAX,
        2 => random.pick(&[
            0x7fff_ffff_ffff,
            0x8000_0000_0000,
            0xffff_8000_0000_0000,
            0xffff_7fff_ffff_ffff,
            (1 << 40) - 0x1000,
            1 << 40,
            0xffff,
            0x1_0000,
            0xf_ffff,
            0x10_0000,
            0xffff_ffff,
            1 << 32,
        ]),
        _ => old ^ 1 << random.below(bits),
    }
}

/// Puts back what the payload would not survive. The model may pass over a broken rule and go on, so each thing is put
/// back unless the checker refuses that thing itself.
fn tame(case: &mut Case, cpu: &Cpu) {
    unanswerable(case, cpu);
    let (mut activity, mut rip, mut cr3, mut lists) = (false, false, false, false);
    case.check(cpu, &mut |violation: &Violation| {
        let id = violation.rule.id;
        activity |= id.starts_with("guest.activity.");
        rip |= id.starts_with("host.size.rip");
        cr3 |= id == "host.cr3.reserved";
        lists |= id.starts_with("exit.msr-");
    });
    let vmcs = &mut case.vmcs;
    if !rip {
        set(vmcs, f::HOST_RIP, HOST_RIP);
    }
    if !cr3 {
        set(vmcs, f::HOST_CR3, 0x1000);
    }
    if !lists {
        set(vmcs, f::EXIT_MSR_STORE_COUNT, 0);
        set(vmcs, f::EXIT_MSR_LOAD_COUNT, 0);
    }
    if !activity && get(vmcs, f::GUEST_ACTIVITY) == 3 {
        set(vmcs, f::GUEST_ACTIVITY, 4);
    }
    let outcome = case.verdict(cpu).outcome();
    if matches!(outcome, Outcome::Enters | Outcome::EntryFailure { .. }) {
        // The guest must not run, nor write where the payload is.
        let vmcs = &mut case.vmcs;
        let eptp = get(vmcs, f::EPT_POINTER) & 0xfff | ZEROS;
        set(vmcs, f::EPT_POINTER, eptp);
        set(vmcs, f::PML_ADDRESS, ZEROS);
        set(vmcs, f::VE_INFORMATION_ADDRESS, ZEROS);
        let pin = get(vmcs, f::PIN_BASED_CONTROLS) | 1 << 6;
        set(vmcs, f::PIN_BASED_CONTROLS, pin);
    }
}

/// Puts back what the model, or memory as the cases know it, has no answer to.
fn unanswerable(case: &mut Case, cpu: &Cpu) {
    // Bochs 2.7 panics on an event of type 7 where it has no monitor trap flag, instead of refusing it.
    let event = get(&case.vmcs, f::INJECTED_EVENT);
    if event >> 8 & 7 == 7 && cpu.processor().vmx.primary.may_be_one >> 27 & 1 == 0 {
        set(&mut case.vmcs, f::INJECTED_EVENT, event & !0x700 | 0x300);
    }
    // It takes the size of an MSR list with 32 bits, and goes on to load a list without end.
    for count in [
        f::EXIT_MSR_STORE_COUNT,
        f::EXIT_MSR_LOAD_COUNT,
        f::ENTRY_MSR_LOAD_COUNT,
    ] {
        let most = get(&case.vmcs, count).min(0xfff_ffff);
        set(&mut case.vmcs, count, most);
    }
    let mut refused = false;
    let verdict = case.check(cpu, &mut |violation: &Violation| {
        refused |= violation.rule.id.starts_with("entry-controls.msr-load");
    });
    if verdict.undecided > 0 && !refused {
        let vmcs = &mut case.vmcs;
        set(vmcs, f::VIRTUAL_APIC_ADDRESS, VIRTUAL_APIC);
        set(vmcs, f::GUEST_CR3, PDPT);
        set(vmcs, f::ENTRY_MSR_LOAD_ADDRESS, ENTRY_MSRS);
        let count = get(vmcs, f::ENTRY_MSR_LOAD_COUNT).min(2);
        set(vmcs, f::ENTRY_MSR_LOAD_COUNT, count);
        if get(vmcs, f::VMCS_LINK_POINTER) != u64::MAX {
            set(vmcs, f::VMCS_LINK_POINTER, LINK);
        }
    }
}
