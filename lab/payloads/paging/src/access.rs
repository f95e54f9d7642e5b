// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One access in a case's paging mode, and what came of it. The payload of `oracle shadow` uses this
//! file, `switch.rs` and `descriptors.rs` too.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};

use lab_cases::paging::{
    ARENA, CODE_OFFSETS, Case, Cpu, DATA_OFFSETS, DONE, Doing, HARNESS_PD, HARNESS_PDPT,
    HARNESS_PT_LOW, HARNESS_PT_USER, Mode, PATTERN, PATTERN_BYTES, Record, STORED, Stored,
    USER_PAGE, Who,
};

use crate::descriptors;
use crate::switch::{SEQUENCE_BYTES, SEQUENCES, context, enter32, enter64, sequences};

/// EFER.LMA: the processor's to say.
const LMA: u64 = 1 << 10;

/// Loads the descriptor tables, remembers the monitor's registers, and fills the memory that cases
/// share; `arena_bytes` of the arena are zero then. Once, at start.
pub(crate) fn start(arena_bytes: u64) {
    descriptors::load();
    prepare(arena_bytes);
    // SAFETY: reading control registers has no effect; nobody else uses the context.
    unsafe {
        asm!("mov {}, cr0", out(reg) context.cr0, options(nomem, nostack));
        asm!("mov {}, cr3", out(reg) context.cr3, options(nomem, nostack));
        asm!("mov {}, cr4", out(reg) context.cr4, options(nomem, nostack));
        let efer: u32;
        asm!("rdmsr", in("ecx") 0xc000_0080u32, out("eax") efer, out("edx") _, options(nomem, nostack));
        context.efer = u64::from(efer) & !LMA;
    }
}

/// What of the processor cases depend on.
pub(crate) fn cpu() -> Cpu {
    let leaf7 = __cpuid_count(7, 0);
    let mut cr4 = 0;
    for (has, bit) in [
        (leaf7.ebx >> 7 & 1, 20),
        (leaf7.ebx >> 20 & 1, 21),
        (leaf7.ecx >> 3 & 1, 22),
        (leaf7.ecx >> 7 & 1, 23),
        (leaf7.ecx >> 31 & 1, 24),
    ] {
        cr4 |= has << bit;
    }
    Cpu {
        physical_address_bits: __cpuid(0x8000_0008).eax as u8,
        gib_pages: __cpuid(0x8000_0001).edx >> 26 & 1 != 0,
        cr4,
    }
}

pub(crate) fn read<T: Copy>(at: u64) -> T {
    // SAFETY: callers give addresses in the arena, the pattern or our own tables: memory that is mapped
    // one to one, aligned, and used by nothing else.
    unsafe { (at as *const T).read_volatile() }
}

pub(crate) fn write<T: Copy>(at: u64, value: T) {
    // SAFETY: as for `read`.
    unsafe { (at as *mut T).write_volatile(value) }
}

/// Fills the memory that cases share: see the map in `lab_cases::paging`.
fn prepare(arena_bytes: u64) {
    for at in (HARNESS_PDPT..HARNESS_PT_USER + 0x1000)
        .chain(ARENA..ARENA + arena_bytes)
        .step_by(8)
    {
        write(at, 0u64);
    }
    // P, R/W, A, D; with U/S for what leads to the user page. Nothing here ever needs to be marked.
    write(HARNESS_PDPT, HARNESS_PD | 0x67);
    write(HARNESS_PD, 0xe3u64);
    write(HARNESS_PD + 8, 0x0020_00e3u64);
    write(HARNESS_PD + 16, USER_PAGE | 0xe7);
    for page in 0..1024 {
        write(HARNESS_PT_LOW + page * 4, (page << 12 | 0x63) as u32);
    }
    write(HARNESS_PT_USER, (USER_PAGE | 0x67) as u32);
    for i in 0..SEQUENCE_BYTES * SEQUENCES {
        // SAFETY: within the array that the assembly defines.
        let byte = unsafe { sequences[i as usize] };
        write(USER_PAGE + i, byte);
    }
    for page in (PATTERN..PATTERN + PATTERN_BYTES).step_by(4096) {
        for at in DATA_OFFSETS.map(|offset| page + offset) {
            write(at, at as u32);
            write(at + 4, 0u32);
        }
        for at in CODE_OFFSETS.map(|offset| page + offset) {
            // mov eax, its own address; int 0x81
            write(at, 0xb8 | at << 8 | 0x81cd << 40);
        }
    }
}

/// Makes the access of `case`, whose tables are there, and takes back what it wrote to the pattern. The
/// record says nothing of tables.
pub(crate) fn perform(case: &Case) -> Record {
    enter(case);
    // SAFETY: the handler is done with it.
    let (vector, error, eax, cr2) = unsafe {
        (
            context.vector,
            context.error,
            context.eax as u32,
            context.cr2,
        )
    };
    let done = vector == 32;
    let (value, stored) = match case.doing {
        _ if !done => (0, Stored::No),
        Doing::Read | Doing::Fetch => (eax, Stored::No),
        Doing::Write => (eax, take_back(eax, 4, 0)),
        Doing::Exchange => (eax, take_back(eax, 0, eax)),
        Doing::Implicit | Doing::ShadowStack => (0, Stored::No),
    };
    Record {
        vector: if done { DONE } else { vector as u8 },
        stored,
        error: error as u16,
        value,
        cr2,
        tables: 0,
    }
}

/// If `page`, which the access read, is an address of the pattern: whether what it stored is `offset`
/// above, and `before` put back there.
fn take_back(page: u32, offset: u64, before: u32) -> Stored {
    let at = u64::from(page);
    if !(PATTERN..PATTERN + PATTERN_BYTES).contains(&at) || !at.is_multiple_of(4) {
        return Stored::No;
    }
    let found: u32 = read(at + offset);
    write(at + offset, before);
    if found == STORED {
        Stored::Yes
    } else {
        Stored::No
    }
}

/// Enters the case's mode, makes the access, comes back.
fn enter(case: &Case) {
    /// EFLAGS.AC, and the bit that is always 1.
    const AC: u64 = 1 << 18 | 2;
    const IA32_PKRS: u32 = 0x6e1;
    let user = case.who == Who::User;
    let copy = if user {
        USER_PAGE
    } else {
        &raw const sequences as u64
    };
    if case.doing == Doing::Implicit {
        descriptors::local(case.linear);
    }
    descriptors::task(match case.mode {
        Mode::FourLevel => descriptors::Layout::Long,
        _ => descriptors::Layout::Legacy,
    });
    // SAFETY: what a case sets in the registers keeps the monitor, its stack and its descriptor tables
    // mapped; whatever the access does ends in a handler, which puts our registers back. Compiled code
    // uses no memory that the access can reach.
    unsafe {
        // The 32-bit handler stores halves.
        (context.error, context.eax, context.cr2) = (0, 0, 0);
        context.case_cr0 = context.cr0 & !(1 << 31 | 1 << 16) | case.cr0;
        context.case_cr3 = case.cr3;
        context.case_cr4 = context.cr4 & 0x600 | case.cr4;
        context.case_efer = case.efer;
        context.pkru = u64::from(case.pkru);
        context.linear = case.linear;
        context.sequence = copy + case.doing as u64 * SEQUENCE_BYTES;
        context.user = u64::from(user);
        context.rflags = if case.who == Who::SupervisorAc { AC } else { 2 };
        if case.cr4 >> 24 & 1 != 0 {
            asm!("wrmsr", in("ecx") IA32_PKRS, in("eax") case.pkrs, in("edx") 0);
        }
        if case.mode == Mode::FourLevel {
            enter64();
        } else {
            enter32();
        }
    }
}
