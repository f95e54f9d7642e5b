// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Differences that `lab/ledgers/paging.md` explains, as code: each rule says exactly what the model
//! does instead, so that nothing else hides behind it.

use anyhow::Result;
use lab_cases::paging::{Case, Cpu, Record};

use super::expect::expect;
use super::quirks::{Quirk, Quirks};

/// By the ledger's section, what the model follows.
const RULES: &[(&str, &[Quirks])] = &[
    (
        "smap-implicit-ac",
        &[Quirks {
            implicit_ac: Quirk::Model,
            keys_by_access: Quirk::Manual,
        }],
    ),
    (
        "pkru-by-access",
        &[
            Quirks {
                implicit_ac: Quirk::Manual,
                keys_by_access: Quirk::Model,
            },
            // A case may meet both.
            Quirks {
                implicit_ac: Quirk::Model,
                keys_by_access: Quirk::Model,
            },
        ],
    ),
];

/// The names of all rules.
pub(super) fn names() -> Vec<&'static str> {
    RULES.iter().map(|(name, _)| *name).collect()
}

/// The rule by which the model answers `theirs`, if there is one.
pub(super) fn explain(case: &Case, cpu: &Cpu, theirs: &Record) -> Result<Option<&'static str>> {
    for (name, variants) in RULES {
        for quirks in *variants {
            if expect(case, cpu, *quirks)?.record == *theirs {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}
