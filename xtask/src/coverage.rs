// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask coverage`: which lines of each published crate its own tests reach, by cargo-llvm-cov.
//!
//! The record is committed, one line a file: `CRATE COMMIT FILE LINES REACHED`. EVIDENCE.md is made from it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use lab_kit::paths;

use crate::cargo::{self, Package};
use crate::check::lint::Sources;
use crate::checkout::Stamp;
use crate::{setup, step};

/// The version that was tried here.
const CARGO_LLVM_COV: &str = "0.9.1";

/// What `cargo xtask coverage` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only these crates, such as `ept` or `hvkit-ept`; all that are published if none is given.
    crates: Vec<String>,
}

/// How much of a file was reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Lines that the compiler made code of, tests apart.
    pub(crate) lines: u64,
    /// Those that a test came to.
    pub(crate) reached: u64,
}

/// A crate's files, and the commit they were of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// The commit.
    pub(crate) commit: String,
    /// By the path from the root.
    pub(crate) files: BTreeMap<String, Reached>,
}

impl Record {
    /// All files together.
    pub(crate) fn total(&self) -> Reached {
        let mut total = Reached::default();
        for file in self.files.values() {
            total.lines += file.lines;
            total.reached += file.reached;
        }
        total
    }
}

/// Runs the tests of each crate, and notes what they reached.
pub fn coverage(options: &Options) -> Result<()> {
    setup::for_coverage()?;
    cargo::install("llvm-cov", CARGO_LLVM_COV)?;
    let sources = Sources::read()?;
    let mut packages = sources.packages.clone();
    packages.retain(|package| package.published);
    for name in &options.crates {
        let called = |package: &Package| cargo::folder_of(&package.name) == cargo::folder_of(name);
        if !packages.iter().any(called) {
            bail!("{name} is no published crate");
        }
    }
    if !options.crates.is_empty() {
        packages.retain(|package| {
            let mut names = options.crates.iter().map(|name| cargo::folder_of(name));
            names.any(|name| name == cargo::folder_of(&package.name))
        });
    }
    let Stamp { commit, .. } = Stamp::now()?;
    let mut all = records()?;
    for package in &packages {
        let text = measure(package)?;
        let files = reached(&text, package, &sources);
        let record = Record {
            commit: commit.clone(),
            files,
        };
        let Reached { lines, reached } = record.total();
        println!("{}: {reached} of {lines} lines", package.name);
        all.insert(package.name.clone(), record);
    }
    fs::write(path(), written(&all)).with_context(|| format!("cannot write {}", path().display()))
}

/// What cargo-llvm-cov says of a crate's own tests, in lcov's format.
fn measure(package: &Package) -> Result<String> {
    let out = paths::target().join(format!("coverage-{}.info", package.name));
    let mut command = cargo::cargo(&["llvm-cov", "--lcov", "--all-features", "--package"]);
    command.arg(&package.name).arg("--output-path").arg(&out);
    for (variable, tool) in setup::COVERAGE_TOOLS {
        command.env(variable, tool);
    }
    step::run(&format!("tests of {}", package.name), &mut command)?;
    fs::read_to_string(&out).with_context(|| format!("cannot read {}", out.display()))
}

/// The files of the crate's `src`, without what is test code in them.
fn reached(lcov: &str, package: &Package, sources: &Sources) -> BTreeMap<String, Reached> {
    let mut files = BTreeMap::new();
    for (path, lines) in parse(lcov) {
        let Ok(local) = path.strip_prefix(paths::root()) else {
            continue;
        };
        if !path.starts_with(package.folder.join("src")) {
            continue;
        }
        let Some(source) = sources.files.iter().find(|source| source.path == local) else {
            continue;
        };
        if source.is_test() {
            continue;
        }
        let code: Vec<usize> = source.code_lines().map(|(number, _)| number).collect();
        let mut file = Reached::default();
        for (line, count) in lines {
            if code.binary_search(&line).is_ok() {
                file.lines += 1;
                file.reached += u64::from(count > 0);
            }
        }
        if file.lines > 0 {
            files.insert(local.display().to_string(), file);
        }
    }
    files
}

/// Of each file: its lines, and how often each was come to. lcov's `SF:PATH`, then `DA:LINE,COUNT`.
fn parse(lcov: &str) -> BTreeMap<PathBuf, BTreeMap<usize, u64>> {
    let mut files: BTreeMap<PathBuf, BTreeMap<usize, u64>> = BTreeMap::new();
    let mut file = None;
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            file = Some(files.entry(Path::new(path).to_owned()).or_default());
        } else if let Some((line, count)) = line
            .strip_prefix("DA:")
            .and_then(|words| words.split_once(','))
            && let (Ok(line), Ok(count), Some(file)) =
                (line.parse(), count.parse::<u64>(), &mut file)
        {
            let sum = file.entry(line).or_insert(0);
            *sum = sum.saturating_add(count);
        }
    }
    files
}

fn path() -> PathBuf {
    paths::root().join("coverage.txt")
}

/// What was noted, by crate.
pub(crate) fn records() -> Result<BTreeMap<String, Record>> {
    match fs::read_to_string(path()) {
        Ok(text) => read(&text).context("in coverage.txt"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error).context("coverage.txt"),
    }
}

fn read(text: &str) -> Result<BTreeMap<String, Record>> {
    let mut all: BTreeMap<String, Record> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [name, commit, file, lines, reached] = words[..] else {
            bail!("{line:?} is no file of a crate");
        };
        let number = |word: &str| {
            word.parse()
                .with_context(|| format!("{word:?} in {line:?}"))
        };
        let record = all.entry(name.to_owned()).or_default();
        commit.clone_into(&mut record.commit);
        let (lines, reached) = (number(lines)?, number(reached)?);
        if reached > lines {
            bail!("{line:?} reaches more than there is");
        }
        record
            .files
            .insert(file.to_owned(), Reached { lines, reached });
    }
    Ok(all)
}

fn written(all: &BTreeMap<String, Record>) -> String {
    let mut text = String::new();
    for (name, record) in all {
        for (file, Reached { lines, reached }) in &record.files {
            // A `String` takes everything.
            let _ = writeln!(text, "{name} {} {file} {lines} {reached}", record.commit);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_lcov_writes_them() {
        let lcov = "SF:/a/src/x.rs\nFN:3,f\nDA:3,1\nDA:4,0\nend_of_record\nSF:/a/src/y.rs\nDA:1,7\nend_of_record\nSF:/a/src/x.rs\nDA:4,2\nDA:x,1\nend_of_record\n";
        let files = parse(lcov);
        let x = BTreeMap::from([(3, 1), (4, 2)]);
        assert_eq!(files[Path::new("/a/src/x.rs")], x);
        assert_eq!(files[Path::new("/a/src/y.rs")], BTreeMap::from([(1, 7)]));
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_what_is_none_is_refused() {
        let text = "a 123 a/src/x.rs 10 7\na 123 a/src/y.rs 4 4\nb 124 b/src/lib.rs 1 0\n";
        let all = read(text).unwrap();
        let total = Reached {
            lines: 14,
            reached: 11,
        };
        assert_eq!(all["a"].total(), total);
        assert_eq!(written(&all), text);
        for wrong in ["a 123 x.rs 10", "a 123 x.rs 3 4", "a 123 x.rs 3 x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
