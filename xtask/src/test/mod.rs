// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: everything that must pass, and one line that counts it.

mod libtest;

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
    /// Of those that passed: at the second try only.
    unstable: u64,
}

/// How many failed tests are worth another try.
const FEW: usize = 3;

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
            total.unstable += count.unstable;
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
    let mut unsettled = Vec::new();
    note(cargo_tests(&mut unsettled));
    note(twice(&mut unsettled, || oracle(&["paging"])));
    note(twice(&mut unsettled, || oracle(&["ept"])));
    note(twice(&mut unsettled, || oracle(&["shadow"])));
    note(twice(&mut unsettled, || oracle(&["vm-entry"])));
    note(twice(&mut unsettled, || {
        oracle(&["vtd", "--cases", "20000"])
    }));
    note(twice(&mut unsettled, || {
        oracle(&["vtd-interrupts", "--cases", "15000"])
    }));
    if newer.is_ok() {
        note(twice(&mut unsettled, || {
            oracle(&["vtd-scalable", "--cases", "3000"])
        }));
    }
    note(twice(&mut unsettled, || {
        demo::demo(&demo::Options::default()).map(drop)
    }));

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
    // Last, so that the end of a long log says why.
    for test in &unsettled {
        eprintln!("{test}");
    }
    eprintln!("all in {:.0} s", start.elapsed().as_secs_f64());
    if total.unstable > 0 {
        println!("{} passed at the second try only", total.unstable);
    }
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

/// Runs a step on an emulator, and once more if it fails: see [`cargo_tests`].
fn twice(unsettled: &mut Vec<String>, step: impl Fn() -> Result<()>) -> Result<Count> {
    let Err(first) = step() else {
        return Ok(one(()));
    };
    eprintln!(" FAILED {first:#}; once more");
    step()?;
    unsettled.push(format!("UNSTABLE {first:#}"));
    Ok(Count {
        unstable: 1,
        ..one(())
    })
}

/// Unit tests, integration tests and documentation examples of the whole workspace.
///
/// Some tests boot machines in emulators with clocks and threads of their own, which may err once. So where a few tests
/// fail, they are run once more, alone: what fails again has failed; what does not is counted as unstable, and told.
fn cargo_tests(failures: &mut Vec<String>) -> Result<Count> {
    const ARGUMENTS: [&str; 4] = ["test", "--workspace", "--all-features", "--no-fail-fast"];
    let name = "cargo test";
    let ran = step::run(name, &mut cargo(&ARGUMENTS));
    let text = log(name)?;
    let mut count = libtest::counts(&text);
    let Err(error) = ran else { return Ok(count) };
    let failed = libtest::failures(&text);
    if failed.is_empty() || failed.len() as u64 != count.failed {
        // It did not build, or a test program died before it could count.
        return Err(error);
    }
    let again = match failed.len() {
        0..=FEW => {
            let name = "cargo test, again what failed";
            let mut command = cargo(&ARGUMENTS);
            command
                .args(["--", "--exact"])
                .args(failed.iter().map(|test| &test.name));
            let passed = step::run(name, &mut command).is_ok();
            let ran = libtest::counts(&log(name)?);
            passed && ran.passed >= count.failed
        }
        _ => false,
    };
    for test in &failed {
        let verdict = if again { "UNSTABLE" } else { "FAILED" };
        failures.push(format!("{verdict} {}\n{}", test.name, test.said));
    }
    if again {
        count.passed += count.failed;
        count.unstable += count.failed;
        count.failed = 0;
    }
    Ok(count)
}

/// What a step wrote.
fn log(name: &str) -> Result<String> {
    let log = step::log_path(name)?;
    fs::read_to_string(&log).with_context(|| format!("no {}", log.display()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_fails_twice_has_failed_and_what_fails_once_is_told() {
        let fails = |times: u32| {
            let left = Cell::new(times);
            move || match left.get() {
                0 => Ok(()),
                n => {
                    left.set(n - 1);
                    Err(anyhow!("it hung"))
                }
            }
        };
        let mut told = Vec::new();
        let count = twice(&mut told, fails(0)).unwrap();
        assert_eq!((count.passed, count.unstable, told.len()), (1, 0, 0));
        let count = twice(&mut told, fails(1)).unwrap();
        assert_eq!((count.passed, count.unstable), (1, 1));
        assert_eq!(told, ["UNSTABLE it hung"]);
        assert!(twice(&mut told, fails(2)).is_err());
        assert_eq!(told.len(), 1);
    }
}
