// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The instructions, and the way to a guest and back.

use core::arch::{asm, global_asm};

use hvkit_vmcs::Encoding;

/// How a VM entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Went {
    FailInvalid,
    FailValid,
    Exit,
}

// An exit comes back with RSP, RIP and the control registers of the host-state area; everything else is the guest's. Host
// CR0 and CR4 may be a case's: they are put back before any other code runs.
global_asm!(
    r#"
    .globl vm_entry_go
    // edi: 1 for VMRESUME; esi: 1 for an entry in the shadow of MOV SS. Returns 0 VMfailInvalid, 1 VMfailValid, 2 exit.
vm_entry_go:
    push %rbx
    push %rbp
    push %r12
    push %r13
    push %r14
    push %r15
    mov %cr0, %rax
    push %rax
    mov %cr4, %rax
    push %rax
    mov $0x6c14, %eax           // host RSP
    vmwrite %rsp, %rax
    mov $16, %ecx
    test %esi, %esi
    jnz 2f
    test %edi, %edi
    jnz 1f
    vmlaunch
    jmp 3f
1:  vmresume
    jmp 3f
2:  mov %ecx, %ss
    vmlaunch
3:  mov $1, %eax
    jz 4f
    xor %eax, %eax
    jmp 4f
    .globl vm_entry_back
vm_entry_back:
    mov $2, %eax
4:  pop %rcx
    mov %rcx, %cr4
    pop %rcx
    mov %rcx, %cr0
    lgdt vm_entry_gdtr
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    cld
    ret
    .balign 8
vm_entry_gdtr:
    .word 39
    .quad payload_gdt
"#,
    options(att_syntax)
);

unsafe extern "C" {
    fn vm_entry_go(resume: u32, mov_ss: u32) -> u32;
    static vm_entry_back: u8;
}

/// Where exits come back.
pub(crate) fn way_back() -> u64 {
    (&raw const vm_entry_back) as u64
}

/// Enters.
pub(crate) fn go(resume: bool, mov_ss: bool) -> Went {
    // SAFETY: the VMCS that is current has our own way back, as `store` sees to; a case that gets further than the host
    // state keeps our page tables, and its guest exits before its first instruction.
    match unsafe { vm_entry_go(u32::from(resume), u32::from(mov_ss)) } {
        0 => Went::FailInvalid,
        1 => Went::FailValid,
        _ => Went::Exit,
    }
}

/// Reads an MSR that exists.
pub(crate) fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: callers name MSRs that the processor has; reading these changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack))
    };
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
pub(crate) fn wrmsr(index: u32, value: u64) {
    // SAFETY: only used to enable VMX.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// CR4.VMXE and VMXON.
pub(crate) fn enter_operation(region: u64) {
    // SAFETY: the region has the revision, and is used by nothing else. CR0 and CR4 are as VMX operation wants them.
    unsafe {
        asm!("mov {c}, cr4", "or {c}, 0x2000", "mov cr4, {c}", "vmxon [{at}]",
            c = out(reg) _, at = in(reg) &region, options(nostack));
    }
}

/// VMCLEAR.
pub(crate) fn clear(region: u64) {
    // SAFETY: a VMCS region of ours; failure would leave things as they are.
    unsafe { asm!("vmclear [{}]", in(reg) &region, options(nostack)) };
}

/// VMPTRLD.
pub(crate) fn load(region: u64) {
    // SAFETY: as above.
    unsafe { asm!("vmptrld [{}]", in(reg) &region, options(nostack)) };
}

/// VMREAD of a field that exists.
pub(crate) fn read(field: Encoding) -> u64 {
    let value: u64;
    // SAFETY: in VMX root operation with a current VMCS; changes nothing.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field.0), options(nostack)) };
    value
}

/// VMWRITE; a field that does not exist is passed over.
pub(crate) fn write(field: Encoding, value: u64) {
    // SAFETY: in VMX root operation with a current VMCS.
    unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field.0), in(reg) value, options(nostack)) };
}
