// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMX instructions, one block of assembly each; RFLAGS is taken in the same block, as the compiler may change it
//! between two. SDM Vol. 3C, "VMX Instruction Reference".
#![expect(unsafe_code, reason = "the instructions")]

use core::arch::asm;

/// RFLAGS.CF and RFLAGS.ZF as a VMX instruction left them. "Conventions".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flags {
    /// VMsucceed.
    Succeed,
    /// VMfailInvalid: CF.
    FailInvalid,
    /// VMfailValid: ZF; the VM-instruction error says why.
    FailValid,
}

impl Flags {
    pub(crate) const fn new(carry: u8, zero: u8) -> Self {
        match (carry, zero) {
            (0, 0) => Self::Succeed,
            (0, _) => Self::FailValid,
            _ => Self::FailInvalid,
        }
    }
}

/// An instruction with a 64-bit memory operand that it reads.
macro_rules! pointer {
    ($($(#[$doc:meta])* $name:ident = $mnemonic:literal;)*) => {$(
        $(#[$doc])*
        pub(crate) unsafe fn $name(physical: u64) -> Flags {
            let (carry, zero): (u8, u8);
            // SAFETY: the caller's promise; the operand is a local.
            unsafe {
                asm!(concat!($mnemonic, " qword ptr [{at}]"), "setc {carry}", "setz {zero}",
                    at = in(reg) &physical, carry = lateout(reg_byte) carry, zero = lateout(reg_byte) zero,
                    options(nostack));
            }
            Flags::new(carry, zero)
        }
    )*};
}

pointer! {
    /// # Safety
    ///
    /// CR0, CR4 and `IA32_FEATURE_CONTROL` are as VMXON wants them, CPL is 0, and nothing else uses the region at
    /// `physical` until VMXOFF.
    vmxon = "vmxon";
    /// # Safety
    ///
    /// VMX root operation; nothing else uses the region.
    vmclear = "vmclear";
    /// # Safety
    ///
    /// VMX root operation; nothing else uses the region until VMCLEAR.
    vmptrld = "vmptrld";
}

/// # Safety
///
/// VMX root operation.
pub(crate) unsafe fn vmxoff() -> Flags {
    let (carry, zero): (u8, u8);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("vmxoff", "setc {}", "setz {}", lateout(reg_byte) carry, lateout(reg_byte) zero,
            options(nostack));
    }
    Flags::new(carry, zero)
}

/// # Safety
///
/// VMX root operation.
pub(crate) unsafe fn vmptrst() -> u64 {
    let mut physical = 0_u64;
    // SAFETY: the caller's promise; the operand is a local. The instruction does not fail.
    unsafe { asm!("vmptrst qword ptr [{}]", in(reg) &raw mut physical, options(nostack)) };
    physical
}

/// # Safety
///
/// VMX root operation.
#[inline(always)]
pub(crate) unsafe fn vmread(encoding: u64) -> Result<u64, Flags> {
    let (value, carry, zero): (u64, u8, u8);
    // SAFETY: the caller's promise. It touches no memory of the program. It is not `pure`: it stays in order with the
    // other blocks, such as VMPTRLD and VMWRITE.
    unsafe {
        asm!("vmread {value}, {encoding}", "setc {carry}", "setz {zero}",
            encoding = in(reg) encoding, value = out(reg) value,
            carry = out(reg_byte) carry, zero = out(reg_byte) zero, options(nomem, nostack));
    }
    match Flags::new(carry, zero) {
        Flags::Succeed => Ok(value),
        failed => Err(failed),
    }
}

/// # Safety
///
/// VMX root operation, or a guest with a shadow VMCS.
#[inline(always)]
pub(crate) unsafe fn vmwrite(encoding: u64, value: u64) -> Flags {
    let (carry, zero): (u8, u8);
    // SAFETY: the caller's promise. It touches no memory of the program.
    unsafe {
        asm!("vmwrite {encoding}, {value}", "setc {carry}", "setz {zero}",
            encoding = in(reg) encoding, value = in(reg) value,
            carry = lateout(reg_byte) carry, zero = lateout(reg_byte) zero, options(nomem, nostack));
    }
    Flags::new(carry, zero)
}

/// An instruction with a type in a register and a descriptor of 128 bits in memory.
macro_rules! invalidate {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        /// # Safety
        ///
        /// VMX root operation on a processor that has the instruction.
        pub(crate) unsafe fn $name(kind: u64, descriptor: [u64; 2]) -> Flags {
            let (carry, zero): (u8, u8);
            // SAFETY: the caller's promise; the operand is a local. Not `nomem`: stores to tables come before it.
            unsafe {
                asm!(concat!($mnemonic, " {kind}, xmmword ptr [{at}]"), "setc {carry}", "setz {zero}",
                    kind = in(reg) kind, at = in(reg) &descriptor,
                    carry = lateout(reg_byte) carry, zero = lateout(reg_byte) zero, options(nostack));
            }
            Flags::new(carry, zero)
        }
    )*};
}

invalidate! {
    invept = "invept";
    invvpid = "invvpid";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_the_conventions_say() {
        assert_eq!(Flags::new(0, 0), Flags::Succeed);
        assert_eq!(Flags::new(1, 0), Flags::FailInvalid);
        assert_eq!(Flags::new(0, 1), Flags::FailValid);
    }
}
