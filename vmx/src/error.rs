// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How VMX instructions fail.

use hvkit_vmcs::check::Outcome;
use hvkit_vmcs::exit::{ExitReason, InstructionError};

/// A VMX instruction failed. SDM Vol. 3C, "Conventions".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VmFail {
    /// VMfailInvalid: there is no current VMCS to tell why.
    #[error("VMfailInvalid")]
    Invalid,
    /// VMfailValid: the VM-instruction error of the current VMCS.
    #[error("VMfailValid: error {number}, {0}", number = .0.0)]
    Valid(InstructionError),
}

/// A guest was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// VMLAUNCH or VMRESUME failed: basic checks, controls or host state.
    #[error("the VM-entry instruction failed: {0}")]
    Failed(VmFail),
    /// The entry failed during or after loading guest state: exit reason 33, 34 or 41.
    #[error("{reason}, qualification {qualification}")]
    Refused {
        /// The exit reason, with bit 31.
        reason: ExitReason,
        /// The exit qualification.
        qualification: u64,
    },
}

impl EntryError {
    /// As the checker names it: give it to [`hvkit_vmcs::check::Checker::explain`] for the rules that are broken.
    pub const fn outcome(&self) -> Outcome {
        match *self {
            Self::Failed(VmFail::Invalid) => Outcome::FailInvalid,
            Self::Failed(VmFail::Valid(error)) => Outcome::FailValid(error),
            Self::Refused {
                reason,
                qualification,
            } => Outcome::from_exit(reason, qualification),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_as_the_checker_names_them() {
        let error = InstructionError::INVALID_HOST_STATE;
        let failed = EntryError::Failed(VmFail::Valid(error));
        assert_eq!(failed.outcome(), Outcome::FailValid(error));
        assert_eq!(
            failed.to_string(),
            "the VM-entry instruction failed: VMfailValid: error 8, VM entry with invalid host-state field(s)"
        );
        assert_eq!(
            EntryError::Failed(VmFail::Invalid).outcome(),
            Outcome::FailInvalid
        );
        let refused = EntryError::Refused {
            reason: ExitReason(0x8000_0021),
            qualification: 4,
        };
        let outcome = Outcome::EntryFailure {
            reason: ExitReason::INVALID_GUEST_STATE,
            qualification: 4,
        };
        assert_eq!(refused.outcome(), outcome);
        assert_eq!(
            refused.to_string(),
            "VM-entry failure due to invalid guest state, qualification 4"
        );
    }
}
