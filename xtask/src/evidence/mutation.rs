// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many changes of the code the tests notice, from the records that `cargo xtask mutants` wrote.

use std::fmt::Write;

use anyhow::Result;

use crate::mutants::record::{Record, records};

pub(super) fn write(page: &mut String) -> Result<()> {
    writeln!(
        page,
        "## Mutation tests\n\nChanges of the code by cargo-mutants, and whether a test of the crate itself noticed. A score is of a sample: so many of all changes, drawn by lots from a seed; newer ones leave the fakes alone, with which tests are made. `without`: test binaries that were left out, such as those that start an emulator.\n\n\
         | crate | sample | at commit | tried | noticed | by time-out | survived |\n|---|---|---|---|---|---|---|"
    )?;
    let records = records()?;
    for (name, record) in &records {
        let Record {
            sample,
            commit,
            run,
            ..
        } = record;
        let noticed = run.caught + run.timeout;
        let percent = noticed * 100 / run.tried().max(1);
        writeln!(
            page,
            "| `{name}` | {sample} | {commit} | {} | {noticed} ({percent}%) | {} | {} |",
            run.tried(),
            run.timeout,
            run.missed.len()
        )?;
    }
    writeln!(page, "\n| survivor | why it may live |\n|---|---|")?;
    for (_, record) in &records {
        for survivor in &record.run.missed {
            let reason = record.reasons.get(survivor);
            let reason = reason.map_or("no test looks yet", String::as_str);
            writeln!(page, "| `{}` | {reason} |", survivor.replace('|', "\\|"))?;
        }
    }
    writeln!(page)?;
    Ok(())
}
