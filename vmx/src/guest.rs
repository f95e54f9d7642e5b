// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest does to talk to its hypervisor. SDM Vol. 3C, "VMCALL", "VMFUNC".
#![expect(unsafe_code, reason = "VMCALL and VMFUNC")]

use core::arch::asm;

/// VMCALL with a number in RAX and three values in RBX, RCX and RDX; returns RAX.
///
/// Which registers mean what is between a guest and its hypervisor; these are this crate's choice, as
/// [`Hypercall`](crate::exit::Hypercall) reads them.
///
/// # Safety
///
/// The program runs as a guest of a hypervisor that keeps all other registers, and whatever it does with the call is what
/// the program expects. Elsewhere the instruction faults.
pub unsafe fn vmcall(number: u64, arguments: [u64; 3]) -> u64 {
    let [a, b, c] = arguments;
    let result;
    // SAFETY: the caller's promise. RBX is not for operands: it is swapped in and out.
    unsafe {
        asm!("xchg rbx, {a}", "vmcall", "mov rbx, {a}",
            a = inout(reg) a => _, inout("rax") number => result, in("rcx") b, in("rdx") c,
            options(nostack));
    }
    result
}

/// VMFUNC 0: goes on with the EPT of this index in the list that the hypervisor made.
///
/// # Safety
///
/// The program runs as a guest for which the hypervisor enabled EPTP switching, and goes on in the memory that the other
/// EPT maps. An index without a valid entry exits.
pub unsafe fn switch_eptp(index: u32) {
    // SAFETY: the caller's promise. RFLAGS is not changed.
    unsafe { asm!("vmfunc", in("eax") 0, in("ecx") index, options(nostack, preserves_flags)) }
}
