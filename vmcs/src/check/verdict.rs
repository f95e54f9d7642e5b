// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the processor will say.

use core::fmt;

use super::{
    report::{Place, Violation},
    rule::{Area, Rule},
};
use crate::exit::{ExitReason, InstructionError};

/// The result of a VM-entry instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub enum Outcome {
    /// The guest runs, as far as the checks go.
    Enters,
    /// RFLAGS.CF = 1: no current VMCS that could be entered.
    FailInvalid,
    /// RFLAGS.ZF = 1, and this VM-instruction error.
    FailValid(InstructionError),
    /// An exit with bit 31 of the exit reason set.
    EntryFailure {
        /// 33 or 34.
        reason: ExitReason,
        /// For reason 33: 0, 2, 3 or 4. For reason 34: the number of the entry, from 1.
        qualification: u64,
    },
}

impl Outcome {
    const fn failure(reason: ExitReason, qualification: u64) -> Self {
        Self::EntryFailure {
            reason,
            qualification,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enters => f.write_str("the guest runs"),
            Self::FailInvalid => f.write_str("VMfailInvalid"),
            Self::FailValid(error) => write!(f, "VMfailValid: error {}, {error}", error.0),
            Self::EntryFailure {
                reason,
                qualification,
            } => {
                write!(
                    f,
                    "exit reason {}, {reason}, qualification {qualification}",
                    reason.basic()
                )
            }
        }
    }
}

/// The steps of an entry that failed, as bits of a set.
mod step {
    pub(super) const NO_VMCS: u16 = 1 << 0;
    pub(super) const BLOCKED: u16 = 1 << 1;
    pub(super) const NOT_CLEAR: u16 = 1 << 2;
    pub(super) const NOT_LAUNCHED: u16 = 1 << 3;
    pub(super) const CONTROLS: u16 = 1 << 4;
    pub(super) const HOST: u16 = 1 << 5;
    /// Guest state with qualification n is this bit shifted by n.
    pub(super) const GUEST: u16 = 1 << 6;
    pub(super) const ANY_GUEST: u16 = 0xff << 6;
    pub(super) const MSR_LOAD: u16 = 1 << 14;
}

/// Which steps failed, and so what the processor says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Verdict {
    steps: u16,
    first_qualification: u8,
    first_msr_entry: u32,
    /// How many rules are broken.
    pub violations: u32,
    /// How many rules could not be decided.
    pub undecided: u32,
    /// How many times a field was missing.
    pub missing: u32,
}

/// The verdict if these rules are broken and no others: for those who know that a processor does not make a check.
impl<'a> FromIterator<&'a Violation> for Verdict {
    fn from_iter<I: IntoIterator<Item = &'a Violation>>(violations: I) -> Self {
        let mut verdict = Self::default();
        for violation in violations {
            let entry = match violation.place {
                Place::MsrEntry { number, .. } => number,
                _ => 0,
            };
            verdict.broken(violation.rule, entry);
        }
        verdict
    }
}

impl Verdict {
    pub(super) fn broken(&mut self, rule: &Rule, msr_entry: u32) {
        self.violations = self.violations.saturating_add(1);
        self.steps |= match rule.area {
            Area::NoVmcs => step::NO_VMCS,
            Area::Basic(26) => step::BLOCKED,
            Area::Basic(4) => step::NOT_CLEAR,
            Area::Basic(_) => step::NOT_LAUNCHED,
            Area::Controls => step::CONTROLS,
            Area::Host => step::HOST,
            Area::Guest(qualification) => {
                if self.steps & step::ANY_GUEST == 0 {
                    self.first_qualification = qualification;
                }
                step::GUEST << (qualification & 7)
            }
            Area::MsrLoad => {
                if self.steps & step::MSR_LOAD == 0 {
                    self.first_msr_entry = msr_entry;
                }
                step::MSR_LOAD
            }
        };
    }

    /// Whether no rule is broken. Rules that were not decided, for want of memory to look into, do not count: see
    /// [`undecided`](Self::undecided).
    pub const fn enters(&self) -> bool {
        self.steps == 0
    }

    /// What the processor says if it checks in the order of the chapter.
    pub const fn outcome(&self) -> Outcome {
        let steps = self.steps;
        if steps & step::NO_VMCS != 0 {
            Outcome::FailInvalid
        } else if steps & step::BLOCKED != 0 {
            Outcome::FailValid(InstructionError::MOV_SS_BLOCKING)
        } else if steps & step::NOT_CLEAR != 0 {
            Outcome::FailValid(InstructionError::LAUNCH_NOT_CLEAR)
        } else if steps & step::NOT_LAUNCHED != 0 {
            Outcome::FailValid(InstructionError::RESUME_NOT_LAUNCHED)
        } else if steps & step::CONTROLS != 0 {
            Outcome::FailValid(InstructionError::INVALID_CONTROLS)
        } else if steps & step::HOST != 0 {
            Outcome::FailValid(InstructionError::INVALID_HOST_STATE)
        } else if steps & step::ANY_GUEST != 0 {
            Outcome::failure(
                ExitReason::INVALID_GUEST_STATE,
                self.first_qualification as u64,
            )
        } else if steps & step::MSR_LOAD != 0 {
            Outcome::failure(ExitReason::MSR_LOADING, self.first_msr_entry as u64)
        } else {
            Outcome::Enters
        }
    }

    /// Whether the manual lets a processor say this: it may check controls and host state in any order, and guest
    /// state in any order.
    pub fn may_report(&self, outcome: Outcome) -> bool {
        if outcome == self.outcome() {
            return true;
        }
        let earlier = step::NO_VMCS | step::BLOCKED | step::NOT_CLEAR | step::NOT_LAUNCHED;
        match outcome {
            Outcome::FailValid(InstructionError::INVALID_HOST_STATE) => {
                self.steps & earlier == 0 && self.steps & step::HOST != 0
            }
            Outcome::EntryFailure {
                reason: ExitReason::INVALID_GUEST_STATE,
                qualification,
            } => {
                let earlier = earlier | step::CONTROLS | step::HOST;
                self.steps & earlier == 0
                    && qualification < 8
                    && self.steps & step::GUEST << qualification != 0
            }
            _ => false,
        }
    }
}
