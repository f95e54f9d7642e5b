// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The oldest compiler that the crates say they take, seen to take them.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use lab_kit::paths;

use crate::cargo::Package;
use crate::step;

/// Sees that `rust-version` is one that was tried: by the compiler in use, if it is of that version, so that everything else here tries it; by
/// another that is installed, if not. With `CI` in the environment there has to be one.
pub(super) fn oldest(packages: &[Package]) -> Result<()> {
    let mut said: Vec<&str> = packages
        .iter()
        .filter_map(|package| package.rust_version.as_deref())
        .collect();
    said.dedup();
    let [oldest] = said[..] else {
        bail!("the packages say different rust-versions: {said:?}");
    };
    let out = Command::new(rustc())
        .arg("--version")
        .output()
        .context("cannot start rustc")?;
    let text = String::from_utf8_lossy(&out.stdout);
    let used = version(&text).with_context(|| format!("rustc says {text:?}"))?;
    let name = format!("rust-version {oldest}");
    if is(oldest, used) {
        step::Step::start(name).done(format!("the compiler in use: {used}"));
        return Ok(());
    }
    let wanted = match oldest.matches('.').count() {
        1 => format!("+{oldest}.0"),
        _ => format!("+{oldest}"),
    };
    if !toolchain(&wanted)
        .arg("--version")
        .output()?
        .status
        .success()
    {
        let what = format!(
            "the compiler in use is {used}, and there is no {}",
            &wanted[1..]
        );
        step::Step::start(name).skipped(&what);
        ensure!(std::env::var_os("CI").is_none(), "{what}");
        return Ok(());
    }
    step::run(
        &name,
        toolchain(&wanted)
            .args(["check", "-q", "--workspace", "--all-features"])
            .arg("--target-dir")
            .arg(paths::target().join("hvkit-oldest")),
    )?;
    Ok(())
}

/// The compiler that cargo uses here.
fn rustc() -> std::ffi::OsString {
    std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())
}

/// Cargo of another toolchain.
fn toolchain(name: &str) -> Command {
    let mut command = Command::new("cargo");
    command
        .current_dir(paths::root())
        // Set by the cargo that runs us, and they would win over the name.
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env_remove("RUSTC")
        .arg(name);
    command
}

/// The version in what `rustc --version` says.
fn version(said: &str) -> Option<&str> {
    said.strip_prefix("rustc ")?.split_whitespace().next()
}

/// Whether a compiler's version is the one that is said, which may leave out the last number.
fn is(said: &str, used: &str) -> bool {
    used == said
        || used
            .strip_prefix(said)
            .is_some_and(|rest| rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_is_told_by_its_first_two_numbers() {
        assert_eq!(
            version("rustc 1.95.0 (59807616e 2026-04-14)\n"),
            Some("1.95.0")
        );
        assert_eq!(version("cargo 1.95.0"), None);
        assert!(is("1.95", "1.95.0") && is("1.95", "1.95.2") && is("1.95.0", "1.95.0"));
        assert!(!is("1.95", "1.96.0") && !is("1.9", "1.95.0") && !is("1.95.1", "1.95.0"));
    }
}
