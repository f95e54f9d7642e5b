// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Packages of another Debian suite with all they need, unpacked into a folder, nothing installed.
//!
//! apt is given lists, a state and a cache of its own, and told that nothing is installed: so it
//! downloads the whole closure down to the C library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// What no program needs to run, by the folder below `usr/share`.
const NOT_NEEDED: &[&str] = &["doc", "man", "locale", "icons", "info", "bash-completion"];

/// Unpacks `packages` of `suite` with their dependencies into `root`. `work` is for what is only
/// needed meanwhile.
pub(super) fn unpack(suite: &str, packages: &[&str], work: &Path, root: &Path) -> Result<()> {
    prepare(suite, work)?;
    run(apt(work)
        .args(["install", "--yes", "--download-only"])
        .arg("--no-install-recommends")
        .args(packages))?;
    extract(&work.join("cache/archives"), root)?;
    for folder in NOT_NEEDED {
        let folder = root.join("usr/share").join(folder);
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    Ok(())
}

/// Unpacks `packages`, and nothing that they depend on, into `root`. `work` was [`prepare`]d.
pub(super) fn unpack_alone(packages: &[String], work: &Path, root: &Path) -> Result<()> {
    let archives = work.join("cache/archives");
    run(apt(work)
        .arg("download")
        .args(packages)
        .current_dir(&archives))?;
    extract(&archives, root)
}

/// The names of packages that start with `start`. `work` was [`prepare`]d.
pub(super) fn names(start: &str, work: &Path) -> Result<Vec<String>> {
    let mut command = in_own_world("apt-cache", work);
    let output = command
        .args(["pkgnames", start])
        .output()
        .context("cannot start apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

/// Makes `work` a world of apt's own that knows `suite`.
pub(super) fn prepare(suite: &str, work: &Path) -> Result<()> {
    ensure!(
        Path::new(KEYRING).exists(),
        "no {KEYRING}: models are fetched on Debian (package debian-archive-keyring)"
    );
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(folder))?;
    }
    fs::write(work.join("status"), "")?;
    let source = format!("deb [signed-by={KEYRING}] {MIRROR} {suite} main\n");
    fs::write(work.join("sources.list"), source)?;
    run(apt(work).arg("update"))
}

/// Unpacks the packages in `folder` into `root`.
fn extract(folder: &Path, root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    let mut archives = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") {
            archives.push(path);
        }
    }
    ensure!(!archives.is_empty(), "apt downloaded nothing");
    for archive in &archives {
        run(Command::new("dpkg")
            .arg("-x")
            .args([archive, &root.to_path_buf()]))?;
    }
    Ok(())
}

/// apt-get in a world of its own.
fn apt(work: &Path) -> Command {
    let mut command = in_own_world("apt-get", work);
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
    command
}

fn in_own_world(program: &str, work: &Path) -> Command {
    let option = |name: &str, path: PathBuf| format!("{name}={}", path.display());
    let mut command = Command::new(program);
    for setting in [
        option("Dir::Etc::sourcelist", work.join("sources.list")),
        option("Dir::Etc::sourceparts", "/dev/null".into()),
        option("Dir::Etc::preferences", "/dev/null".into()),
        option("Dir::Etc::preferencesparts", "/dev/null".into()),
        option("Dir::State", work.join("state")),
        option("Dir::State::status", work.join("status")),
        option("Dir::Cache", work.join("cache")),
        // The folders are ours; apt's own user may not write there.
        "APT::Sandbox::User=root".to_owned(),
        "APT::Architectures=amd64".to_owned(),
        "Acquire::Languages=none".to_owned(),
    ] {
        command.arg("-o").arg(setting);
    }
    command
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_touches_nothing_of_this_machine() {
        let work = Path::new("/w");
        let apt = apt(work);
        let arguments: Vec<_> = apt.get_args().map(|a| a.to_string_lossy()).collect();
        for setting in [
            "Dir::State=/w/state",
            "Dir::State::status=/w/status",
            "Dir::Cache=/w/cache",
            "Dir::Etc::sourcelist=/w/sources.list",
        ] {
            assert!(arguments.iter().any(|a| a == setting), "{setting}");
        }
    }

    #[test]
    fn what_a_tool_says_when_it_fails_is_passed_on() {
        let error = run(Command::new("sh").args(["-c", "echo no such suite >&2; exit 100"]));
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("100") && text.contains("no such suite"),
            "{text}"
        );
    }
}
