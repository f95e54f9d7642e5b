// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences that `lab/ledgers/ept.md` explains, as code: a case is run again by what Bochs does instead, and explained
//! only if that gives Bochs's whole answer.

use anyhow::Result;
use lab_cases::ept::{Case, EptCpu, Record};

use super::expect::expect;
use super::quirks::Quirks;

/// The names of all rules.
pub(super) fn names() -> Vec<&'static str> {
    Quirks::ALL.iter().map(|(name, _)| *name).collect()
}

/// The rule by which the model answers `theirs`, if there is one. Where it takes several, the first of the fewest.
pub(super) fn explain(case: &Case, cpu: &EptCpu, theirs: &Record) -> Result<Option<&'static str>> {
    let mut choices: Vec<u32> = (1..1 << Quirks::ALL.len()).collect();
    choices.sort_by_key(|choice| choice.count_ones());
    for choice in choices {
        if expect(case, cpu, Quirks(choice))?.record == *theirs {
            let first = Quirks::ALL.iter().find(|(_, quirk)| quirk.0 & choice != 0);
            return Ok(first.map(|(name, _)| *name));
        }
    }
    Ok(None)
}
