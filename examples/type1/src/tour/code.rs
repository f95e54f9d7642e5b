// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guests' code, and the memory they begin with.
//!
//! Each step leaves in R15 (in real mode: DI) where the next begins. So an exit that does not record the length of an
//! instruction can be left behind, and one that does can be checked.

use core::arch::global_asm;

/// Guest-physical: the code in 64-bit mode, in real mode, the page tables (three pages), the stack's end.
pub const LONG_MODE: u64 = 0x4000;
pub const REAL_MODE: u64 = 0x2000;
pub const PAGE_TABLES: u64 = 0x1_0000;
pub const STACK: u64 = 0x2_0000;

/// Calls to the hypervisor, in RAX.
pub mod call {
    /// The guest has ended.
    pub const END: u64 = 1;
    /// Take the page on demand away.
    pub const TAKE_AWAY: u64 = 2;
    /// Exit after the next instruction.
    pub const STEP: u64 = 3;
    /// Exit after a while.
    pub const TIMER: u64 = 4;
    /// Exit as soon as an interrupt could be taken.
    pub const WINDOW: u64 = 5;
    /// Let exceptions go to the guest, which has no handlers: a triple fault.
    pub const LET_GO: u64 = 6;
}

macro_rules! steps {
    ($($step:literal)*) => {
        /// The steps in 64-bit mode, as they are written.
        const STEPS: &[&str] = &[$($step),*];
        global_asm!(
            ".section .rodata.tour_ends, \"a\"; tour_ends:",
            ".section .rodata.tour, \"a\"; tour_long:",
            $(
                concat!("lea r15, [rip + 9f]; ", $step),
                "9: .pushsection .rodata.tour_ends; .long 9b - tour_long; .popsection",
            )*
            "tour_long_end: .text",
        );
    };
}

steps! {
    // Instructions that always exit, or do here.
    "mov eax, 0x80000000; cpuid"
    "mov ecx, 0x10; rdmsr"
    "mov ecx, 0xc0000102; mov eax, 5; mov edx, 6; wrmsr"
    "hlt"
    "pause"
    "invd"
    "wbinvd"
    "mov rax, 0x7000; invlpg [rax + 0x123]"
    "rdtsc"
    "rdtscp"
    "xor ecx, ecx; rdpmc"
    "mov eax, 0x5000; xor ecx, ecx; xor edx, edx; monitor"
    "xor eax, eax; mwait"
    "rdrand ecx"
    "rdrand r9"
    "rdseed r10w"
    "xor ecx, ecx; mov eax, 7; xor edx, edx; xsetbv"
    "mov eax, 1; lea rbx, [rsp - 64]; invpcid rax, [rbx + rcx * 2 + 8]"
    // Ports.
    "in al, 0x60"
    "mov al, 0x5a; out 0x80, al"
    "mov dx, 0x3f8; in ax, dx"
    "mov eax, 0x12345678; mov dx, 0xcf8; out dx, eax"
    "mov dx, 0x1f0; lea rsi, [rsp - 64]; outsb"
    "mov dx, 0x1f0; lea rdi, [rsp - 64]; mov ecx, 2; rep insd"
    "mov dx, 0x1f0; lea esi, [rsp - 64]; outs dx, word ptr gs:[esi]"
    // Control and debug registers.
    "mov rbx, cr0; xor rbx, 0x10000; mov cr0, rbx"
    "clts"
    "mov eax, 0xfff7; lmsw ax"
    "mov word ptr [rsp - 8], 0xfffb; lmsw [rsp - 8]"
    "mov r11, cr3"
    "mov cr3, r11"
    "mov rbx, cr4; xor rbx, 0x80; mov cr4, rbx"
    "mov r9, cr8"
    "mov cr8, r9"
    "mov rsi, dr7"
    "mov rcx, 0x7000; mov dr3, rcx"
    // Descriptor tables, with all kinds of operands.
    "sgdt [rsp - 16]"
    "lea rbx, [rsp - 64]; mov r12, 1; sidt [rbx + r12 * 8 - 16]"
    "lgdt [rip + 0x40]"
    "mov ebp, 0x5000; lidt fs:[ebp + 0x10]"
    "sldt r11d"
    "str word ptr [rsp - 8]"
    "xor eax, eax; lldt ax"
    "ltr word ptr [rsp - 8]"
    // VMX instructions.
    "vmclear [rsp - 8]"
    "mov r13, rsp; vmptrld [r13 - 0x80]"
    "vmptrst [rsp + rax * 4 - 8]"
    "vmxon [rsp - 8]"
    "vmxoff"
    "vmlaunch"
    "vmresume"
    "mov ebx, 0x681e; vmread rax, rbx"
    "mov edx, 0x6820; vmread [rsp + rcx * 8 - 0x100], rdx"
    "mov r8, 0x4400; vmwrite r8, r9"
    "mov ecx, 1; invept rcx, [rsp - 16]"
    "mov r14, 2; invvpid r14, [rsp - 16]"
    "mov eax, 0; mov ecx, 5; vmfunc"
    // Memory that is not there, not writable, not executable, or not directly reachable.
    "mov rbx, 0x300008; mov rax, [rbx]"
    "mov qword ptr [rbx], 7"
    "mov eax, 2; vmcall"
    "add dword ptr [rbx], 1"
    "mov eax, 2; vmcall"
    "mov rax, 0x300800; jmp rax"
    "mov rbx, 0x200010; mov [rbx], rax"
    "lock inc dword ptr [rbx]"
    "mov rbx, 0x8000000000; mov rax, [rbx]"
    "mov rbx, 0x3f0300; mov eax, [rbx]"
    "mov dword ptr [rbx + 0x10], 0xfee"
    // Exceptions.
    "ud2"
    "int3"
    ".byte 0xf1"
    "mov rbx, 0x600008; mov rax, [rbx]"
    "mov [rbx], rax"
    "mov rax, 0x600800; jmp rax"
    "mov rbx, 0x8000000000000000; mov rax, [rbx]"
    "mov rsp, rbx; push rax"
    "mov rsp, 0x20000; xor ecx, ecx; div ecx"
    "int 0x40"
    // Windows, traps and timers.
    "mov eax, 3; vmcall"
    "nop"
    "mov eax, 4; vmcall"
    "2: jmp 2b"
    "sti; 2: jmp 2b"
    "mov eax, 5; vmcall"
    "sti; nop; 2: jmp 2b"
    "mov eax, 6; vmcall"
    "ud2"
    "mov eax, 1; vmcall"
}

global_asm!(
    ".section .rodata.tour, \"a\"",
    ".code16",
    "tour_real:",
    "movw $(21f - tour_real + {base}), %di; movl $1, %eax; cpuid",
    "21: movw $(22f - tour_real + {base}), %di; hlt",
    "22: movw $(23f - tour_real + {base}), %di; inb $0x71, %al",
    "23: movw $(24f - tour_real + {base}), %di; movl $0x1b, %ecx; rdmsr",
    "24: movw $(25f - tour_real + {base}), %di; movl $0x38, %ebx; movl %ebx, %cr0",
    "25: movw $(26f - tour_real + {base}), %di; movw $0x1f0, %dx; movw $0x5000, %si; outsb",
    "26: movw $(27f - tour_real + {base}), %di; movw $0x10, %bx; lgdtw (%bx, %si)",
    "27: movw $(28f - tour_real + {base}), %di; movw $0x3000, %ax; movw %ax, %ds; movb $1, 0",
    "28: movl $1, %eax; vmcall",
    "tour_real_end:",
    ".code64",
    ".text",
    base = const REAL_MODE,
    options(att_syntax),
);

unsafe extern "C" {
    static tour_long: u8;
    static tour_long_end: u8;
    static tour_ends: u32;
    static tour_real: u8;
    static tour_real_end: u8;
}

/// The step in 64-bit mode that ends at this guest address, as it is written.
pub fn step_that_ends(at: u64) -> &'static str {
    let number = STEPS.iter().enumerate().find(|(number, _)| {
        // SAFETY: the table has an end for each step.
        let end = unsafe { (&raw const tour_ends).add(*number).read() };
        LONG_MODE + u64::from(end) == at
    });
    number.map_or("real mode", |(_, step)| step)
}

/// Copies the code and page tables into the guest's memory, which lies at `ram`. Returns the bytes of 64-bit code.
///
/// # Safety
///
/// 2 MiB at `ram` are mapped to themselves, and nobody else uses them.
pub unsafe fn place(ram: u64) -> usize {
    let mut length = 0;
    // SAFETY: the caller's promise; the code lies in this program, between the symbols, and is shorter than what is
    // between the places.
    unsafe {
        core::ptr::write_bytes(ram as *mut u8, 0, 0x2_0000);
        for (at, start, end) in [
            (REAL_MODE, &raw const tour_real, &raw const tour_real_end),
            (LONG_MODE, &raw const tour_long, &raw const tour_long_end),
        ] {
            length = end.addr() - start.addr();
            core::ptr::copy_nonoverlapping(start, (ram + at) as *mut u8, length);
        }
        // Level 4, 3 and 2: the first 4 MiB to themselves in pages of 2 MiB. From 512 GiB on, a level 3 in a hole.
        for (at, entry) in [
            (PAGE_TABLES, PAGE_TABLES + 0x1000 + 7),
            (PAGE_TABLES + 8, super::GUEST_ON_DEMAND + 0x2_0007),
            (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000 + 7),
            (PAGE_TABLES + 0x2000, 0x87),
            (PAGE_TABLES + 0x2008, 0x20_0087),
        ] {
            ((ram + at) as *mut u64).write_volatile(entry);
        }
    }
    length
}
