// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's code, its tables, and what its attempts gave.
//!
//! An attempt begins with RAX 77H and leaves in R15 where the next begins; any exception goes on there, with the vector in R13 and the error
//! code in R14. RDI is where the next result goes: RAX, vector, error code.

use core::arch::global_asm;

use payload_rt::println;

/// Guest-physical, which is physical, in the guest's memory below 2 MiB.
pub const CODE: u64 = 0x10_0000;
pub const PAGE_TABLES: u64 = 0x11_0000;
pub const GDT: u64 = 0x11_8000;
pub const GDT_LIMIT: u32 = 39;
pub const IDT: u64 = 0x11_9000;
pub const IDT_LIMIT: u32 = 16 * VECTORS as u32 - 1;
pub const STACK: u64 = 0x12_0000;
pub const RESULTS: u64 = 0x13_0000;

const VECTORS: usize = 32;
/// Bytes of a handler.
const STUB: u64 = 16;
/// Tables that begin where this program's page tables are, and its code: entries of level 3 and 2 of the guest's lead there.
const OUR_TABLES: u64 = 0x4000;
const OUR_CODE: u64 = 0x20_0000;

/// A page directory for addresses from 4 GiB on, which no attempt's own memory hangs on. The page before it is not a table.
const DIRECTORY: u64 = 0x11_5000;

macro_rules! attempts {
    ($($name:literal: $code:literal)*) => {
        /// The attempts in words.
        const NAMES: &[&str] = &[$($name),*];
        global_asm!(
            ".section .rodata.reach, \"a\"; .globl reach, reach_first; reach:",
            $(
                concat!("mov eax, 0x77; mov r13, -1; xor r14d, r14d; lea r15, [rip + 9f]; ", $code),
                "9: mov [rdi], rax; mov [rdi + 8], r13; mov [rdi + 16], r14; add rdi, 24",
            )*
            ".text",
        );
    };
}

attempts! {
    "an NMI that came before": "reach_first: nop"
    "load from its page tables": "mov rbx, 0x4008; mov rax, [rbx]"
    "load from its code": "mov rbx, 0x200008; mov rax, [rbx]"
    "load from its shadow tables": "mov rbx, 0xe038008; mov rax, [rbx]"
    "store to its page tables": "mov rbx, 0x4008; mov [rbx], rax"
    "store to its code": "mov rbx, 0x200008; mov [rbx], rax"
    "store to its shadow tables": "mov rbx, 0xe038008; mov [rbx], rax"
    "exchange with its code": "mov rbx, 0x200008; lock xchg [rbx], rax"
    "jump into its code": "mov rbx, 0x200008; jmp rbx"
    "another address of its code": "mov rbx, 0x19200008; mov rax, [rbx]"
    "store to another address of its code": "mov rbx, 0x19200008; mov [rbx], rax"
    "a page table in its code": "mov rbx, 0x19000000; mov rax, [rbx]"
    "a page directory in its page tables": "mov rbx, 0x80000000; mov rax, [rbx]"
    "RDMSR of IA32_VMX_BASIC": "mov ecx, 0x480; rdmsr"
    "RDMSR of IA32_VMX_EPT_VPID_CAP": "mov ecx, 0x48c; rdmsr"
    "WRMSR to IA32_FEATURE_CONTROL": "mov ecx, 0x3a; xor edx, edx; wrmsr"
    "IA32_APIC_BASE as it is": "mov ecx, 0x1b; rdmsr; wrmsr; mov eax, 0x77"
    "IA32_APIC_BASE at its code": "mov ecx, 0x1b; rdmsr; and eax, 0xfff; or eax, 0x200000; wrmsr"
    "RDMSR of IA32_RTIT_OUTPUT_BASE": "mov ecx, 0x560; rdmsr"
    "processor trace in CPUID": "mov eax, 7; xor ecx, ecx; cpuid; mov eax, ebx; and eax, 0x2000000"
    "WRMSR to IA32_DS_AREA": "mov ecx, 0x600; xor edx, edx; wrmsr"
    "WRMSR to IA32_PEBS_ENABLE": "mov ecx, 0x3f1; xor edx, edx; wrmsr"
    "debug store in CPUID": "mov eax, 1; cpuid; mov eax, edx; and eax, 0x200000; and ecx, 4; or eax, ecx"
    "VMX in CPUID": "mov eax, 1; cpuid; mov eax, ecx; and eax, 0x20"
    "CR4.VMXE": "mov rax, cr4; or eax, 0x2000; mov cr4, rax"
    "VMXON": "vmxon [rsp - 8]"
    "VMREAD": "mov ebx, 0x6c16; vmread rax, rbx"
    "INVEPT": "mov ecx, 2; invept rcx, [rsp - 16]"
    "VMCALL": "vmcall"
    "a store across into a page directory": "movabs rbx, 0x100000000; mov rax, [rbx]; mov ebx, 0x114ffc; movabs rax, 0x8300000077; \
        mov [rbx], rax; mov rax, [rbx]"
    "1100 stores across into a page directory": "mov ecx, 1100; 2: movabs rbx, 0x100000000; mov rax, [rbx]; mov ebx, 0x114ffc; \
        movabs rax, 0x8300000077; mov [rbx], rax; loop 2b; mov rax, [rbx]"
    "a move from ROM into a page directory, less what is in ROM": "movabs rbx, 0x100000000; mov rax, [rbx]; mov r12, rdi; mov esi, 0xffff0; \
        mov edi, 0x115008; movsq; mov rdi, r12; mov eax, 0x115008; mov rax, [rax]; mov ebx, 0xffff0; sub rax, [rbx]"
    "CR4.PKE less OSPKE in CPUID": "mov eax, 7; xor ecx, ecx; cpuid; mov r8d, ecx; shr r8d, 3; mov r9, cr4; mov r10, r9; \
        bt r8d, 0; jnc 2f; bts r9, 22; 2: mov cr4, r9; mov eax, 7; xor ecx, ecx; cpuid; mov cr4, r10; shr ecx, 3; mov eax, ecx; shr eax, 1; xor eax, ecx; and eax, 1"
    "INVPCID with a descriptor that is none": "push 0; push 0x1000; mov ecx, 2; invpcid rcx, [rsp]"
    "CR0.PG and CR0.NE cleared in 64-bit code": "mov rax, cr0; btr rax, 31; btr rax, 5; mov cr0, rax"
    "CR0.PG cleared in 64-bit code": "mov rax, cr0; btr rax, 31; mov cr0, rax"
    "CR0.PE cleared, and set again": "push 0x20; lea rbx, [rip + 2f]; push rbx; retfq; 2: .code32; mov ebx, 0x30; mov cr0, ebx; mov ebx, 0x80000033; \
        mov cr0, ebx; .byte 0xea; .long 3f - reach + 0x100000; .word 0x10; .code64; 3: "
    "CR3 in its page tables": "mov ecx, 0x4000; mov cr3, rcx"
    "INIT to its own processor": "mov ebx, 0xfee00300; mov dword ptr [rbx + 16], 0; mov dword ptr [rbx], 0x4500; mov ecx, 1000000; 2: loop 2b"
}

// After the last attempt: power off. Then the handlers.
global_asm!(
    r#"
    .section .rodata.reach, "a"
    mov $0xb004, %edx
    mov $0x2000, %eax
    out %ax, %dx
1:  hlt
    jmp 1b
    .globl reach_handlers, reach_end
    .balign 16
reach_handlers:
    .set vector, 0
    .rept 32
    .balign 16
    mov $vector, %r13d
    jmp reach_handle
    .set vector, vector + 1
    .endr
reach_handle:
    mov $0x60227d00, %r11d
    bt %r13d, %r11d
    jnc 1f
    pop %r14
1:  mov ${stack}, %esp
    jmp *%r15
reach_end:
    .text
"#,
    stack = const STACK,
    options(att_syntax),
);

// SAFETY: the assembly above defines each, of these types or of what is only pointed at.
unsafe extern "C" {
    static reach: u8;
    static reach_first: u8;
    static reach_handlers: u8;
    static reach_end: u8;
}

fn offset(symbol: *const u8) -> u64 {
    (symbol.addr() - (&raw const reach).addr()) as u64
}

/// Where the first attempt, which is one instruction of one byte, ends.
pub fn first_end() -> u64 {
    CODE + offset(&raw const reach_first) + 1
}

/// Copies the code into the guest's memory, and makes its tables.
///
/// # Safety
///
/// Memory from 1 to 2 MiB is mapped to itself, and nobody else's.
pub unsafe fn place() {
    let length = offset(&raw const reach_end) as usize;
    let put = |at: u64, value: u64| {
        // SAFETY: the caller's promise: only addresses in that memory are given.
        unsafe { (at as *mut u64).write_volatile(value) };
    };
    // SAFETY: the caller's promise; the code is shorter than the gap behind it.
    unsafe {
        core::ptr::write_bytes(CODE as *mut u8, 0, (RESULTS - CODE) as usize + 4096);
        core::ptr::copy_nonoverlapping(&raw const reach, CODE as *mut u8, length);
    }
    let [level_3, low, high] = [1, 2, 3].map(|page| PAGE_TABLES + 4096 * page);
    put(PAGE_TABLES, level_3 | 3);
    put(level_3, low | 3);
    put(level_3 + 8 * 2, OUR_TABLES | 3);
    put(level_3 + 8 * 3, high | 3);
    put(level_3 + 8 * 4, DIRECTORY | 3);
    put(DIRECTORY, 0x83);
    for page in 0..128 {
        put(low + 8 * page, page << 21 | 0x83);
    }
    put(low + 8 * 200, OUR_CODE | 3);
    put(low + 8 * 201, OUR_CODE | 0x83);
    // The local APIC, not cached.
    put(high + 8 * 503, 0xfee0_0000 | 0x9b);
    let flat = [
        0,
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
    ];
    for (descriptor, at) in flat.into_iter().zip((GDT..).step_by(8)) {
        put(at, descriptor);
    }
    let handlers = CODE + offset(&raw const reach_handlers);
    for vector in 0..VECTORS as u64 {
        let at = handlers + STUB * vector;
        put(
            IDT + 16 * vector,
            at & 0xffff | 0x10 << 16 | 0x8e00 << 32 | at >> 16 << 48,
        );
        put(IDT + 16 * vector + 8, 0);
    }
}

/// Prints what each attempt gave.
///
/// # Safety
///
/// As for [`place`], and the guest does not run.
pub unsafe fn print_results() {
    for (name, at) in NAMES.iter().zip((RESULTS..).step_by(24)) {
        let word = |offset: u64| {
            // SAFETY: the caller's promise.
            unsafe { ((at + offset) as *const u64).read_volatile() }
        };
        match (word(0), word(8), word(16)) {
            (0, 0, 0) => println!("reach: {name}: did not come back"),
            (rax, u64::MAX, _) => println!("reach: {name}: RAX {rax:#x}"),
            (_, vector, code) => {
                println!("reach: {name}: exception {vector}, error code {code:#x}")
            }
        }
    }
}
