// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every rule broken, and every rule at its boundary kept.
//!
//! Cases are in raw numbers of the manual's appendix, changed in VMCSs that enter. A case that breaks a rule must break
//! that rule and no other, unless it says so; a case that keeps it must break none.

mod absent;
mod controls;
mod guest_registers;
mod guest_segments;
mod guest_state;
mod host;
mod memory;
mod moments;
mod seeds;
mod transitions;

use std::collections::BTreeSet;

use super::*;
use crate::{Encoding, Vmcs, capability::presets, seed::Seed, store::FieldsMut};

/// A change to one field: bits to clear, bits to set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    field: u32,
    clear: u64,
    set: u64,
}

pub(super) fn set(field: u32, value: u64) -> Change {
    Change {
        field,
        clear: u64::MAX,
        set: value,
    }
}

pub(super) fn or(field: u32, bits: u64) -> Change {
    Change {
        field,
        clear: 0,
        set: bits,
    }
}

pub(super) fn not(field: u32, bits: u64) -> Change {
    Change {
        field,
        clear: bits,
        set: 0,
    }
}

/// A rule with changes that break it and changes that do not.
#[derive(Debug)]
pub(super) struct Case {
    rule: &'static str,
    seed: Seed,
    cpu: Processor,
    moment: Moment,
    base: Vec<Change>,
    breaks: Vec<Vec<Change>>,
    passes: Vec<Vec<Change>>,
    along: Vec<&'static str>,
    expect: Option<(u64, u64)>,
}

pub(super) fn case(rule: &'static str) -> Case {
    Case {
        rule,
        seed: Seed::LongMode,
        cpu: presets::everything(),
        moment: Moment::default(),
        base: vec![],
        breaks: vec![],
        passes: vec![],
        along: vec![],
        expect: None,
    }
}

impl Case {
    pub(super) fn seed(self, seed: Seed) -> Self {
        Self { seed, ..self }
    }
    pub(super) fn cpu(self, cpu: Processor) -> Self {
        Self { cpu, ..self }
    }
    pub(super) fn at(self, moment: Moment) -> Self {
        Self { moment, ..self }
    }
    /// Changes that come first in each variant.
    pub(super) fn base(self, base: impl Into<Vec<Change>>) -> Self {
        Self {
            base: base.into(),
            ..self
        }
    }
    pub(super) fn breaks(mut self, changes: impl Into<Vec<Change>>) -> Self {
        self.breaks.push(changes.into());
        self
    }
    pub(super) fn passes(mut self, changes: impl Into<Vec<Change>>) -> Self {
        self.passes.push(changes.into());
        self
    }
    /// Rules that the breaking variants break too, as they follow.
    pub(super) fn along(self, rules: impl Into<Vec<&'static str>>) -> Self {
        Self {
            along: rules.into(),
            ..self
        }
    }
    /// The field and value that the first breaking variant must report.
    pub(super) fn reports(self, field: u64, value: u64) -> Self {
        Self {
            expect: Some((field, value)),
            ..self
        }
    }

    fn vmcs(&self, changes: &[Change]) -> Vmcs {
        let mut vmcs = self.seed.vmcs(&self.cpu);
        for change in self.base.iter().chain(changes) {
            let field = Encoding(change.field);
            let old = vmcs.get(field).expect("cases use real fields");
            vmcs.set(field, old & !change.clear | change.set)
                .expect("and writable ones");
        }
        vmcs
    }

    fn check(&self, changes: &[Change]) -> (Vec<Violation>, Verdict) {
        let mut found = Vec::new();
        let checker = Checker::new(&self.cpu).at(self.moment);
        let verdict = checker.check(&self.vmcs(changes), &mut |violation: &Violation| {
            found.push(*violation);
        });
        (found, verdict)
    }

    fn run(&self) {
        assert!(
            !self.breaks.is_empty() && !self.passes.is_empty(),
            "{}",
            self.rule
        );
        for (number, changes) in self.breaks.iter().enumerate() {
            let (found, verdict) = self.check(changes);
            let ids: BTreeSet<_> = found.iter().map(|violation| violation.rule.id).collect();
            let want: BTreeSet<_> = self.along.iter().copied().chain([self.rule]).collect();
            assert_eq!(ids, want, "{} broken by {changes:x?}", self.rule);
            let first = found
                .iter()
                .find(|violation| violation.rule.id == self.rule)
                .unwrap();
            outcome_fits(first.rule, &verdict);
            if let (0, Some((field, value))) = (number, self.expect) {
                assert_eq!(first.place, Place::Field(Encoding(field as u32)), "{first}");
                assert_eq!(first.value, value, "{first}");
            }
            if let Place::Field(field) = first.place {
                assert!(first.rule.fields.contains(&field), "{first}");
                assert_eq!(self.vmcs(changes).get(field), Some(first.value), "{first}");
            }
            assert!(first.to_string().contains(first.rule.sentence));
        }
        for changes in &self.passes {
            let (found, verdict) = self.check(changes);
            assert!(
                found.is_empty(),
                "{} kept by {changes:x?}, but: {}",
                self.rule,
                found[0]
            );
            assert_eq!(verdict.outcome(), Outcome::Enters);
        }
    }
}

/// What the processor says where this rule is broken, in numbers of the manual.
fn outcome_fits(rule: &Rule, verdict: &Verdict) {
    let said = verdict.outcome().to_string();
    let want = if rule.id.starts_with("execution.")
        || rule.id.starts_with("exit.")
        || rule.id.starts_with("entry-controls.")
        || rule.id.starts_with("event.")
    {
        "VMfailValid: error 7,"
    } else if rule.id.starts_with("host.") {
        "VMfailValid: error 8,"
    } else if rule.id.starts_with("guest.link-pointer.") {
        "exit reason 33, VM-entry failure due to invalid guest state, qualification 4"
    } else if rule.id.starts_with("guest.pdpte.") {
        "exit reason 33, VM-entry failure due to invalid guest state, qualification 2"
    } else if rule.id == "guest.interruptibility.nmi-sti" {
        "exit reason 33, VM-entry failure due to invalid guest state, qualification 3"
    } else if rule.id.starts_with("guest.") {
        "exit reason 33, VM-entry failure due to invalid guest state, qualification 0"
    } else {
        return;
    };
    assert!(said.starts_with(want), "{}: {said}", rule.id);
    assert!(verdict.may_report(verdict.outcome()) && !verdict.enters());
}

fn tables() -> Vec<Case> {
    let mut cases = controls::cases();
    cases.extend(transitions::cases());
    cases.extend(host::cases());
    cases.extend(guest_registers::cases());
    cases.extend(guest_segments::cases());
    cases.extend(guest_state::cases());
    cases
}

#[test]
fn each_rule_breaks_alone_and_holds_at_its_boundary() {
    for case in tables() {
        case.run();
    }
}

#[test]
fn no_rule_is_without_a_case() {
    let mut tested: BTreeSet<_> = tables().iter().map(|case| case.rule).collect();
    tested.extend(memory::RULES);
    tested.extend(moments::RULES);
    let missing: Vec<_> = rules()
        .map(|rule| rule.id)
        .filter(|id| !tested.contains(id))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
    let unknown: Vec<_> = tested.iter().filter(|id| find_rule(id).is_none()).collect();
    assert_eq!(unknown, Vec::<&&str>::new());
}

#[test]
fn rules_are_data() {
    let mut ids = BTreeSet::new();
    for rule in rules() {
        assert!(ids.insert(rule.id), "{} comes twice", rule.id);
        assert!(rule.sentence.ends_with('.') && !rule.section.is_empty());
        assert!(
            rule.fields
                .iter()
                .all(|field| crate::fields::find(*field).is_some())
        );
        assert_eq!(find_rule(rule.id), Some(rule));
    }
    assert!(ids.len() > 190, "{}", ids.len());
}
