// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The committed record of a crate's mutants: `mutants/CRATE`, that EVIDENCE.md is made from.
//!
//! A record's first line is `DATE COMMIT SAMPLE CAUGHT MISSED TIMEOUT UNVIABLE`, then a line for each survivor. The sample is
//! `DRAWNofALL,seed=SEED,without=TEST+TEST`: tests that were left out; `,cases=N` where random ones had so many cases. Why a survivor may live is in `mutants/CRATE.reasons`, written by hand: lines `SURVIVOR: REASON`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use lab_kit::paths;

use crate::checkout::Stamp;

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
    /// Those that could be noticed.
    pub(crate) fn tried(&self) -> u64 {
        self.caught + self.timeout + self.missed.len() as u64
    }

    /// Writes it to `mutants/CRATE`, of the code as it was copied.
    pub(super) fn write(&self, package: &str, stamp: &Stamp, sample: &str) -> Result<PathBuf> {
        if self.tried() == 0 {
            bail!("no mutant was tried");
        }
        let Stamp { date, commit } = stamp;
        let Run {
            caught,
            timeout,
            unviable,
            missed,
        } = self;
        let count = missed.len();
        let mut text = format!("{date} {commit} {sample} {caught} {count} {timeout} {unviable}\n");
        for survivor in missed {
            text += survivor;
            text.push('\n');
        }
        let folder = paths::root().join("mutants");
        fs::create_dir_all(&folder)?;
        let path = folder.join(package);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// A mutant's name without line and column, which every edit changes: `src/a.rs: replace f -> u8 with 0`.
pub(super) fn without_place(line: &str) -> String {
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
    /// Which part of all mutants: `DRAWNofALL,seed=SEED`.
    pub(crate) sample: String,
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
    let [_date, commit, sample, caught, missed, timeout, unviable] = words[..] else {
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
        sample: sample.to_owned(),
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
        let text = "2026-01-01 abc 36of900,seed=1 30 1 2 3\nsrc/a.rs: replace f -> u8 with 0\n";
        let reasons = "src/a.rs: replace f -> u8 with 0: it is 0\n";
        let record = parse(text, reasons).unwrap();
        assert_eq!((record.run.tried(), record.run.unviable), (33, 3));
        let survivor = &record.run.missed[0];
        assert_eq!(record.reasons[survivor], "it is 0");
        assert!(parse("2026-01-01 abc 0/4 30 2 2 3\nonly one\n", "").is_err());
        assert!(parse("", "").is_err());
    }
}
