// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From host to guest and back.
//!
//! ```text
//!   stack at the exit:   | Registers* | FxState* or 0 | r15 r14 r13 r12 rbx rbp | return address |
//!                        ^ host RSP field
//! ```
//!
//! The processor switches RIP, RSP, RFLAGS, CR0, CR3, CR4, DR7, segments and some MSRs; this file all other
//! general-purpose registers, CR2, and if asked x87 and SSE registers, which compiled code may use right after the exit.
//! What the host has in those need not be kept: the calling convention leaves them to the callee, but for two control
//! words.
#![expect(unsafe_code, reason = "the switch is assembly")]

use core::arch::{asm, naked_asm};

use hvkit_vmcs::check::EntryInstruction;
use hvkit_vmcs::fields as f;

use crate::instructions::Flags;
use crate::registers::{CR2, DebugRegisters, FxState, Registers};

/// What [`switch`] returns for an exit; otherwise bit 0 is CF and bit 1 ZF of the VM-entry instruction.
const EXITED: u64 = 4;

/// MXCSR as Rust code expects it: every exception masked, round to nearest.
const MXCSR: u32 = 0x1f80;

/// Enters with VMLAUNCH (`resume` 0) or VMRESUME, and returns after the exit.
///
/// # Safety
///
/// As for [`enter`]; `registers` is valid for reads and writes until this returns, and `fx` too unless it is null.
#[unsafe(naked)]
unsafe extern "sysv64" fn switch(registers: *mut Registers, resume: u64, fx: *mut FxState) -> u64 {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "push rdx",
        "push rdi",
        // Where the exit comes back: here, whatever the stack's depth.
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "jbe 3f",
        "mov eax, {host_rip}",
        "lea rcx, [rip + 4f]",
        "vmwrite rax, rcx",
        "jbe 3f",
        "mov rax, [rdi + {cr2}]",
        "mov cr2, rax",
        "test rdx, rdx",
        "jz 6f",
        "fxrstor64 [rdx]",
        "6:",
        // MOV does not change the flags: this decides below.
        "test rsi, rsi",
        "mov rax, [rdi + 8 * 0]",
        "mov rcx, [rdi + 8 * 1]",
        "mov rdx, [rdi + 8 * 2]",
        "mov rbx, [rdi + 8 * 3]",
        "mov rbp, [rdi + 8 * 5]",
        "mov rsi, [rdi + 8 * 6]",
        "mov r8, [rdi + 8 * 8]",
        "mov r9, [rdi + 8 * 9]",
        "mov r10, [rdi + 8 * 10]",
        "mov r11, [rdi + 8 * 11]",
        "mov r12, [rdi + 8 * 12]",
        "mov r13, [rdi + 8 * 13]",
        "mov r14, [rdi + 8 * 14]",
        "mov r15, [rdi + 8 * 15]",
        "mov rdi, [rdi + 8 * 7]",
        "jnz 2f",
        "vmlaunch",
        "jmp 3f",
        "2:",
        "vmresume",
        // No exit: the instruction failed, and the flags say how. The guest's registers are as they were.
        "3:",
        "setz al",
        "setc cl",
        "movzx eax, al",
        "movzx ecx, cl",
        "lea eax, [rcx + 2 * rax]",
        "mov rdx, [rsp + 8]",
        "add rsp, 16",
        "jmp 7f",
        // An exit. RSP is as it was written above.
        "4:",
        "xchg rdi, [rsp]",
        "mov [rdi + 8 * 0], rax",
        "mov [rdi + 8 * 1], rcx",
        "mov [rdi + 8 * 2], rdx",
        "mov [rdi + 8 * 3], rbx",
        "mov [rdi + 8 * 5], rbp",
        "mov [rdi + 8 * 6], rsi",
        "mov [rdi + 8 * 8], r8",
        "mov [rdi + 8 * 9], r9",
        "mov [rdi + 8 * 10], r10",
        "mov [rdi + 8 * 11], r11",
        "mov [rdi + 8 * 12], r12",
        "mov [rdi + 8 * 13], r13",
        "mov [rdi + 8 * 14], r14",
        "mov [rdi + 8 * 15], r15",
        "pop qword ptr [rdi + 8 * 7]",
        "mov rax, cr2",
        "mov [rdi + {cr2}], rax",
        // What the guest left in registers that the caller does not expect anything in is not for us to speculate with.
        "xor ecx, ecx",
        "xor esi, esi",
        "xor edi, edi",
        "xor r8d, r8d",
        "xor r9d, r9d",
        "xor r10d, r10d",
        "xor r11d, r11d",
        "mov eax, {exited}",
        "pop rdx",
        "test rdx, rdx",
        "jz 5f",
        "fxsave64 [rdx]",
        // Also after a failed entry, which has loaded the guest's.
        "7:",
        "test rdx, rdx",
        "jz 5f",
        "fninit",
        "push {mxcsr}",
        "ldmxcsr [rsp]",
        "add rsp, 8",
        "5:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
        host_rsp = const f::HOST_RSP.encoding().0,
        host_rip = const f::HOST_RIP.encoding().0,
        cr2 = const CR2,
        exited = const EXITED,
        mxcsr = const MXCSR,
    )
}

/// Enters the guest of the current VMCS. `Ok` after an exit, which may be an entry failure with bit 31 of the reason set.
///
/// # Safety
///
/// VMX root operation with a current VMCS whose host state, but for RIP and RSP, is this processor's, and whose guest
/// cannot reach this program's memory.
#[inline]
pub(crate) unsafe fn enter(
    registers: &mut Registers,
    instruction: EntryInstruction,
    fx: Option<&mut FxState>,
) -> Result<(), Flags> {
    let resume = match instruction {
        EntryInstruction::Launch => 0,
        EntryInstruction::Resume => 1,
    };
    let fx = fx.map_or(core::ptr::null_mut(), core::ptr::from_mut);
    // SAFETY: the caller's promise. `switch` keeps what the calling convention asks for, and an exit comes back into it
    // with the stack as it was.
    match unsafe { switch(registers, resume, fx) } {
        EXITED => Ok(()),
        flags => Err(Flags::new((flags & 1) as u8, (flags >> 1) as u8)),
    }
}

/// Loads debug registers and returns what was there.
///
/// # Safety
///
/// CPL 0, and DR7 enables no breakpoint.
pub(crate) unsafe fn exchange_debug(new: &DebugRegisters) -> DebugRegisters {
    let mut old = DebugRegisters::default();
    let [a, b, c, d] = &mut old.addresses;
    // SAFETY: the caller's promise: no address of these has an effect.
    unsafe {
        asm!("mov {}, dr0", "mov {}, dr1", "mov {}, dr2", "mov {}, dr3", "mov {}, dr6",
            out(reg) *a, out(reg) *b, out(reg) *c, out(reg) *d, out(reg) old.status,
            options(nomem, nostack));
        let [a, b, c, d] = new.addresses;
        asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr6, {}",
            in(reg) a, in(reg) b, in(reg) c, in(reg) d, in(reg) new.status,
            options(nomem, nostack));
    }
    old
}
