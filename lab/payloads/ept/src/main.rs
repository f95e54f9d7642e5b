// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The processor's side of `cargo xtask oracle ept`: runs guests under EPT, sends records.
//!
//! In reading order: [`main`], then [`run`]; `guest.rs` makes a case's VMCS.
#![no_std]
#![no_main]

mod guest;

use hvkit_vmcs::fields as f;
use lab_cases::{
    Digest, Order,
    ept::{
        ARENAS, CODE, CODE_OFFSETS, Case, DATA_OFFSETS, Doing, HEADER_MAGIC, PATTERN,
        PATTERN_BYTES, Record, SEQUENCE_BYTES, STORED, Stored, VE_INFORMATION, VMCS, VMXON,
        pattern,
    },
};
use payload_rt::{
    input, serial,
    vmx::{self, Entry, Registers, Went},
};
use payload_vmcs::Root;

payload_rt::entry!(main);

/// Exit reasons.
const EXCEPTION: u32 = 0;
const VMCALL: u32 = 18;
const EPT_VIOLATION: u32 = 48;
const EPT_MISCONFIGURATION: u32 = 49;
const LOG_FULL: u32 = 62;
/// Of an EPT violation's qualification: the guest linear address is valid.
const LINEAR_VALID: u64 = 1 << 7;
/// What is sent for a VM entry that failed without an exit.
const NO_ENTRY: u32 = 0xffff_0000;

fn main() {
    let order = Order::from_bytes(input(Order::BYTES));
    prepare();
    // SAFETY: the model has VMX; the regions are the cases' own.
    let root = unsafe { Root::enter(VMXON, VMCS) };
    guest::prepare(&root);
    serial::write(HEADER_MAGIC);
    serial::write(&root.cpu().to_bytes());
    for index in order.first..order.first.saturating_add(order.count) {
        let record = run(&Case::new(order.seed, index, root.cpu()), &root);
        serial::write(&record.to_bytes());
    }
}

fn read<T: Copy>(at: u64) -> T {
    // SAFETY: callers give addresses of the arenas or the pattern: memory that is mapped one to one, aligned, and used by
    // nothing else while this runs.
    unsafe { (at as *const T).read_volatile() }
}

fn write<T: Copy>(at: u64, value: T) {
    // SAFETY: as for `read`.
    unsafe { (at as *mut T).write_volatile(value) }
}

/// Fills the memory that cases share: see the map in `lab_cases::ept`.
fn prepare() {
    for arena in &ARENAS {
        for at in arena.clone().step_by(8) {
            write(at, 0u64);
        }
    }
    for (doing, at) in Doing::ALL
        .iter()
        .zip((CODE..).step_by(SEQUENCE_BYTES as usize))
    {
        for (byte, at) in doing.bytes().into_iter().zip(at..) {
            write(at, byte);
        }
    }
    for page in (PATTERN..PATTERN + PATTERN_BYTES).step_by(4096) {
        for at in DATA_OFFSETS.map(|offset| page + offset) {
            write(at, at as u32);
            write(at + 4, 0u32);
        }
        for at in CODE_OFFSETS.map(|offset| page + offset) {
            // mov eax, its own address; vmcall
            write(at, 0xb8 | at << 8 | 0xc1_010f << 40);
        }
    }
}

/// Runs one case, and leaves arenas and pattern as they were before.
fn run(case: &Case, root: &Root) -> Record {
    for slot in case.entries.slots() {
        if slot.width == 4 {
            write(slot.at, slot.value as u32);
        } else {
            write(slot.at, slot.value);
        }
    }
    write(VE_INFORMATION + 4, case.ve_busy);
    root.start();
    guest::store(case, root);
    let mut registers = Registers {
        rax: STORED.into(),
        rdi: case.linear,
    };
    // SAFETY: in VMX operation, and the processor has INVEPT. The VMCS has our own way back and host state; what the guest
    // may write is the arenas and the pattern, as `lab_cases::ept` promises.
    let went = unsafe {
        vmx::forget_translations();
        vmx::go(Entry::Launch, &mut registers)
    };
    let mut record = outcome(went, root);
    if record.reason == VMCALL {
        let eax = registers.rax as u32;
        (record.value, record.stored) = match case.doing {
            Doing::Read | Doing::Fetch => (eax, Stored::No),
            Doing::Write => (eax, take_back(eax, 4, 0)),
            Doing::Exchange => (eax, take_back(eax, 0, eax)),
            Doing::Implicit | Doing::LoadPdptes | Doing::Iret => (0, Stored::No),
        };
    }
    record.pml_index = root.read(guest::PML_INDEX) as u16;
    record.memory = digest();
    record
}

/// What the exit says.
fn outcome(went: Went, root: &Root) -> Record {
    let mut record = Record::default();
    if went != Went::Exit {
        record.reason = NO_ENTRY | root.read(f::INSTRUCTION_ERROR) as u32;
        return record;
    }
    record.reason = root.read(f::EXIT_REASON) as u32;
    let qualification = root.read(f::EXIT_QUALIFICATION);
    match record.reason {
        EXCEPTION => {
            let event = root.read(f::EXITING_EVENT);
            record.vector = event as u8;
            if event >> 11 & 1 != 0 {
                record.error = root.read(f::EXITING_EVENT_ERROR_CODE) as u16;
            }
            if record.vector == 14 {
                record.qualification = qualification;
            }
        }
        EPT_VIOLATION => {
            record.qualification = qualification;
            record.guest_physical = root.read(f::GUEST_PHYSICAL_ADDRESS);
            if qualification & LINEAR_VALID != 0 {
                record.linear = root.read(f::GUEST_LINEAR_ADDRESS);
            }
        }
        EPT_MISCONFIGURATION => record.guest_physical = root.read(f::GUEST_PHYSICAL_ADDRESS),
        LOG_FULL => record.qualification = qualification,
        VMCALL => {}
        _ => record.qualification = qualification,
    }
    record
}

/// If `page`, which the access read, is an address of the pattern: whether what it stored is `offset` above, and `before`
/// put back there.
fn take_back(page: u32, offset: u64, before: u32) -> Stored {
    let at = u64::from(page);
    if !pattern().contains(&at) || !at.is_multiple_of(4) {
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

/// The digest of the arenas, which are all zero afterwards.
fn digest() -> u32 {
    let mut digest = Digest::default();
    for arena in &ARENAS {
        for block in arena.clone().step_by(64) {
            // SAFETY: in an arena, whose bounds are multiples of 64; nobody writes while this runs.
            let words: &[u64; 8] = unsafe { &*(block as *const [u64; 8]) };
            if words.iter().fold(0, |all, word| all | word) == 0 {
                continue;
            }
            for at in (block..block + 64).step_by(8) {
                digest.add(at, read(at));
                write(at, 0u64);
            }
        }
    }
    digest.sum()
}
