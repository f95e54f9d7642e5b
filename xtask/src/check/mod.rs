// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask check`: what can be seen without running anything.

pub(crate) mod lint;
mod lints;
mod package;

use anyhow::Result;

use crate::cargo::{cargo, packages};
use crate::step::{self, Step};

/// Format, clippy, documentation, house rules, minimal features, packages.
pub fn check() -> Result<()> {
    step::run("fmt", &mut cargo(&["fmt", "--all", "--check"]))?;
    house_lints()?;
    step::run(
        "clippy",
        &mut cargo(&[
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-Dwarnings",
        ]),
    )?;
    step::run(
        "doc",
        cargo(&["doc", "--workspace", "--no-deps", "--all-features"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    let published: Vec<String> = packages()?
        .into_iter()
        .filter(|p| p.published)
        .map(|p| p.name)
        .collect();
    for name in &published {
        step::run(
            &format!("minimal features {name}"),
            cargo(&["check", "-q", "--no-default-features", "-p", name])
                .env("RUSTFLAGS", "-Dwarnings"),
        )?;
    }
    package::pack(&published)?;
    Ok(())
}

fn house_lints() -> Result<()> {
    let step = Step::start("house lints");
    let sources = lint::Sources::read()?;
    let mut found: Vec<(&lint::Rule, Vec<lint::Finding>)> = Vec::new();
    for rule in lints::ALL {
        let mut findings = Vec::new();
        (rule.look)(&sources, &mut |finding| findings.push(finding));
        if !findings.is_empty() {
            found.push((rule, findings));
        }
    }
    if found.is_empty() {
        step.done(format!(
            "{} rules, {} files",
            lints::ALL.len(),
            sources.files.len()
        ));
        return Ok(());
    }
    step.failed("");
    for (rule, findings) in &found {
        eprintln!("    | {}: {}", rule.name, rule.why);
        for finding in findings {
            eprintln!("    |   {finding}");
        }
    }
    anyhow::bail!(
        "house lints: {} rules broken; they are in xtask/src/check/lints",
        found.len()
    )
}
