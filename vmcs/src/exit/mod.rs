// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a VM exit, or a VMX instruction that failed, says. SDM Vol. 3C, "VM-Exit Information Fields" and "Recording
//! VM-Exit Information"; Vol. 3D, appendix "VMX Basic Exit Reasons".

mod instruction_error;
mod reason;

pub use instruction_error::InstructionError;
pub use reason::ExitReason;
