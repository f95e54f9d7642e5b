// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask check`: what can be seen without running anything.

mod compiler;
pub(crate) mod lint;
mod lints;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use lab_kit::paths;

use crate::cargo::{Package, cargo, packages};
use crate::step::{self, Step};

/// Format, clippy, documentation, house rules, single features, the oldest compiler, packages.
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

/// Whatever else is to build of them: what is outside the workspace, documents, crates with fewer features, packages.
pub fn builds() -> Result<()> {
    outside()?;
    no_std()?;
    step::run(
        "doc",
        cargo(&["doc", "--workspace", "--no-deps", "--all-features"])
            .env("RUSTDOCFLAGS", "-Dwarnings"),
    )?;
    let packages = packages()?;
    compiler::oldest(&packages)?;
    let published: Vec<&Package> = packages.iter().filter(|p| p.published).collect();
    for package in &published {
        step::run(
            &format!("minimal features {}", package.name),
            &mut with_feature(package, None),
        )?;
        // Each alone: what another turns on in the workspace would hide that this one does not.
        for feature in &package.features {
            step::run(
                &format!("only feature {} {feature}", package.name),
                &mut with_feature(package, Some(feature)),
            )?;
        }
    }
    let published: Vec<String> = published.iter().map(|p| p.name.clone()).collect();
    package::pack(&published)?;
    Ok(())
}

/// Checks a package with one of its features, or with none.
fn with_feature(package: &Package, feature: Option<&str>) -> Command {
    let mut command = cargo(&["check", "-q", "--no-default-features", "-p", &package.name]);
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    command.env("RUSTFLAGS", "-Dwarnings");
    command
}

/// Where packages outside the workspace are built: their profile is not the workspace's.
fn apart() -> PathBuf {
    paths::target().join("bench-check")
}

/// Benchmarks, for their peers' sake, and fuzz targets are outside the workspace, and would go stale unseen.
fn outside() -> Result<()> {
    let mut manifests: Vec<PathBuf> = fs::read_dir(paths::root().join("bench"))
        .context("cannot list bench/")?
        .filter_map(|entry| Some(entry.ok()?.path().join("Cargo.toml")))
        .filter(|manifest| manifest.exists())
        .collect();
    manifests.sort();
    anyhow::ensure!(!manifests.is_empty(), "no benchmark in bench/");
    manifests.push(paths::root().join("fuzz/Cargo.toml"));
    for manifest in manifests {
        let name = manifest.parent().and_then(Path::file_name);
        step::run(
            &format!("clippy outside {}", name.unwrap_or_default().display()),
            cargo(&["clippy", "-q", "--all-targets", "--manifest-path"])
                .arg(&manifest)
                .arg("--target-dir")
                .arg(apart())
                // Nothing is linked, so libFuzzer, which takes longer than all the rest, is not compiled: no such file is looked for. Any
                // compiler will do; the nightly one is for cargo-fuzz's sanitizers.
                .env("CUSTOM_LIBFUZZER_PATH", "/nowhere/libfuzzer.a")
                .args(["--", "-Dwarnings"]),
        )?;
    }
    Ok(())
}

/// Crates that say they need no `std`, in a program that would not compile with it: see its front page. That it links and works is a test's
/// to say, which has a processor for it.
fn no_std() -> Result<()> {
    for features in [&[][..], &["--features", "more"]] {
        step::run(
            &["no std", features.last().unwrap_or(&"")].join(" "),
            cargo(&["check", "-q", "--manifest-path"])
                .arg(paths::root().join("lab/payloads/no-std/Cargo.toml"))
                .arg("--target-dir")
                .arg(apart())
                .args(features),
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
