// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VM entries whose outcomes are known: one that works, twice, and two that must not.
//!
//! SDM 3C, "VM Entries" and "VM Exits". Field encodings and values are written out here, so that the test of a model does not
//! rest on what the model is to judge.

use core::arch::x86_64::__cpuid;

use payload_rt::vmx::{self, Entry, Registers, Went};

use crate::paging::Wrong;

const VMXON: u64 = 0x700_0000;
const VMCS: u64 = 0x700_1000;

const PIN_BASED: u32 = 0x4000;
const GUEST_RIP: u32 = 0x681e;
const GUEST_RFLAGS: u32 = 0x6820;
const EXIT_REASON: u32 = 0x4402;
const INSTRUCTION_LENGTH: u32 = 0x440c;
const INSTRUCTION_ERROR: u32 = 0x4400;

core::arch::global_asm!(
    ".globl selftest_guest",
    "selftest_guest:",
    "xor eax, eax",
    "cpuid",
    "lea rax, [rdi + rax + 1]",
    "vmcall",
);

unsafe extern "C" {
    static selftest_guest: u8;
}

/// Whether the processor has VMX, and so [`check`] can run.
pub fn possible() -> bool {
    __cpuid(1).ecx >> 5 & 1 != 0
}

/// Runs every check; tells `report` of each that fails.
pub fn check(report: &mut dyn FnMut(Wrong)) {
    // SAFETY: the processor has VMX, hence this MSR.
    let revision = unsafe { vmx::rdmsr(0x480) } & 0x7fff_ffff;
    for region in [VMXON, VMCS] {
        // SAFETY: memory of nobody's, mapped one to one.
        unsafe { (region as *mut u64).write_volatile(revision) };
    }
    // SAFETY: the processor has VMX, and the regions their revision.
    unsafe {
        vmx::enter_operation(VMXON);
        vmx::clear(VMCS);
        vmx::load(VMCS);
    }
    let mut same = |check, seen, expected| {
        if seen != expected {
            report(Wrong {
                check,
                seen,
                expected,
            });
        }
    };
    let guest = (&raw const selftest_guest) as u64;
    for (field, value) in fields(guest) {
        write(field, value);
    }

    let mut registers = Registers { rax: 5, rdi: 0x30 };
    let went = go(Entry::Launch, &mut registers);
    same("a VM entry", went as u64, Went::Exit as u64);
    same("the exit of CPUID", read(EXIT_REASON), 10);
    same("its length", read(INSTRUCTION_LENGTH), 2);
    same("its RIP", read(GUEST_RIP), guest + 2);
    same("RAX at it", registers.rax, 0);
    registers.rax = 0x11;
    write(GUEST_RIP, guest + 4);
    let went = go(Entry::Resume, &mut registers);
    same("a second VM entry", went as u64, Went::Exit as u64);
    same("the exit of VMCALL", read(EXIT_REASON), 18);
    same("what the guest computed", registers.rax, 0x42);

    let right = read(GUEST_RFLAGS);
    write(GUEST_RFLAGS, right & !2);
    let went = go(Entry::Resume, &mut registers);
    same("an entry with wrong RFLAGS", went as u64, Went::Exit as u64);
    same("its exit reason", read(EXIT_REASON), 0x8000_0021);
    write(GUEST_RFLAGS, right);

    let right = read(PIN_BASED);
    write(PIN_BASED, right & !2);
    let went = go(Entry::Resume, &mut registers);
    same(
        "an entry with wrong controls",
        went as u64,
        Went::FailValid as u64,
    );
    same("its error number", read(INSTRUCTION_ERROR), 7);
    write(PIN_BASED, right);

    let went = go(Entry::Launch, &mut registers);
    same(
        "VMLAUNCH of what was launched",
        went as u64,
        Went::FailValid as u64,
    );
    same("its error", read(INSTRUCTION_ERROR), 4);
}

/// A 64-bit guest in the payload's own address space, without EPT, that exits for what always does.
fn fields(guest: u64) -> impl Iterator<Item = (u32, u64)> {
    // The settings that must be 1.
    // SAFETY: the processor has VMX, hence these MSRs.
    let needed = |msr| unsafe { vmx::rdmsr(msr) } & 0xffff_ffff;
    let (cr0, cr4, efer): (u64, u64, u64);
    // SAFETY: reading control registers has no effect; EFER exists in 64-bit mode.
    unsafe {
        core::arch::asm!("mov {}, cr0", out(reg) cr0, options(nomem, nostack));
        core::arch::asm!("mov {}, cr4", out(reg) cr4, options(nomem, nostack));
        efer = vmx::rdmsr(0xc000_0080);
    }
    let controls = [
        (PIN_BASED, needed(0x481)),
        (0x4002, needed(0x482)),
        // Host address-space size; IA-32e mode guest. Both load EFER.
        (0x400c, needed(0x483) | 1 << 9 | 1 << 21),
        (0x4012, needed(0x484) | 1 << 9 | 1 << 15),
        (0x2800, u64::MAX),
    ];
    let host = [
        (0x6c00, cr0),
        (0x6c02, 0x1000),
        (0x6c04, cr4),
        (0x2c02, efer),
        (0x0c00, 0x10),
        (0x0c02, 0x08),
        (0x0c04, 0x10),
        (0x0c06, 0x10),
        (0x0c0c, 0x18),
        (0x6c16, vmx::way_back()),
    ];
    // ES to GS: selectors, limits, access rights. Then LDTR, unusable, and TR, a busy task.
    let segments = (0..6).flat_map(|n| {
        let (selector, rights) = if n == 1 { (8, 0xa09b) } else { (16, 0xc093) };
        [
            (0x0800 + 2 * n, selector),
            (0x4800 + 2 * n, 0xffff_ffff),
            (0x4814 + 2 * n, rights),
        ]
    });
    let others = [
        (0x4820, 0x1_0000),
        (0x080e, 0x18),
        (0x480e, 0x67),
        (0x4822, 0x8b),
        (0x6800, cr0),
        (0x6802, 0x1000),
        (0x6804, cr4),
        (0x2806, efer),
        (0x681a, 0x400),
        (0x681c, 0x9_0000),
        (GUEST_RIP, guest),
        (GUEST_RFLAGS, 2),
    ];
    controls
        .into_iter()
        .chain(host)
        .chain(segments)
        .chain(others)
}

fn go(entry: Entry, registers: &mut Registers) -> Went {
    // SAFETY: in VMX operation; `fields` gives the VMCS our way back and our own state, and the guest writes no memory.
    unsafe { vmx::go(entry, registers) }
}

fn read(field: u32) -> u64 {
    // SAFETY: in VMX operation, with a current VMCS.
    unsafe { vmx::read(field) }
}

fn write(field: u32, value: u64) {
    // SAFETY: as above.
    unsafe { vmx::write(field, value) };
}
