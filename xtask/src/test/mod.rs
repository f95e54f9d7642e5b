// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cargo xtask test`: everything that must pass, and one line that counts it.

mod libtest;
mod outcome;

use std::fs;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;

use crate::cargo::cargo;
use crate::oracle::{self, Oracle};
use lab_kit::models::{Model, with_iommufd};
use lab_kit::paths;

use self::libtest::Next;
use self::outcome::{Count, Outcome};
use crate::{check, demo, setup, step};

/// How many failed tests are worth another try.
const FEW: usize = 3;

/// How much less what runs beside the tests is worth, as nice(2) counts it: a tenth of the time of two that want it.
const BESIDE: i32 = 10;

/// What is tested, as cargo names it.
const ALL: [&str; 3] = ["test", "--workspace", "--all-features"];

/// Runs everything: the static checks, every test, the oracles, the demo.
///
/// ```text
///   sources --> build --+--> cargo test: most of it waits for one emulator at a time --+--> one line
///                       '--> builds, oracles, demo ------------------------------------'
/// ```
///
/// Ends in the line `N passed, N failed, N skipped`. With `CI` in the environment a skipped test
/// is a failed one, but for what needs a model newer than Debian's, which a registry far away may not give: that is
/// counted.
pub fn test() -> Result<()> {
    let start = Instant::now();
    setup::setup()?;
    let skips = paths::logs().join("skipped");
    fs::create_dir_all(paths::logs())?;
    fs::write(&skips, "").with_context(|| format!("cannot write {}", skips.display()))?;

    // Tests on newer models skip themselves, and are counted, where these cannot be had.
    let newer = Model::Qemu11.fetch();
    if let Err(error) = &newer {
        eprintln!("no QEMU 11: {error:#}");
    }

    // The same of a newer host. Made before the tests, whose time is their own.
    if let Err(error) = with_iommufd() {
        eprintln!("no kernel with iommufd: {error:#}");
    }

    let mut outcome = Outcome::default();
    outcome.note(check::sources());
    let built = step::run("build tests", cargo(&ALL).arg("--no-run"));
    let beside = || {
        // Of this thread and what it starts. An emulator that has to share its processor takes several times as long.
        if let Err(error) = rustix::process::nice(BESIDE) {
            eprintln!("what runs beside the tests has their priority: {error}");
        }
        let mut outcome = Outcome::default();
        outcome.note(check::builds());
        oracles(&mut outcome, newer.is_ok());
        outcome.twice(|| demo::demo(&demo::Options::default()).map(drop));
        outcome
    };
    match built {
        Ok(_) => thread::scope(|scope| {
            let beside = scope.spawn(beside);
            cargo_tests(&mut outcome);
            match beside.join() {
                Ok(other) => outcome.add(other),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }),
        Err(error) => {
            outcome.note(Err(error));
            outcome.add(beside());
        }
    }

    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    for line in skipped.lines() {
        eprintln!("SKIPPED {line}");
        // The test function that skipped returned, so libtest counted it.
        outcome.count.skip_passed();
    }
    outcome.tell();
    eprintln!("all in {:.0} s", start.elapsed().as_secs_f64());
    let total = outcome.count;
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

/// Compares with the models, as often as CI has time for.
fn oracles(outcome: &mut Outcome, newer: bool) {
    for name in [
        "paging",
        "ept",
        "shadow",
        "vm-entry",
        "vtd",
        "vtd-interrupts",
    ] {
        outcome.twice(|| oracle(name));
    }
    if newer {
        outcome.twice(|| oracle("vtd-scalable"));
    } else {
        eprintln!("SKIPPED oracle vtd-scalable: no QEMU 11");
        outcome.count.skip();
    }
}

/// Runs an oracle as the command line would, with its own defaults for CI.
fn oracle(name: &str) -> Result<()> {
    #[derive(Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(subcommand)]
        which: Oracle,
    }
    oracle::oracle(&Line::try_parse_from([name])?.which)
}

/// Unit tests, integration tests and documentation examples of the whole workspace.
///
/// Some tests boot machines in emulators with clocks and threads of their own, which may err once. So where a few tests
/// fail, they are run once more, alone: what fails again has failed; what does not is counted as unstable, and told.
fn cargo_tests(outcome: &mut Outcome) {
    let run = |outcome: &mut Outcome| {
        let name = "cargo test";
        let ran = step::run(name, cargo(&ALL).arg("--no-fail-fast"));
        let text = log(name)?;
        let mut count = libtest::counts(&text);
        let end = ran.as_ref().map(drop).map_err(drop);
        let failed = match libtest::next(&text, end) {
            Next::Count => return Ok(count),
            Next::Settle(failed) => failed,
            Next::Fail(failed, untold) => {
                for test in failed {
                    outcome.unsettled(format!("FAILED {}\n{}", test.name, test.said));
                }
                let error = ran.err().unwrap_or_else(|| anyhow!("a test was left"));
                return Err(match &untold[..] {
                    [] => error,
                    untold => error.context(format!("no count from {}", untold.join(", "))),
                });
            }
        };
        let again = match failed.len() {
            0..=FEW => {
                let name = "cargo test, again what failed";
                let mut command = cargo(&ALL);
                command
                    .args(["--no-fail-fast", "--", "--exact"])
                    .args(failed.iter().map(|test| &test.name));
                let passed = step::run(name, &mut command).is_ok();
                passed && libtest::all_passed(&log(name)?, &failed)
            }
            _ => false,
        };
        for test in &failed {
            let verdict = if again { "UNSTABLE" } else { "FAILED" };
            outcome.unsettled(format!("{verdict} {}\n{}", test.name, test.said));
        }
        if again {
            count.passed += count.failed;
            count.unstable += count.failed;
            count.failed = 0;
        }
        Ok(count)
    };
    let ran = run(outcome);
    outcome.count(ran);
}

/// What a step wrote.
fn log(name: &str) -> Result<String> {
    let log = step::log_path(name)?;
    fs::read_to_string(&log).with_context(|| format!("no {}", log.display()))
}
