// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask evidence`: writes `EVIDENCE.md` from what it runs and counts. Nothing on that page is typed by hand.

mod bug_classes;
mod coverage;
mod mutation;
mod oracles;
mod source;

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::check::lint::Sources;
use crate::checkout::Stamp;
use lab_kit::paths;

use crate::step::Step;

/// What to run.
#[derive(Args, Debug)]
pub struct Options {
    /// Cases each oracle runs; as many as in CI if not given.
    #[arg(long)]
    cases: Option<u64>,
    /// Only look at the results of oracles that ran before: the page says at which commit each did.
    #[arg(long)]
    no_run: bool,
}

/// Runs the oracles, counts, and writes the page.
pub fn evidence(options: &Options) -> Result<()> {
    let failed = match options.no_run {
        true => Vec::new(),
        false => oracles::run_all(options.cases)?,
    };
    let step = Step::start("EVIDENCE.md");
    let sources = Sources::read()?;
    let mut page = String::new();
    let Stamp { date, commit } = Stamp::now()?;
    writeln!(
        page,
        "# Evidence\n\nMade by `cargo xtask evidence` from commit {commit} of {date}. Do not edit: run it again.\n"
    )?;
    oracles::write(&mut page, &commit)?;
    source::write(&mut page, &sources)?;
    coverage::write(&mut page)?;
    mutation::write(&mut page)?;
    bug_classes::write(&mut page, &sources)?;
    fs::write(paths::root().join("EVIDENCE.md"), page).context("cannot write EVIDENCE.md")?;
    step.done("written");
    ensure!(
        failed.is_empty(),
        "the page says so: failed oracles: {}",
        failed.join(", ")
    );
    Ok(())
}
