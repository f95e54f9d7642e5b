// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask guards`: the guard against each known class of bugs is taken out, and the test that is named after the class must
//! fail. What came of it is committed as `mutants/guards.txt`, for EVIDENCE.md: a line `TEST COMMIT` for each that was seen to.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab_kit::paths;

use super::tree::Tree;
use crate::checkout::Stamp;

mod list;

use list::{GUARDS, Guard};

/// Seconds for a test with and without its guard: without it, some do not end.
const PATIENCE: &str = "240";

/// The status of `timeout` if it had to end what it started.
const TIMED_OUT: i32 = 124;

/// What `cargo xtask guards` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only guards whose test has this in its name.
    name: Option<String>,
}

/// Takes each guard out in a copy of the checkout, and runs its test there.
pub fn guards(options: &Options) -> Result<()> {
    let Stamp { commit, .. } = Stamp::now()?;
    let copy = Tree::copy("page-table", "guards")?;
    let (mut noticed, mut wrong) = (noticed(), Vec::new());
    let wanted = |guard: &&Guard| {
        let name = options.name.as_deref();
        name.is_none_or(|name| guard.test.contains(name))
    };
    ensure!(
        GUARDS.iter().any(|guard| wanted(&guard)),
        "no guard's test has that in its name"
    );
    for guard in GUARDS.iter().filter(wanted) {
        match take_out(&copy.beside(guard.package), guard) {
            Ok(()) => {
                println!("{}: fails without its guard, as it must", guard.test);
                noticed.insert(guard.test.to_owned(), commit.clone());
            }
            Err(error) => {
                println!("{}: {error:#}", guard.test);
                noticed.remove(guard.test);
                wrong.push(guard.test);
            }
        }
        // Each at once: a run takes long, and may be broken off.
        write(&noticed)?;
    }
    ensure!(wrong.is_empty(), "not shown: {}", wrong.join(", "));
    Ok(())
}

fn write(noticed: &BTreeMap<String, String>) -> Result<()> {
    let lines = noticed
        .iter()
        .map(|(test, commit)| format!("{test} {commit}\n"));
    let path = record();
    fs::write(&path, lines.collect::<String>())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Sees that the guard's test passes with it, and does not without it.
fn take_out(tree: &Tree<'_>, guard: &Guard) -> Result<()> {
    ensure!(run(tree, guard)?, "it fails with its guard");
    let path = tree.folder().join(guard.file);
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    ensure!(
        text.matches(guard.with).count() == 1,
        "{}: the guard {:?} is not there once",
        guard.file,
        guard.with
    );
    fs::write(&path, text.replacen(guard.with, guard.without, 1))?;
    let passes = run(tree, guard);
    fs::write(&path, text)?;
    ensure!(!passes?, "it passes without its guard in {}", guard.file);
    Ok(())
}

/// The committed record.
fn record() -> PathBuf {
    paths::root().join("mutants/guards.txt")
}

/// The tests that are to notice.
#[cfg(test)]
pub(crate) fn tests() -> impl Iterator<Item = &'static str> {
    GUARDS.iter().map(|guard| guard.test)
}

/// The tests that were seen to notice, with the commit at which they were.
pub(crate) fn noticed() -> BTreeMap<String, String> {
    let text = fs::read_to_string(record()).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .map(|(test, commit)| (test.to_owned(), commit.to_owned()))
        .collect()
}

/// How a file that a guard is in stands to what it was when the guard was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Since {
    /// The same.
    Same,
    /// Changed.
    Changed,
    /// The commit is not in this checkout's history, or was changed when the guard was taken out.
    Unknown,
}

/// Whether a file of the test's guards has changed since a commit.
pub(crate) fn since(test: &str, commit: &str) -> Result<Since> {
    let files = GUARDS.iter().filter(|guard| guard.test == test);
    let status = Command::new("git")
        .current_dir(paths::root())
        .args(["diff", "--quiet", commit, "--"])
        .args(files.map(|guard| format!("{}/{}", guard.package, guard.file)))
        .stderr(Stdio::null())
        .status()
        .context("cannot start git")?;
    Ok(match status.code() {
        Some(0) => Since::Same,
        Some(1) => Since::Changed,
        _ => Since::Unknown,
    })
}

/// Whether the test passes. It must compile; one that does not end does not pass.
fn run(tree: &Tree<'_>, guard: &Guard) -> Result<bool> {
    let target: &[&str] = match guard.target {
        "lib" => &["--lib"],
        name => &["--test", name],
    };
    let built = tree
        .plain_cargo(&["test", "--no-run", "--quiet"])
        .args(target)
        .status()?;
    ensure!(built.success(), "{} does not compile", guard.file);
    let test = tree.plain_cargo(&["test"]);
    let out = Command::new("timeout")
        .arg(PATIENCE)
        .arg(test.get_program())
        .args(test.get_args())
        .args(target)
        .args(["--", guard.test])
        .envs(
            test.get_envs()
                .filter_map(|(key, value)| Some((key, value?))),
        )
        .current_dir(tree.root())
        .stderr(Stdio::null())
        .output()
        .context("cannot start timeout")?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(
        said.contains(guard.test) || out.status.code() == Some(TIMED_OUT),
        "there is no test {}",
        guard.test
    );
    Ok(out.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_that_is_not_there_says_nothing_of_a_file() {
        let test = "loops_end";
        for nowhere in ["no-such-commit", "HEAD+changes"] {
            assert_eq!(since(test, nowhere).unwrap(), Since::Unknown);
        }
        assert!(since(test, "HEAD").unwrap() != Since::Unknown);
    }

    #[test]
    fn each_guard_is_in_its_file_once() {
        for guard in GUARDS {
            let path = paths::root().join(guard.package).join(guard.file);
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(
                text.matches(guard.with).count(),
                1,
                "{}: {:?}",
                path.display(),
                guard.with
            );
        }
    }
}
