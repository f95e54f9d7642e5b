// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences that `lab/ledgers/paging.md` explains, as code: each rule says exactly what the model
//! does instead, so that nothing else hides behind it.

use lab_cases::paging::{Case, Cpu, Record};

/// A rule of the ledger.
struct Rule {
    name: &'static str,
    /// Whether `theirs` is what the model answers to the case, by this rule, where we answer `ours`.
    holds: fn(&Case, &Cpu, ours: &Record, theirs: &Record) -> bool,
}

const RULES: &[Rule] = &[];

/// The names of all rules.
pub fn names() -> Vec<&'static str> {
    RULES.iter().map(|rule| rule.name).collect()
}

/// The rule that explains the difference, if one does.
pub fn explain(case: &Case, cpu: &Cpu, ours: &Record, theirs: &Record) -> Option<&'static str> {
    RULES
        .iter()
        .find(|rule| (rule.holds)(case, cpu, ours, theirs))
        .map(|rule| rule.name)
}
