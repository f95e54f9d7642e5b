// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask publish`: all that can be seen of a release without making one.
//!
//! With `--since`, each crate's interface is compared with what it was then, by cargo-semver-checks: while nothing is on the
//! registry, a revision is what there is to compare with.

use anyhow::{Result, ensure};
use clap::Args;

use crate::cargo::{cargo, install, packages};
use crate::step;

/// The version that was tried here.
const SEMVER_CHECKS: &str = "0.51.0";

/// What `cargo xtask publish` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Compare interfaces with those at this revision; installs cargo-semver-checks where it is missing.
    #[arg(long, value_name = "REVISION")]
    since: Option<String>,
}

/// Hands each crate to the registry, which would take it, up to the upload; says in which order they go.
pub fn publish(options: &Options) -> Result<()> {
    let published = packages()?.into_iter().filter(|package| package.published);
    let names: Vec<String> = published.map(|package| package.name).collect();
    if let Some(revision) = &options.since {
        install("semver-checks", SEMVER_CHECKS)?;
        // All of them are looked at, whatever the first one says.
        let mut changed = Vec::new();
        for name in &names {
            let compared = step::run(
                &format!("interface of {name} since {revision}"),
                &mut cargo(&[
                    "semver-checks",
                    "--all-features",
                    "--baseline-rev",
                    revision,
                    "--package",
                    name,
                ]),
            );
            if compared.is_err() {
                changed.push(name.as_str());
            }
        }
        ensure!(
            changed.is_empty(),
            "no user of {revision} can take these as they are, or they were not there: {}",
            changed.join(", ")
        );
    }
    // `cargo xtask check` builds them from their archives.
    let mut dry = cargo(&["publish", "--dry-run", "--no-verify"]);
    for name in &names {
        dry.args(["--package", name]);
    }
    step::run("publish, up to the upload", &mut dry)?;
    println!("nothing was uploaded; in this order: {}", names.join(", "));
    Ok(())
}
