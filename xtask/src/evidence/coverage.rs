// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which lines the tests reach, from the record that `cargo xtask coverage` wrote.

use std::fmt::Write;

use anyhow::Result;

use crate::coverage::{Reached, records};

/// Files below it are named.
const FEW: u64 = 80;

pub(super) fn write(page: &mut String) -> Result<()> {
    writeln!(
        page,
        "## Coverage\n\nLines of each published crate that its own tests reach (`cargo xtask coverage`). \
         Not counted: doc examples, and what other packages' tests reach: the oracles, the reference VMM, Linux in the laboratory.\n\n\
         | crate | at commit | lines | reached | files under {FEW}% |\n|---|---|---|---|---|"
    )?;
    for (name, record) in records()? {
        let Reached { lines, reached } = record.total();
        let few: Vec<_> = record
            .files
            .iter()
            .filter(|(_, file)| percent(file) < FEW)
            .map(|(path, file)| format!("`{path}` {}%", percent(file)))
            .collect();
        writeln!(
            page,
            "| `{name}` | {} | {lines} | {reached} ({}%) | {} |",
            record.commit,
            percent(&record.total()),
            few.join(", ")
        )?;
    }
    writeln!(page)?;
    Ok(())
}

fn percent(Reached { lines, reached }: &Reached) -> u64 {
    reached * 100 / lines.max(&1)
}
