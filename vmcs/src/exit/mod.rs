// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VM exit, or a VMX instruction that failed, says. SDM Vol. 3C, "VM-Exit Information Fields" and "Recording
//! VM-Exit Information"; Vol. 3D, appendix "VMX Basic Exit Reasons".
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod bits;
mod information;
mod instruction;
mod instruction_error;
mod qualification;
mod reason;

#[cfg(test)]
mod tests;

pub use information::ExitInformation;
pub use instruction::{
    DescriptorTable, Gpr, Instruction, MemoryOperand, Operand, SegmentRegister, SystemSegment,
};
pub use instruction_error::InstructionError;
pub use qualification::{
    ApicAccess, ControlRegister, DebugQualification, DebugRegister, EptViolation,
    GuestStateFailure, IoInstruction, PmlFull, Qualification, SppEvent, TaskSwitch, Timeout,
};
pub use reason::ExitReason;
