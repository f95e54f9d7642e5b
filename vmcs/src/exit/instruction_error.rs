// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VM-instruction error numbers. SDM Vol. 3C, "VM Instruction Error Numbers".

use core::fmt;

/// Why a VMX instruction failed with RFLAGS.ZF = 1. Open: a processor newer than this crate yields a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct InstructionError(pub u32);

macro_rules! errors {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        impl InstructionError {
            $(
                #[doc = concat!($text, ".")]
                pub const $name: Self = Self($number);
            )*

            /// Every number the manual defines.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What the manual says of the number, if it defines it.
            pub const fn text(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

errors! {
    VMCALL_IN_ROOT = 1, "VMCALL executed in VMX root operation";
    VMCLEAR_ADDRESS = 2, "VMCLEAR with invalid physical address";
    VMCLEAR_VMXON_POINTER = 3, "VMCLEAR with VMXON pointer";
    LAUNCH_NOT_CLEAR = 4, "VMLAUNCH with non-clear VMCS";
    RESUME_NOT_LAUNCHED = 5, "VMRESUME with non-launched VMCS";
    RESUME_AFTER_VMXOFF = 6, "VMRESUME after VMXOFF";
    INVALID_CONTROLS = 7, "VM entry with invalid control field(s)";
    INVALID_HOST_STATE = 8, "VM entry with invalid host-state field(s)";
    VMPTRLD_ADDRESS = 9, "VMPTRLD with invalid physical address";
    VMPTRLD_VMXON_POINTER = 10, "VMPTRLD with VMXON pointer";
    VMPTRLD_REVISION = 11, "VMPTRLD with incorrect VMCS revision identifier";
    UNSUPPORTED_FIELD = 12, "VMREAD/VMWRITE from/to unsupported VMCS component";
    READ_ONLY_FIELD = 13, "VMWRITE to read-only VMCS component";
    VMXON_IN_ROOT = 15, "VMXON executed in VMX root operation";
    EXECUTIVE_INVALID = 16, "VM entry with invalid executive-VMCS pointer";
    EXECUTIVE_NOT_LAUNCHED = 17, "VM entry with non-launched executive VMCS";
    EXECUTIVE_NOT_VMXON = 18, "VM entry with executive-VMCS pointer not VMXON pointer";
    VMCALL_NOT_CLEAR = 19, "VMCALL with non-clear VMCS";
    VMCALL_EXIT_CONTROLS = 20, "VMCALL with invalid VM-exit control fields";
    VMCALL_MSEG_REVISION = 22, "VMCALL with incorrect MSEG revision identifier";
    VMXOFF_DUAL_MONITOR = 23, "VMXOFF under dual-monitor treatment of SMIs and SMM";
    VMCALL_SMM_FEATURES = 24, "VMCALL with invalid SMM-monitor features";
    EXECUTIVE_CONTROLS = 25, "VM entry with invalid VM-execution control fields in executive VMCS";
    MOV_SS_BLOCKING = 26, "VM entry with events blocked by MOV SS";
    INVALID_OPERAND = 28, "invalid operand to INVEPT/INVVPID";
}

impl fmt::Display for InstructionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text),
            None => write!(f, "VM-instruction error {}", self.0),
        }
    }
}

impl fmt::Debug for InstructionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstructionError({}: {self})", self.0)
    }
}

impl core::error::Error for InstructionError {}
