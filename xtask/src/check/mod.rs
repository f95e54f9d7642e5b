// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask check`: what can be seen without running anything.

pub(crate) mod lint;
mod lints;
mod package;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab_kit::paths;

use crate::cargo::{cargo, packages};
use crate::step::{self, Step};

/// Format, clippy, documentation, house rules, minimal features, packages.
pub fn check() -> Result<()> {
    sources()?;
    builds()
}

/// What is to be said of the sources as they are.
pub fn sources() -> Result<()> {
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
    Ok(())
}

/// Whatever else is to build of them: benchmarks, documents, crates with fewer features, packages.
pub fn builds() -> Result<()> {
    benchmarks()?;
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

/// The benchmarks are outside the workspace, for their peers' sake, and would go stale unseen.
fn benchmarks() -> Result<()> {
    let apart = paths::target().join("bench-check");
    let mut manifests: Vec<PathBuf> = fs::read_dir(paths::root().join("bench"))
        .context("cannot list bench/")?
        .filter_map(|entry| Some(entry.ok()?.path().join("Cargo.toml")))
        .filter(|manifest| manifest.exists())
        .collect();
    manifests.sort();
    anyhow::ensure!(!manifests.is_empty(), "no benchmark in bench/");
    for manifest in manifests {
        let name = manifest.parent().and_then(Path::file_name);
        step::run(
            &format!("clippy bench {}", name.unwrap_or_default().display()),
            cargo(&["clippy", "-q", "--all-targets", "--manifest-path"])
                .arg(&manifest)
                .arg("--target-dir")
                .arg(&apart)
                .args(["--", "-Dwarnings"]),
        )?;
    }
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
