// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a failure that a processor reported to the rules that are broken.

use super::{
    Checker, MsrLoading, Outcome, PhysicalMemory, Sink, Verdict, Violation,
    rule::{Area, Rule},
};
use crate::{
    encoding::Encoding,
    exit::{ExitReason, InstructionError},
    store::Fields,
};

impl Outcome {
    /// What an exit reason and qualification say of the VM entry. A real exit means that the guest ran.
    pub const fn from_exit(reason: ExitReason, qualification: u64) -> Self {
        if reason.is_entry_failure() {
            Self::EntryFailure {
                reason,
                qualification,
            }
        } else {
            Self::Enters
        }
    }

    /// What a VM-instruction error says of the VM entry.
    pub const fn from_error(error: InstructionError) -> Self {
        Self::FailValid(error)
    }
}

impl Rule {
    /// Whether breaking this rule shows as `outcome`. The qualification of a failure to load MSRs says which entry it
    /// was, so every rule for entries fits.
    pub fn shows_as(&self, outcome: Outcome) -> bool {
        match (self.area, outcome) {
            (Area::NoVmcs, Outcome::FailInvalid) => true,
            (Area::Basic(number), Outcome::FailValid(error)) => error.0 == u32::from(number),
            (Area::Controls, Outcome::FailValid(error)) => {
                error == InstructionError::INVALID_CONTROLS
            }
            (Area::Host, Outcome::FailValid(error)) => {
                error == InstructionError::INVALID_HOST_STATE
            }
            (
                Area::Guest(own),
                Outcome::EntryFailure {
                    reason,
                    qualification,
                },
            ) => reason.is(ExitReason::INVALID_GUEST_STATE) && qualification == u64::from(own),
            (Area::MsrLoad, Outcome::EntryFailure { reason, .. }) => {
                reason.is(ExitReason::MSR_LOADING)
            }
            _ => false,
        }
    }
}

/// What the rules say of a reported failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Explanation {
    /// How many broken rules show as the failure; these went to the sink.
    pub causes: u32,
    /// The verdict over all rules. If `causes` is 0, its outcome is what this VMCS should have given: then the VMCS, the
    /// processor or the moment is not the one of the failure, or the rule is of the model.
    pub verdict: Verdict,
}

impl<M: PhysicalMemory, L: MsrLoading> Checker<'_, M, L> {
    /// Reports to `sink` the broken rules that show as `failure`, and no others.
    ///
    /// ```
    /// use hvkit_vmcs::{capability::presets, check::{Checker, List, Outcome}, exit::ExitReason};
    /// use hvkit_vmcs::{fields, seed::Seed, store::FieldsMut};
    ///
    /// // KVM: "kvm_run->fail_entry.hardware_entry_failure_reason = 0x80000021".
    /// let failure = Outcome::from_exit(ExitReason(0x8000_0021), 0);
    /// let processor = presets::core_i7_5600u();
    /// let mut vmcs = Seed::LongMode.vmcs(&processor);
    /// vmcs.write(fields::GUEST_RFLAGS, 0)?;
    /// let mut causes = List::<8>::default();
    /// let explanation = Checker::new(&processor).explain(&vmcs, failure, &mut causes);
    /// assert_eq!(explanation.causes, 1);
    /// assert_eq!(causes.iter().next().unwrap().rule.id, "guest.rflags.reserved");
    /// # Ok::<(), hvkit_vmcs::store::NoSuchField>(())
    /// ```
    pub fn explain<S: Fields, K: Sink + ?Sized>(
        &self,
        vmcs: &S,
        failure: Outcome,
        sink: &mut K,
    ) -> Explanation {
        let mut filter = Filter {
            failure,
            sink,
            causes: 0,
        };
        let verdict = self.check(vmcs, &mut filter);
        Explanation {
            causes: filter.causes,
            verdict,
        }
    }
}

struct Filter<'a, K: ?Sized> {
    failure: Outcome,
    sink: &'a mut K,
    causes: u32,
}

impl<K: Sink + ?Sized> Sink for Filter<'_, K> {
    fn violation(&mut self, violation: &Violation) {
        if violation.rule.shows_as(self.failure) {
            self.causes = self.causes.saturating_add(1);
            self.sink.violation(violation);
        }
    }

    fn undecided(&mut self, rule: &'static Rule) {
        if rule.shows_as(self.failure) {
            self.sink.undecided(rule);
        }
    }

    fn missing(&mut self, field: Encoding) {
        self.sink.missing(field);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Vmcs,
        capability::presets,
        check::{List, rules},
        seed::Seed,
        store::FieldsMut,
    };

    fn causes(vmcs: &Vmcs, failure: Outcome) -> (Vec<&'static str>, Explanation) {
        let mut list = List::<8>::default();
        let cpu = presets::core_i7_5600u();
        let explanation = Checker::new(&cpu).explain(vmcs, failure, &mut list);
        (
            list.iter().map(|violation| violation.rule.id).collect(),
            explanation,
        )
    }

    #[test]
    fn only_what_fits_is_reported() {
        let mut vmcs = Seed::LongMode.vmcs(&presets::core_i7_5600u());
        for (field, value) in [(0x400a, 9), (0x6c02, 1 << 63), (0x6820, 0), (0x2800, 1)] {
            vmcs.set(Encoding(field), value).unwrap();
        }
        let guest = |qualification| Outcome::from_exit(ExitReason(0x8000_0021), qualification);
        let error = |number| Outcome::from_error(InstructionError(number));
        assert_eq!(causes(&vmcs, error(7)).0, ["execution.cr3-target-count"]);
        assert_eq!(causes(&vmcs, error(8)).0, ["host.cr3.reserved"]);
        assert_eq!(causes(&vmcs, guest(0)).0, ["guest.rflags.reserved"]);
        assert_eq!(causes(&vmcs, guest(4)).0, ["guest.link-pointer.address"]);
        let (none, explanation) = causes(&vmcs, error(26));
        assert!(none.is_empty() && explanation.causes == 0);
        assert_eq!(explanation.verdict.outcome(), error(7));
    }

    #[test]
    fn only_what_may_fit_is_undecided() {
        let mut vmcs = Seed::LongMode.vmcs(&presets::core_i7_5600u());
        // An MSR-load area of one entry, in memory that cannot be read.
        vmcs.set(Encoding(0x4014), 1).unwrap();
        vmcs.set(Encoding(0x200a), 0x9000).unwrap();
        let cpu = presets::core_i7_5600u();
        let undecided = |failure| {
            let mut list = List::<8>::default();
            Checker::new(&cpu).explain(&vmcs, failure, &mut list);
            list.undecided
        };
        let loading = Outcome::from_exit(ExitReason(0x8000_0022), 1);
        assert_eq!(undecided(loading), 1);
        assert_eq!(undecided(Outcome::from_error(InstructionError(7))), 0);
    }

    #[test]
    fn every_rule_shows_as_its_own_outcome() {
        let shown = |outcome| rules().filter(|rule| rule.shows_as(outcome)).count();
        let exit = |reason, qualification| Outcome::from_exit(ExitReason(reason), qualification);
        let all = [
            Outcome::FailInvalid,
            Outcome::from_error(InstructionError(26)),
            Outcome::from_error(InstructionError(4)),
            Outcome::from_error(InstructionError(5)),
            Outcome::from_error(InstructionError(7)),
            Outcome::from_error(InstructionError(8)),
            exit(0x8000_0021, 0),
            exit(0x8000_0021, 2),
            exit(0x8000_0021, 3),
            exit(0x8000_0021, 4),
            exit(0x8000_0022, 1),
        ]
        .map(shown);
        assert_eq!(all.iter().sum::<usize>(), rules().count());
        assert_eq!(all[..4], [2, 1, 1, 1]);
        assert_eq!(all[7..], [2, 1, 4, 6]);
        assert_eq!(exit(10, 0), Outcome::Enters);
        assert_eq!(shown(Outcome::Enters), 0);
        assert_eq!(
            shown(exit(0x8000_0021, 1)),
            0,
            "qualification 1 is not used"
        );
    }
}
