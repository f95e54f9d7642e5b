// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMX operation as a payload uses it: the instructions by themselves, and one way to a guest and back.
//!
//! Nothing here knows a VMCS field but host RSP; fields are encodings. Two of the guest's registers go in and come out; the
//! others are whatever the payload's code left in them.

use core::arch::{asm, global_asm};

/// IA32_FEATURE_CONTROL, with its lock and "VMX outside SMX" bits.
const FEATURE_CONTROL: u32 = 0x3a;
const ENABLED: u64 = 5;

/// The instruction that enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// VMLAUNCH.
    Launch,
    /// VMLAUNCH right after MOV to SS.
    LaunchAfterMovSs,
    /// VMRESUME.
    Resume,
}

/// How a VM entry went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Went {
    /// VMfailInvalid.
    FailInvalid,
    /// VMfailValid.
    FailValid,
    /// An exit, or a failure that looks like one.
    Exit,
}

/// Those of the guest's registers that a payload gives and is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// RAX.
    pub rax: u64,
    /// RDI.
    pub rdi: u64,
}

// An exit comes back with RSP, RIP and the control registers of the host-state area; everything else is the guest's. Host
// CR0 and CR4 may be a case's: they are put back before any other code runs.
global_asm!(
    r#"
    .globl payload_vmx_go
    // edi: 0 VMLAUNCH, 1 VMRESUME, 2 VMLAUNCH after MOV to SS; rsi: the registers. Returns 0 VMfailInvalid, 1 VMfailValid,
    // 2 exit.
payload_vmx_go:
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
    push %rsi
    mov $0x6c14, %eax           // host RSP
    vmwrite %rsp, %rax
    mov %edi, %edx
    mov (%rsi), %rax
    mov 8(%rsi), %rdi
    mov $16, %ecx
    cmp $1, %edx
    je 1f
    ja 2f
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
    .globl payload_vmx_back
payload_vmx_back:
    push %rax
    mov 8(%rsp), %rsi
    mov %rdi, 8(%rsi)
    pop %rax
    mov %rax, (%rsi)
    mov $2, %eax
4:  pop %rsi
    pop %rcx
    mov %rcx, %cr4
    pop %rcx
    mov %rcx, %cr0
    lgdt payload_vmx_gdtr
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbp
    pop %rbx
    cld
    ret
    .balign 8
payload_vmx_gdtr:
    .word 39
    .quad payload_gdt
"#,
    options(att_syntax)
);

unsafe extern "C" {
    fn payload_vmx_go(entry: u32, registers: *mut Registers) -> u32;
    static payload_vmx_back: u8;
}

/// Where exits come back: host RIP.
pub fn way_back() -> u64 {
    (&raw const payload_vmx_back) as u64
}

/// Enters. Host RSP is set here.
///
/// # Safety
///
/// In VMX root operation. The current VMCS, if there is one, has [`way_back`] as host RIP, or breaks a rule that is checked
/// before a guest runs; its host state keeps the payload's page tables and segments; and its guest can write nothing that
/// the payload relies on.
pub unsafe fn go(entry: Entry, registers: &mut Registers) -> Went {
    let entry = match entry {
        Entry::Launch => 0,
        Entry::Resume => 1,
        Entry::LaunchAfterMovSs => 2,
    };
    // SAFETY: the caller's promise; callee-saved registers, stack and control registers are put back.
    match unsafe { payload_vmx_go(entry, registers) } {
        0 => Went::FailInvalid,
        1 => Went::FailValid,
        _ => Went::Exit,
    }
}

/// Reads an MSR.
///
/// # Safety
///
/// It exists: another raises #GP, which ends the run.
pub unsafe fn rdmsr(index: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise; reading an MSR of these kinds changes nothing.
    unsafe {
        asm!("rdmsr", in("ecx") index, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes an MSR.
///
/// # Safety
///
/// It exists and takes the value, and what it changes must not break what the program relies on.
pub unsafe fn wrmsr(index: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

/// Allows VMX operation, sets CR4.VMXE and executes VMXON.
///
/// # Safety
///
/// The processor has VMX. `region` is the physical address of a page with the VMCS revision, mapped one to one and used by
/// nothing else from now on.
pub unsafe fn enter_operation(region: u64) {
    // SAFETY: a processor with VMX has this MSR. CR0 and CR4 are as VMX operation wants them; the region is the caller's
    // promise.
    unsafe {
        if rdmsr(FEATURE_CONTROL) & ENABLED != ENABLED {
            wrmsr(FEATURE_CONTROL, ENABLED);
        }
        asm!("mov {c}, cr4", "or {c}, 0x2000", "mov cr4, {c}", "vmxon [{at}]",
            c = out(reg) _, at = in(reg) &region, options(nostack));
    }
}

/// VMCLEAR.
///
/// # Safety
///
/// In VMX root operation; `region` is the physical address of a page that is a VMCS region and nothing else.
pub unsafe fn clear(region: u64) {
    // SAFETY: the caller's promise; failure would leave things as they are.
    unsafe { asm!("vmclear [{}]", in(reg) &region, options(nostack)) };
}

/// VMPTRLD.
///
/// # Safety
///
/// As for [`clear`].
pub unsafe fn load(region: u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("vmptrld [{}]", in(reg) &region, options(nostack)) };
}

/// VMREAD. Of a field that does not exist, whatever was in a register.
///
/// # Safety
///
/// In VMX root operation with a current VMCS.
pub unsafe fn read(field: u32) -> u64 {
    let value: u64;
    // SAFETY: the caller's promise; changes nothing.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field), options(nostack)) };
    value
}

/// VMWRITE; a field that does not exist is passed over.
///
/// # Safety
///
/// In VMX root operation with a current VMCS.
pub unsafe fn write(field: u32, value: u64) {
    // SAFETY: the caller's promise; effects are those of a later entry.
    unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack)) };
}

/// INVEPT, all contexts.
///
/// # Safety
///
/// In VMX root operation, and the processor has that type of INVEPT.
pub unsafe fn forget_translations() {
    let descriptor = [0u64; 2];
    // SAFETY: the caller's promise; nothing but caches changes.
    unsafe { asm!("invept {}, [{}]", in(reg) 2u64, in(reg) &descriptor, options(nostack)) };
}
