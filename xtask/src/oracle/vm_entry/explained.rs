// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences that `lab/ledgers/vm-entry.md` explains, as code: each rule says exactly which of the checker's findings
//! the model does not make, so that nothing else hides behind it.

use hvkit_vmcs::{
    check::{Verdict, Violation},
    fields as f,
    store::Fields,
};
use lab_cases::vm_entry::{Case, Cpu, Record};

/// Whether the model passes over this violation, in this case.
type PassesOver = fn(&Violation, &Case) -> bool;

/// By the ledger's section, what the model passes over.
const RULES: &[(&str, PassesOver)] = &[
    ("guest-rip-not-canonical", |violation, _| {
        violation.rule.id == "guest.rip.canonical"
    }),
    ("pending-debug-high-half", |violation, case| {
        let pending = case.vmcs.read(f::GUEST_PENDING_DEBUG).unwrap_or(0);
        violation.rule.id == "guest.pending-debug.reserved"
            && pending & 0xffff_ffff & !0x1_500f == 0
    }),
];

/// The names of all rules.
pub(super) fn names() -> Vec<&'static str> {
    RULES.iter().map(|(name, _)| *name).collect()
}

/// The rule by which the model answers `theirs`, if there is one. Where it takes two, the first.
pub(super) fn explain(case: &Case, cpu: &Cpu, theirs: &Record) -> Option<&'static str> {
    let mut found = Vec::new();
    case.check(cpu, &mut |violation: &Violation| found.push(*violation));
    let without = |rules: &[PassesOver]| {
        let passed_over = |violation: &Violation| rules.iter().any(|rule| rule(violation, case));
        found
            .iter()
            .filter(|violation| !passed_over(violation))
            .collect::<Verdict>()
    };
    let said = theirs.outcome();
    let alone = RULES
        .iter()
        .find(|(_, rule)| without(&[*rule]).may_report(said));
    let pairs = || {
        let met = |rule: PassesOver| found.iter().any(|violation| rule(violation, case));
        let met: Vec<_> = RULES.iter().filter(|(_, rule)| met(*rule)).collect();
        let all: Vec<_> = met.iter().map(|(_, rule)| *rule).collect();
        met.first()
            .copied()
            .filter(|_| without(&all).may_report(said))
    };
    alone.or_else(pairs).map(|(name, _)| *name)
}
