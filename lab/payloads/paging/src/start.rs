// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Temporary.
use core::arch::{asm, global_asm};

global_asm!(
    r#"
    .section .start, "ax"
    .code32
    .globl start
start:
    mov $0x1000, %edi
    mov %edi, %cr3
    xor %eax, %eax
    mov $0x1800, %ecx
    rep stosl
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x4003, 0x2008
    movl $0x5003, 0x2010
    movl $0x6003, 0x2018
    mov $0x3000, %edi
    mov $0x83, %eax
    mov $2048, %ecx
1:  mov %eax, (%edi)
    add $0x200000, %eax
    add $8, %edi
    loop 1b
    mov $0x620, %eax
    mov %eax, %cr4
    mov $0xc0000080, %ecx
    rdmsr
    or $0x900, %eax
    wrmsr
    mov $0x80000033, %eax
    mov %eax, %cr0
    lgdt gdtr
    ljmp $8, $long
    .code64
long:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x90000, %esp
    call main
2:  hlt
    jmp 2b
    .balign 8
gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr: .word 23
    .long gdt
"#,
    options(att_syntax)
);

unsafe fn outb(port: u16, value: u8) { unsafe { asm!("out dx, al", in("dx") port, in("al") value) } }
unsafe fn inb(port: u16) -> u8 { let v; unsafe { asm!("in al, dx", in("dx") port, out("al") v) }; v }

pub fn serial() { unsafe { for (p, v) in [(0x3fb, 0x80), (0x3f8, 1), (0x3f9, 0), (0x3fb, 3)] { outb(p, v) } } }
pub fn send(bytes: &[u8]) { for &b in bytes { unsafe { while inb(0x3fd) & 0x20 == 0 {} outb(0x3f8, b) } } }
pub fn power_off() -> ! { unsafe { for b in *b"Shutdown" { while inb(0x3fd) & 0x60 != 0x60 {} outb(0x8900, b) } } loop {} }
pub unsafe fn rdmsr(n: u32) -> u32 { let v; unsafe { asm!("rdmsr", in("ecx") n, out("eax") v, out("edx") _) }; v }
pub unsafe fn wrmsr(n: u32, v: u32) { unsafe { asm!("wrmsr", in("ecx") n, in("eax") v, in("edx") 0) } }

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! { send(b"PANIC"); power_off() }
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(d: *mut u8, s: *const u8, n: usize) -> *mut u8 {
    unsafe { asm!("rep movsb", inout("rcx") n => _, inout("rdi") d => _, inout("rsi") s => _, options(nostack, preserves_flags)) };
    d
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(d: *mut u8, c: i32, n: usize) -> *mut u8 {
    unsafe { asm!("rep stosb", inout("rcx") n => _, inout("rdi") d => _, in("al") c as u8, options(nostack, preserves_flags)) };
    d
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut i = 0;
    while i < n { let (x, y) = unsafe { (*a.add(i), *b.add(i)) }; if x != y { return x as i32 - y as i32 } i += 1 }
    0
}
