// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences that `lab/ledgers/ept.md` explains, as code.

use anyhow::Result;
use lab_cases::ept::{Case, EptCpu, Record};

/// The names of all rules.
pub(super) fn names() -> Vec<&'static str> {
    Vec::new()
}

/// The rule by which the model answers `theirs`, if there is one.
pub(super) fn explain(_: &Case, _: &EptCpu, _: &Record) -> Result<Option<&'static str>> {
    Ok(None)
}
