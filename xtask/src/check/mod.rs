// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask check`: what can be seen without running anything.

mod compiler;
pub(crate) mod lint;
mod lints;
mod package;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
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

/// Benchmarks, for their peers' sake, fuzz targets and programs for bare metal are outside the workspace, and would go stale unseen.
fn outside() -> Result<()> {
    for folder in &lint::Sources::read()?.outside {
        let manifest = paths::root().join(folder).join("Cargo.toml");
        let name = folder.display();
        step::run(
            &format!("fmt outside {name}"),
            cargo(&["fmt", "--check", "--manifest-path"]).arg(&manifest),
        )?;
        step::run(
            &format!("clippy outside {name}"),
            Host::of(folder)
                .set(&mut cargo(&["clippy", "-q"]), &manifest)
                .args(["--", "-Dwarnings"]),
        )?;
        if Host::of(folder) == Host::Metal {
            let mut doc = cargo(&["doc", "-q", "--no-deps"]);
            doc.env("RUSTDOCFLAGS", "-Dwarnings");
            step::run(
                &format!("doc outside {name}"),
                Host::Metal.set(&mut doc, &manifest),
            )?;
        }
    }
    Ok(())
}

/// What a package outside the workspace runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    /// An operating system.
    System,
    /// None.
    Metal,
}

impl Host {
    /// Of the package in this folder, from the root.
    fn of(folder: &Path) -> Self {
        match ["bench", "fuzz"]
            .iter()
            .any(|system| folder.starts_with(system))
        {
            true => Self::System,
            false => Self::Metal,
        }
    }

    /// Has `command` look at the package, apart from the workspace's own.
    fn set<'c>(self, command: &'c mut Command, manifest: &Path) -> &'c mut Command {
        command.arg("--manifest-path").arg(manifest);
        command.arg("--target-dir").arg(apart());
        match self {
            Self::System => command
                .arg("--all-targets")
                // Nothing is linked, so libFuzzer, which takes longer than all the rest, is not compiled: no such file is looked for. Any
                // compiler will do; the nightly one is for cargo-fuzz's sanitizers.
                .env("CUSTOM_LIBFUZZER_PATH", "/nowhere/libfuzzer.a"),
            // Who has a panic handler of its own cannot unwind; and nothing there can be a test.
            Self::Metal => command.env("CARGO_PROFILE_DEV_PANIC", "abort"),
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// That all of them are in the list is [`lint::Sources::read`]'s: it asks git.
    #[test]
    fn every_kind_of_package_outside_is_looked_at() {
        let outside = lint::Sources::read().unwrap().outside;
        let of = |host| {
            let folders = outside
                .iter()
                .filter(move |folder| Host::of(folder) == host);
            folders
                .map(|folder| folder.to_str().unwrap())
                .collect::<Vec<_>>()
        };
        let system = of(Host::System);
        assert!(system.contains(&"fuzz") && system.len() > 2, "{system:?}");
        let metal = of(Host::Metal);
        for folder in [
            "examples/type1",
            "lab/payload-rt",
            "lab/payload-vmcs",
            "lab/payloads/vmx",
        ] {
            assert!(metal.contains(&folder), "{metal:?}");
        }
    }
}
