// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: everything that must pass, and one line that counts it.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::cargo::cargo;
use crate::oracle::{self, Oracle};
use lab_kit::models::Model;
use lab_kit::paths;

use crate::{check, demo, setup, step};

/// What ran, over all steps.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

/// Runs everything: the static checks, every test, the oracles, the demo.
///
/// Ends in the line `N passed, N failed, N skipped`. With `CI` in the environment a skipped test
/// is a failed one.
pub fn test() -> Result<()> {
    let start = Instant::now();
    setup::setup()?;
    let skips = paths::logs().join("skipped");
    fs::create_dir_all(paths::logs())?;
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;

    let mut total = Count::default();
    let mut failures = Vec::new();
    let mut note = |result: Result<Count>| match result {
        Ok(count) => {
            total.passed += count.passed;
            total.failed += count.failed;
            total.skipped += count.skipped;
        }
        Err(error) => {
            total.failed += 1;
            failures.push(format!("{error:#}"));
        }
    };

    // Tests on newer models skip themselves, and are counted, where these cannot be had.
    let newer = Model::Qemu11.fetch();
    if let Err(error) = &newer {
        eprintln!("no QEMU 11: {error:#}");
    }

    note(check::check().map(one));
    note(cargo_tests());
    note(oracle(&["paging"]).map(one));
    note(oracle(&["ept"]).map(one));
    note(oracle(&["shadow"]).map(one));
    note(oracle(&["vm-entry"]).map(one));
    note(oracle(&["vtd", "--cases", "20000"]).map(one));
    note(oracle(&["vtd-interrupts", "--cases", "15000"]).map(one));
    if newer.is_ok() {
        note(oracle(&["vtd-scalable", "--cases", "3000"]).map(one));
    }
    note(demo::demo(&demo::Options::default()).map(one));

    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    for line in skipped.lines() {
        eprintln!("SKIPPED {line}");
        total.skipped += 1;
        // The test function that skipped returned, so libtest counted it.
        total.passed = total.passed.saturating_sub(1);
    }
    for failure in &failures {
        eprintln!(" FAILED {failure}");
    }
    eprintln!("all in {:.0} s", start.elapsed().as_secs_f64());
    println!(
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    );
    if total.failed > 0 {
        bail!("tests failed");
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Runs an oracle as the command line would, with its own defaults for CI.
fn oracle(words: &[&str]) -> Result<()> {
    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(subcommand)]
        which: Oracle,
    }
    oracle::oracle(&Line::try_parse_from(words)?.which)
}

fn one<T>(_: T) -> Count {
    Count {
        passed: 1,
        ..Count::default()
    }
}

/// Unit tests, integration tests and documentation examples of the whole workspace.
fn cargo_tests() -> Result<Count> {
    let name = "cargo test";
    let ran = step::run(
        name,
        &mut cargo(&["test", "--workspace", "--all-features", "--no-fail-fast"]),
    );
    let log = step::log_path(name)?;
    let text = fs::read_to_string(&log).with_context(|| format!("no {}", log.display()))?;
    let count = read_counts(&text);
    if let Err(error) = ran {
        for line in text.lines().filter(|l| l.ends_with("... FAILED")) {
            eprintln!("    | {line}");
        }
        if count.failed == 0 {
            // It did not build, or a test program died before it could count.
            return Err(error);
        }
        eprintln!("    | {error:#}");
    }
    Ok(count)
}

/// Adds up the closing lines of libtest.
fn read_counts(log: &str) -> Count {
    let mut sum = Count::default();
    for line in log.lines().filter_map(|l| l.strip_prefix("test result: ")) {
        for part in line.split([';', '.']) {
            let mut words = part.split_whitespace();
            if let (Some(Ok(number)), Some(what)) =
                (words.next().map(str::parse::<u64>), words.next())
            {
                match what {
                    "passed" => sum.passed += number,
                    "failed" => sum.failed += number,
                    "ignored" => sum.skipped += number,
                    _ => {}
                }
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_lines_add_up() {
        let log = "test a ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.00s\n";
        assert_eq!(
            read_counts(log),
            Count {
                passed: 15,
                failed: 2,
                skipped: 1
            }
        );
        assert_eq!(read_counts("error: could not compile"), Count::default());
    }
}
