// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask fuzz`: cargo-fuzz, installed first where it is missing.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{paths, step};

/// The version that was tried here.
const CARGO_FUZZ: &str = "0.13.2";

/// What `cargo xtask fuzz` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A target of fuzz/fuzz_targets, such as `mapper`; without one, they are listed.
    target: Option<String>,
    /// Seconds to run.
    #[arg(long, default_value_t = 60)]
    time: u64,
}

/// Fuzzes one target for a while. Fails if it found something; the input is then in fuzz/artifacts.
pub fn fuzz(options: &Options) -> Result<()> {
    let folder = paths::root().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in
        std::fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = entry?.path();
        if let Some(name) = path.file_stem().and_then(|n| n.to_str()) {
            targets.push(name.to_owned());
        }
    }
    targets.sort();
    let Some(target) = &options.target else {
        println!("{}", targets.join("\n"));
        return Ok(());
    };
    if !targets.contains(target) {
        bail!("no fuzz target {target}; there are: {}", targets.join(", "));
    }
    if !nightly(&["fuzz", "--version"]).output()?.status.success() {
        let version = format!("cargo-fuzz@{CARGO_FUZZ}");
        step::run(
            "install cargo-fuzz",
            Command::new("cargo").args(["install", "--locked", &version]),
        )?;
    }
    // Its own output is the progress: executions, coverage, and the finding if there is one.
    let time = format!("-max_total_time={}", options.time);
    let status = nightly(&["fuzz", "run", target, "--", &time])
        .status()
        .context("cannot start cargo")?;
    if !status.success() {
        bail!("{target} ended with {status}; what it found is in fuzz/artifacts/{target}");
    }
    Ok(())
}

/// The nightly toolchain's cargo: the sanitizer that cargo-fuzz builds with needs it.
fn nightly(arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(paths::root())
        // Set by the cargo that runs us, and it would win over `+nightly`.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .arg("+nightly")
        .args(arguments);
    command
}
