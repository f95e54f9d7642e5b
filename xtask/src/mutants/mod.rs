// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask mutants`: which changes of a crate's code no test of the crate notices, by cargo-mutants; and the
//! committed record of it, `mutants/CRATE`, that EVIDENCE.md is made from.
//!
//! A record's first line is `DATE COMMIT SHARD CAUGHT MISSED TIMEOUT UNVIABLE`, then a line for each survivor. The shard is `k/n`, and of a run that
//! was ended early `k/n,DONEofPLANNED`. Why a
//! survivor may live is in `mutants/CRATE.reasons`, written by hand: lines `SURVIVOR: REASON`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use lab_kit::paths;

use crate::evidence::git;
use crate::step;

/// The version that was tried here.
const CARGO_MUTANTS: &str = "27.1.0";

/// Seconds that the tests of one mutant may take: a loop that a mutant made endless is noticed by this.
const PATIENCE: u32 = 300;

/// What its processes may map each: a loop that a mutant made endless may allocate, too.
const MEMORY: &str = "--as=8589934592";

/// What `cargo xtask mutants` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// A library crate's folder, such as `ept`.
    package: String,
    /// Every n-th mutant only, from the k-th on (from 0).
    #[arg(long, value_name = "k/n", default_value = "0/1")]
    shard: String,
    /// Only write the record of a run that ended before.
    #[arg(long)]
    no_run: bool,
}

/// Tries the mutants of a crate and writes the record. Survivors are no failure: they are listed.
pub fn mutants(options: &Options) -> Result<()> {
    let Options { package, shard, .. } = options;
    ensure!(
        paths::root().join(package).join("Cargo.toml").exists(),
        "there is no crate {package}"
    );
    let out = paths::target().join("mutants").join(package);
    if !options.no_run {
        install()?;
        fs::create_dir_all(&out)?;
        let status = Command::new("nice")
            .args([
                "-n",
                "19",
                "prlimit",
                MEMORY,
                "cargo",
                "mutants",
                "--package",
            ])
            .arg(format!("hvkit-{package}"))
            .args(["--shard", shard, "--sharding", "round-robin"])
            .args(["--timeout", &PATIENCE.to_string(), "--no-shuffle"])
            .arg("--output")
            .arg(&out)
            .current_dir(paths::root())
            .status()
            .context("cannot start cargo mutants")?;
        // 2: some were missed, 3: some timed out; both are results.
        ensure!(
            matches!(status.code(), Some(0 | 2 | 3)),
            "cargo mutants ended with {status}"
        );
    }
    let results = out.join("mutants.out");
    let run = Run::read(&results)?;
    // A run that was ended early says so: its score is of the mutants that came first.
    let (planned, done) = (planned(&results)?, run.tried() + run.unviable);
    let part = if done < planned {
        format!("{shard},{done}of{planned}")
    } else {
        shard.clone()
    };
    let record = run.record(&part)?;
    let path = path(package);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&path, record).with_context(|| format!("cannot write {}", path.display()))?;
    println!(
        "{package}: {} of {} caught; {} survive, in {}",
        run.caught + run.timeout,
        run.tried(),
        run.missed.len(),
        path.display()
    );
    Ok(())
}

fn install() -> Result<()> {
    let there = Command::new("cargo")
        .args(["mutants", "--version"])
        .output();
    if !there.is_ok_and(|output| output.status.success()) {
        let version = format!("cargo-mutants@{CARGO_MUTANTS}");
        step::run(
            "install cargo-mutants",
            Command::new("nice").args(["-n", "19", "cargo", "install", "--locked", &version]),
        )?;
    }
    Ok(())
}

/// How many mutants a run was to try.
fn planned(results: &Path) -> Result<u64> {
    let path = results.join("mutants.json");
    let text = fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
    let list: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    Ok(list.len() as u64)
}

fn path(package: &str) -> PathBuf {
    paths::root().join("mutants").join(package)
}

/// How mutants ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// A test failed.
    pub(crate) caught: u64,
    /// The tests did not end.
    pub(crate) timeout: u64,
    /// It did not compile: no mutant.
    pub(crate) unviable: u64,
    /// No test failed.
    pub(crate) missed: Vec<String>,
}

impl Run {
    /// From cargo-mutants' lists.
    fn read(folder: &Path) -> Result<Self> {
        let lines = |name: &str| -> Result<Vec<String>> {
            let path = folder.join(name);
            let text =
                fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))?;
            Ok(text.lines().map(without_place).collect())
        };
        let count = |name| Ok::<_, anyhow::Error>(lines(name)?.len() as u64);
        Ok(Run {
            caught: count("caught.txt")?,
            timeout: count("timeout.txt")?,
            unviable: count("unviable.txt")?,
            missed: lines("missed.txt")?,
        })
    }

    /// Those that could be noticed.
    pub(crate) fn tried(&self) -> u64 {
        self.caught + self.timeout + self.missed.len() as u64
    }

    fn record(&self, shard: &str) -> Result<String> {
        if self.tried() == 0 {
            bail!("no mutant was tried");
        }
        let date = git(&["show", "-s", "--format=%cs", "HEAD"])?;
        let commit = git(&["rev-parse", "--short", "HEAD"])?;
        let Run {
            caught,
            timeout,
            unviable,
            missed,
        } = self;
        let count = missed.len();
        let mut text = format!("{date} {commit} {shard} {caught} {count} {timeout} {unviable}\n");
        for survivor in missed {
            text += survivor;
            text.push('\n');
        }
        Ok(text)
    }
}

/// A mutant's name without line and column, which every edit changes: `src/a.rs: replace f -> u8 with 0`.
fn without_place(line: &str) -> String {
    match line.split_once(": ") {
        Some((place, what)) => {
            let file = place.split(':').next().unwrap_or(place);
            format!("{file}: {what}")
        }
        None => line.to_owned(),
    }
}

/// A crate's record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Which part of all mutants: `k/n`.
    pub(crate) shard: String,
    /// The commit it was made from.
    pub(crate) commit: String,
    /// What came of it.
    pub(crate) run: Run,
    /// Why survivors may live, by their names.
    pub(crate) reasons: BTreeMap<String, String>,
}

/// The records of all crates, by name.
pub(crate) fn records() -> Result<Vec<(String, Record)>> {
    let folder = paths::root().join("mutants");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(Vec::new());
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = fs::read_to_string(&path)?;
        let reasons = fs::read_to_string(path.with_extension("reasons")).unwrap_or_default();
        let record = parse(&text, &reasons).with_context(|| format!("in {}", path.display()))?;
        records.push((name.into_owned(), record));
    }
    records.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(records)
}

fn parse(text: &str, reasons: &str) -> Result<Record> {
    let (head, survivors) = text.split_once('\n').context("no lines")?;
    let words: Vec<_> = head.split(' ').collect();
    let [_date, commit, shard, caught, missed, timeout, unviable] = words[..] else {
        bail!("{head:?} does not begin a record");
    };
    let run = Run {
        caught: caught.parse()?,
        timeout: timeout.parse()?,
        unviable: unviable.parse()?,
        missed: survivors.lines().map(str::to_owned).collect(),
    };
    ensure!(
        missed.parse() == Ok(run.missed.len()),
        "{missed} survivors are said, {} listed",
        run.missed.len()
    );
    let reasons = reasons
        .lines()
        .filter_map(|line| line.rsplit_once(": "))
        .map(|(survivor, reason)| (survivor.to_owned(), reason.to_owned()));
    Ok(Record {
        shard: shard.to_owned(),
        commit: commit.to_owned(),
        run,
        reasons: reasons.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutant_keeps_its_name_when_lines_move() {
        assert_eq!(
            without_place("ept/src/a.rs:12:5: replace f -> u8 with 0"),
            "ept/src/a.rs: replace f -> u8 with 0"
        );
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let text = "2026-01-01 abc 0/4 30 1 2 3\nsrc/a.rs: replace f -> u8 with 0\n";
        let reasons = "src/a.rs: replace f -> u8 with 0: it is 0\n";
        let record = parse(text, reasons).unwrap();
        assert_eq!((record.run.tried(), record.run.unviable), (33, 3));
        let survivor = &record.run.missed[0];
        assert_eq!(record.reasons[survivor], "it is 0");
        assert!(parse("2026-01-01 abc 0/4 30 2 2 3\nonly one\n", "").is_err());
        assert!(parse("", "").is_err());
    }
}
