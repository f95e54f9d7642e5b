// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Into a case's paging mode, one access there, and back.
//!
//! ```text
//!   monitor: 64-bit, own tables          case: its CR0, CR3, CR4, EFER
//!   enter64 ---- control registers ----> access at CPL 0 or 3 --.
//!   enter32 -- compatibility segment,                           | exception, or int 0x81
//!              paging off, paging on --> access at CPL 0 or 3 --|
//!   returns <--- registers put back ---- handler <--------------'
//! ```
//!
//! The handler never returns to where the exception came from: it records, puts the monitor's registers
//! back and leaves through the stack pointer that was saved on entry.
//!
//! The access is one of six sequences whose bytes mean the same in 64-bit and in 32-bit code. A copy
//! at `sequences` runs at CPL 0, one in the user page at CPL 3.

use core::arch::global_asm;

use lab_cases::paging::STORED;

/// What goes into a case and what comes out; the assembly knows the offsets.
#[repr(C)]
#[derive(Default)]
pub(crate) struct Context {
    /// The monitor's stack pointer, CR0, CR3, CR4, EFER: saved once, put back after each case.
    pub(crate) rsp: u64,
    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    /// The case's.
    pub(crate) case_cr0: u64,
    pub(crate) case_cr3: u64,
    pub(crate) case_cr4: u64,
    pub(crate) case_efer: u64,
    pub(crate) pkru: u64,
    /// Where the access goes, what makes it, at CPL 3 if `user` is 1, with which flags.
    pub(crate) linear: u64,
    pub(crate) sequence: u64,
    pub(crate) user: u64,
    pub(crate) rflags: u64,
    /// What the handler found.
    pub(crate) vector: u64,
    pub(crate) error: u64,
    pub(crate) eax: u64,
    pub(crate) cr2: u64,
    pub(crate) rip: u64,
}

/// Bytes between two sequences.
pub(crate) const SEQUENCE_BYTES: u64 = 16;
/// How many there are.
pub(crate) const SEQUENCES: u64 = 6;

unsafe extern "C" {
    /// Runs the case in the context in 64-bit mode.
    pub(crate) fn enter64();
    /// The same in 32-bit protected mode.
    pub(crate) fn enter32();
    /// The sequences, in the order of `Doing`.
    pub(crate) static sequences: [u8; (SEQUENCE_BYTES * SEQUENCES) as usize];
    /// Entry points of the handlers, 16 bytes each: vectors 0 to 31, then the software interrupt.
    pub(crate) static handlers64: [u8; 33 * 16];
    /// The same for 32-bit protected mode.
    pub(crate) static handlers32: [u8; 33 * 16];
    /// The context.
    pub(crate) static mut context: Context;
    /// Ten bytes for LIDT: the table of 64-bit mode, and of 32-bit mode.
    pub(crate) static mut idtr64: [u8; 10];
    pub(crate) static mut idtr32: [u8; 10];
}

global_asm!(
    r#"
    .bss
    .balign 16
    .globl context, idtr64, idtr32
context: .skip 19 * 8
    .balign 16
idtr64: .skip 16
idtr32: .skip 16

    .text
    .balign 16
    .globl sequences
sequences:
    .byte 0x8b, 0x07, 0xcd, 0x81                    /* mov eax, [di]; int 0x81 */
    .balign 16
    .byte 0xc7, 0x47, 0x04                          /* mov [di + 4], STORED */
    .long {stored}
    .byte 0x8b, 0x07, 0xcd, 0x81                    /* mov eax, [di]; int 0x81 */
    .balign 16
    .byte 0x87, 0x07, 0xcd, 0x81                    /* xchg [di], eax; int 0x81 */
    .balign 16
    .byte 0xff, 0xe7                                /* jmp di */
    .balign 16
    .byte 0xb8, 4, 0, 0, 0                          /* mov eax, 4: the LDT's first */
    .byte 0x0f, 0x00, 0xe0, 0xcd, 0x81              /* verr ax; int 0x81 */
    .balign 16
    .byte 0x31, 0xc0                                /* xor eax, eax */
    .byte 0x66, 0x0f, 0x38, 0xf5, 0x47, 0x04        /* wrussd [di + 4], eax */
    .byte 0xcd, 0x81                                /* int 0x81 */
    .balign 16

    .globl enter64
enter64:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    mov [rip + context], rsp
    mov rax, [rip + context + 0x28]                 /* WP before CET */
    mov cr0, rax
    mov rax, [rip + context + 0x38]
    mov cr4, rax
    bt rax, 22                                      /* PKE */
    jnc 1f
    xor ecx, ecx
    xor edx, edx
    mov eax, [rip + context + 0x48]
    wrpkru
1:  mov ecx, 0xc0000080
    mov eax, [rip + context + 0x40]
    xor edx, edx
    wrmsr
    xor eax, eax
    mov cr2, rax
    mov rdi, [rip + context + 0x50]
    mov rsi, [rip + context + 0x58]
    mov rax, [rip + context + 0x30]
    mov cr3, rax
    cmp dword ptr [rip + context + 0x60], 0
    jne 2f
    push qword ptr [rip + context + 0x68]
    popfq
    mov eax, {stored}
    jmp rsi
2:  push 0x23
    push 0
    push qword ptr [rip + context + 0x68]
    push 0x33
    push rsi
    mov eax, {stored}
    iretq

    .globl enter32
enter32:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    mov [rip + context], rsp
    lidt [rip + idtr32]
    push 0x18
    lea rax, [rip + 1f]
    push rax
    retfq
    .code32
1:  mov eax, 0x10
    mov ss, eax
    mov eax, 0x23
    mov ds, eax
    mov es, eax
    mov eax, dword ptr [context + 0x28]
    and eax, 0x7fffffff                             /* PG */
    mov cr0, eax
    mov ecx, 0xc0000080
    mov eax, dword ptr [context + 0x40]
    xor edx, edx
    wrmsr
    mov eax, dword ptr [context + 0x38]
    mov cr4, eax
    mov eax, dword ptr [context + 0x30]
    mov cr3, eax
    xor eax, eax
    mov cr2, eax
    mov eax, dword ptr [context + 0x28]
    mov cr0, eax
    jmp 2f
2:  mov edi, dword ptr [context + 0x50]
    mov esi, dword ptr [context + 0x58]
    cmp dword ptr [context + 0x60], 0
    jne 3f
    push dword ptr [context + 0x68]
    popfd
    mov eax, {stored}
    jmp esi
3:  push 0x23
    push 0
    push dword ptr [context + 0x68]
    push 0x2b
    push esi
    mov eax, {stored}
    iretd
    .code64

    .globl handlers64
    .balign 16
handlers64:
    .set vector, 0
    .rept 33
    .balign 16
    .if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17)
    push 0
    .endif
    .byte 0x6a, vector                              /* push vector */
    jmp 4f
    .set vector, vector + 1
    .endr
4:  mov [rip + context + 0x80], rax
    pop rax
    mov [rip + context + 0x70], rax
    pop rax
    mov [rip + context + 0x78], rax
    mov rax, cr2
    mov [rip + context + 0x88], rax
    mov rax, [rsp]
    mov [rip + context + 0x90], rax
    mov rax, [rip + context + 0x10]
    mov cr3, rax
    mov ecx, 0xc0000080
    mov eax, [rip + context + 0x20]
    xor edx, edx
    wrmsr
    mov rax, [rip + context + 0x18]
    mov cr4, rax
    mov rax, [rip + context + 0x08]
    mov cr0, rax
5:  mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    mov rsp, [rip + context]
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

    .code32
    .globl handlers32
    .balign 16
handlers32:
    .set vector, 0
    .rept 33
    .balign 16
    .if (vector != 8) && (vector < 10 || vector > 14) && (vector != 17)
    push 0
    .endif
    .byte 0x6a, vector
    jmp 6f
    .set vector, vector + 1
    .endr
6:  mov dword ptr [context + 0x80], eax
    pop eax
    mov dword ptr [context + 0x70], eax
    pop eax
    mov dword ptr [context + 0x78], eax
    mov eax, cr2
    mov dword ptr [context + 0x88], eax
    mov eax, [esp]
    mov dword ptr [context + 0x90], eax
    mov eax, cr0
    and eax, 0x7fffffff
    mov cr0, eax
    mov eax, dword ptr [context + 0x18]
    mov cr4, eax
    mov eax, dword ptr [context + 0x10]
    mov cr3, eax
    mov ecx, 0xc0000080
    mov eax, dword ptr [context + 0x20]
    xor edx, edx
    wrmsr
    mov eax, dword ptr [context + 0x08]
    mov cr0, eax
    lidt [idtr64]
    push 8
    mov eax, offset back64
    push eax
    retf
    .code64
back64:
    jmp 5b
    "#,
    stored = const STORED,
);
