// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way in: flat 32-bit protected mode to long mode with SSE, then `main`.

core::arch::global_asm!(
    r#"
    .section .payload_start, "ax"
    .code32
    .globl payload_start
payload_start:
    mov %eax, %esi              // what a boot loader leaves
    // The flat image ends where .bss starts.
    mov $payload_bss_start, %edi
    mov $payload_bss_end, %ecx
    sub %edi, %ecx
    xor %eax, %eax
    cld
    rep stosb
    mov %esi, payload_boot
    mov %ebx, payload_boot + 4

    // Level 4 at 0x1000, level 3 at 0x2000, four of level 2 from 0x3000: 2048 pages of 2 MiB.
    mov $0x1000, %edi
    mov %edi, %cr3
    mov $0x1800, %ecx
    rep stosl
    movl $0x2003, 0x1000
    mov $0x3003, %eax
    mov $0x2000, %edi
    mov $4, %ecx
1:  mov %eax, (%edi)
    add $0x1000, %eax
    add $8, %edi
    loop 1b
    mov $0x83, %eax             // present, writable, large
    mov $0x3000, %edi
    mov $2048, %ecx
2:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 2b

    mov $0x620, %eax            // CR4: PAE, OSFXSR, OSXMMEXCPT
    mov %eax, %cr4
    mov $0xc0000080, %ecx       // EFER: LME, NXE
    rdmsr
    or $0x900, %eax
    wrmsr
    mov $0x80000033, %eax       // CR0: PG, NE, ET, MP, PE
    mov %eax, %cr0
    lgdt payload_gdtr
    ljmp $8, $payload_long

    .code64
payload_long:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    xor %eax, %eax
    mov %eax, %fs
    mov %eax, %gs
    mov $0x90000, %esp
    xor %ebp, %ebp
    call {rust}
    ud2

    .balign 8
    // Code 64-bit, data, and a free pair for a task state segment.
    .globl payload_gdt
payload_gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0, 0
payload_gdtr:
    .word 39
    .long payload_gdt
    .section .bss
    .balign 8
    .globl payload_boot
payload_boot:
    .quad 0
    .text
"#,
    rust = sym rust,
    options(att_syntax)
);

unsafe extern "C" {
    /// Defined by `entry!`.
    safe fn payload_main();
    static payload_boot: [u32; 2];
}

/// EAX and EBX as they were at the first instruction: by Multiboot, a magic number and where the boot information is.
pub fn boot_words() -> [u32; 2] {
    // SAFETY: written before any Rust code ran, and never again.
    unsafe { payload_boot }
}

extern "C" fn rust() -> ! {
    crate::serial::prepare();
    payload_main();
    crate::shutdown()
}
