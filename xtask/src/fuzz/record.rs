// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a fuzzing run did, as committed lines of `fuzz/record/TARGET`: EVIDENCE.md is made from them.
//!
//! One line is one run that found nothing: `DATE COMMIT EXECUTIONS SECONDS EDGES SANITIZER`; lines of before the sanitizer was noted end with
//! the edges. A run that found something is not noted: its finding becomes a seed.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use lab_kit::paths;

use crate::checkout::Stamp;

/// What libFuzzer said of a run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Run {
    /// Inputs tried.
    pub(crate) executions: u64,
    /// For how long.
    pub(crate) seconds: u64,
    /// Edges of the program that were reached.
    pub(crate) edges: u64,
}

impl Run {
    /// Takes in one line of libFuzzer's.
    pub(super) fn hear(&mut self, line: &str) {
        let number = |text: &str| text.split_whitespace().next()?.parse().ok();
        let after = |mark| number(line.split_once(mark)?.1);
        if let Some(edges) = after(" cov: ") {
            self.edges = edges;
        }
        if let Some(count) = after("stat::number_of_executed_units:") {
            self.executions = count;
        }
        // "Done 123 runs in 45 second(s)"
        if line.starts_with("Done ")
            && let Some(seconds) = after(" runs in ")
        {
            self.seconds = seconds;
        }
    }

    /// Adds a line to the target's record, of the code as it was at the start.
    pub(super) fn append(&self, target: &str, stamp: &Stamp, sanitizer: &str) -> Result<()> {
        ensure!(self.executions > 0, "libFuzzer did not say how much it did");
        let path = path(target);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let Stamp { date, commit } = stamp;
        let Run {
            executions,
            seconds,
            edges,
        } = self;
        let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
        writeln!(
            file,
            "{date} {commit} {executions} {seconds} {edges} {sanitizer}"
        )
        .with_context(|| format!("cannot write {}", path.display()))?;
        println!("noted in {}: {executions} executions", path.display());
        Ok(())
    }
}

fn path(target: &str) -> PathBuf {
    paths::root().join("fuzz/record").join(target)
}

/// What stands for the sanitizer of a run that was noted without.
pub(crate) const UNKNOWN: &str = "unknown";

/// All runs of a target together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Total {
    /// Inputs tried, by the sanitizer: [`UNKNOWN`] if it was not noted.
    pub(crate) executions: BTreeMap<String, u64>,
    /// For how long.
    pub(crate) seconds: u64,
    /// Edges that the last run reached.
    pub(crate) edges: u64,
}

/// All runs of a target together.
pub(crate) fn total(target: &str) -> Result<Total> {
    match fs::read_to_string(path(target)) {
        Ok(text) => parse(&text).with_context(|| format!("in the record of {target}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Total::default()),
        Err(error) => Err(error).with_context(|| format!("the record of {target}")),
    }
}

fn parse(text: &str) -> Result<Total> {
    let mut total = Total::default();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let ([_date, _commit, numbers @ .., sanitizer], 6) = (&words[..], words.len()) else {
            let [_date, _commit, numbers @ ..] = &words[..] else {
                anyhow::bail!("{line:?} is no run");
            };
            add(&mut total, numbers, UNKNOWN).with_context(|| format!("{line:?}"))?;
            continue;
        };
        add(&mut total, numbers, sanitizer).with_context(|| format!("{line:?}"))?;
    }
    Ok(total)
}

fn add(total: &mut Total, numbers: &[&str], sanitizer: &str) -> Result<()> {
    let [executions, seconds, edges] = numbers else {
        anyhow::bail!("no run");
    };
    *total.executions.entry(sanitizer.to_owned()).or_default() += executions.parse::<u64>()?;
    total.seconds += seconds.parse::<u64>()?;
    total.edges = edges.parse()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_heard_from_libfuzzers_words() {
        let mut run = Run::default();
        for line in [
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 30Mb",
            "#8192\tpulse  cov: 340 ft: 900 corp: 20/1b lim: 4096 exec/s: 4096 rss: 40Mb",
            "#20000\tDONE   cov: 341 ft: 901 corp: 21/1b lim: 4096 exec/s: 4000 rss: 41Mb",
            "Done 20000 runs in 5 second(s)",
            "stat::number_of_executed_units: 20000",
            "stat::average_exec_per_sec:     4000",
        ] {
            run.hear(line);
        }
        let expected = Run {
            executions: 20000,
            seconds: 5,
            edges: 341,
        };
        assert_eq!(run, expected);
    }

    #[test]
    fn runs_add_up_by_their_sanitizers_and_a_record_that_is_none_is_refused() {
        let total = parse(
            "2026-01-01 abc 100 5 30\n2026-01-02 abd 50 6 31 address\n2026-01-02 abd 7 1 32 none\n2026-01-03 abe 1 1 33 address\n",
        )
        .unwrap();
        let executions = [("address", 51), ("none", 7), (UNKNOWN, 100)];
        let expected = Total {
            executions: executions
                .map(|(name, count)| (name.to_owned(), count))
                .into(),
            seconds: 13,
            edges: 33,
        };
        assert_eq!(total, expected);
        for wrong in [
            "x",
            "a b 1 2",
            "a b 1 2 x",
            "a b 1 2 x none",
            "a b 1 2 3 none 4",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
