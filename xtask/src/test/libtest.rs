// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Rust's test harness prints: its closing lines added up, and what failed tests said.

use super::Count;

/// How many lines of what a failed test said are kept.
const SAID: usize = 12;

/// A test that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// As the harness takes it with `--exact`.
    pub(super) name: String,
    /// The end of what it wrote.
    pub(super) said: String,
}

/// Adds up the closing lines of test programs.
pub(super) fn counts(log: &str) -> Count {
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

/// The tests that failed, with what they said.
pub(super) fn failures(log: &str) -> Vec<Failure> {
    let heading = |line: &str| {
        let name = line.strip_prefix("---- ")?.strip_suffix(" stdout ----")?;
        Some(name.to_owned())
    };
    let mut failures: Vec<Failure> = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(name) = heading(line) else { continue };
        let mut said = Vec::new();
        // Where the panic came from is in its first line; the calls before it would crowd out what it said.
        let mut calls = false;
        while let Some(line) = lines.next_if(|line| *line != "failures:" && heading(line).is_none())
        {
            calls |= line == "stack backtrace:";
            if !calls && !line.trim().is_empty() {
                said.push(format!("    | {line}"));
            }
        }
        let said = said.split_off(said.len().saturating_sub(SAID)).join("\n");
        failures.push(Failure { name, said });
    }
    failures
}

/// How cargo says that it starts a test program, or a crate's documentation examples.
const HEADINGS: [&str; 2] = ["     Running ", "   Doc-tests "];

/// How cargo says that a program did not end as one does whose tests failed: by a signal, say.
const DIED: &str = "process didn't exit successfully";

/// How the harness ends the name of a test that is to fail, or of an example that is only compiled.
const KINDS: [&str; 3] = [" - should panic", " - compile fail", " - compile"];

/// The programs that ended without a word on how many tests passed, or otherwise than by it: how many of their tests did not run, nobody
/// knows. Cargo itself takes no notice of one that leaves with 0 in the middle of a test.
pub(super) fn untold(log: &str) -> Vec<&str> {
    let heading = |line: &str| HEADINGS.iter().any(|mark| line.starts_with(mark));
    let mut untold = Vec::new();
    let mut lines = log.lines().skip_while(|line| !heading(line)).peekable();
    while let Some(program) = lines.next() {
        let (mut told, mut died) = (false, false);
        while let Some(line) = lines.next_if(|line| !heading(line)) {
            told |= line.starts_with("test result: ");
            died |= line.contains(DIED);
        }
        if died || !told {
            untold.push(program.trim());
        }
    }
    untold
}

/// What is to be done after a run of all tests.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<'a> {
    /// Nothing: none failed.
    Count,
    /// These failed, and nothing else went wrong.
    Settle(Vec<Failure>),
    /// It did not build, or these programs ended before they could count, beside what failed: another try of some tests would say nothing
    /// of the others.
    Fail(Vec<Failure>, Vec<&'a str>),
}

/// What is to be done after the run that wrote `log`, and whose end cargo called good or not.
pub(super) fn next(log: &str, end: Result<(), ()>) -> Next<'_> {
    let (failed, untold) = (failures(log), untold(log));
    let all_named = failed.len() as u64 == counts(log).failed;
    match end {
        _ if !untold.is_empty() => Next::Fail(failed, untold),
        Ok(()) => Next::Count,
        Err(()) if failed.is_empty() || !all_named => Next::Fail(failed, untold),
        Err(()) => Next::Settle(failed),
    }
}

/// Whether each of them passed in another run: by its own name, since programs with a harness of their own count what they like.
pub(super) fn all_passed(log: &str, failed: &[Failure]) -> bool {
    let passed: Vec<&str> = log
        .lines()
        .filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"))
        .map(|name| {
            let kind = KINDS.iter().find_map(|kind| name.strip_suffix(kind));
            kind.unwrap_or(name)
        })
        .collect();
    // Two programs may have tests of one name.
    let times = |name: &str| passed.iter().filter(|passed| **passed == name).count();
    let failures = |name: &str| failed.iter().filter(|test| test.name == name).count();
    failed
        .iter()
        .all(|test| times(&test.name) >= failures(&test.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program whose test fails.
    const FAILS: &str = "     Running unittests src/lib.rs (target/debug/deps/dead-747d)\n\
        \n\
        running 2 tests\n\
        test should - should panic ... ok\n\
        test fails ... FAILED\n\
        \n\
        failures:\n\
        \n\
        ---- fails stdout ----\n\
        it is broken\n\
        \n\
        failures:\n    fails\n\
        \n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
        \n\
        error: test failed, to rerun pass `--lib`\n";
    /// One that a signal ends.
    const ABORTS: &str = "     Running tests/dies.rs (target/debug/deps/dies-db3d)\n\
        \n\
        running 1 test\n\
        error: test failed, to rerun pass `--test dies`\n\
        \n\
        Caused by:\n  process didn't exit successfully: `dies-db3d` (signal: 6, SIGABRT: process abort signal)\n";
    /// One that a test leaves, with the status of success; of failure.
    const LEAVES: &str =
        "     Running tests/leaves.rs (target/debug/deps/leaves-faca)\n\nrunning 1 test\n";
    const LEAVES_AS_IF_IT_FAILED: &str = "     Running tests/leaves101.rs (target/debug/deps/leaves101-4565)\n\
        \n\
        running 1 test\n\
        error: test failed, to rerun pass `--test leaves101`\n";
    /// A crate's examples, which are more programs than one.
    const EXAMPLES: &str = "   Doc-tests dead\n\
        \n\
        running 1 test\n\
        test src/lib.rs - (line 1) ... ok\n\
        \n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.08s\n\
        \n\
        \n\
        running 1 test\n\
        test src/lib.rs - (line 5) - compile fail ... ok\n\
        \n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.12s\n";

    fn failed(names: &[&str]) -> Vec<Failure> {
        let failure = |name: &&str| Failure {
            name: (*name).to_owned(),
            said: String::new(),
        };
        names.iter().map(failure).collect()
    }

    #[test]
    fn a_program_that_died_is_not_forgotten_for_another_whose_test_failed() {
        let build = "   Compiling dead v0.1.0\n";
        assert_eq!(next(&[build, EXAMPLES].concat(), Ok(())), Next::Count);
        let settled = Next::Settle(failures(FAILS));
        assert_eq!(next(&[build, FAILS, EXAMPLES].concat(), Err(())), settled);
        for dead in [ABORTS, LEAVES, LEAVES_AS_IF_IT_FAILED] {
            let program = dead.lines().next().unwrap().trim();
            let expected = Next::Fail(failures(FAILS), vec![program]);
            assert_eq!(next(&[FAILS, dead, EXAMPLES].concat(), Err(())), expected);
            assert_eq!(next(&[EXAMPLES, FAILS, dead].concat(), Err(())), expected);
        }
        // Which cargo itself calls success.
        let expected = Next::Fail(vec![], vec![LEAVES.lines().next().unwrap().trim()]);
        assert_eq!(next(&[LEAVES, EXAMPLES].concat(), Ok(())), expected);
        // One that dies when it has counted its tests.
        let late = EXAMPLES.to_owned()
            + "\nCaused by:\n  process didn't exit successfully: `x` (signal: 11)\n";
        assert_eq!(
            next(&late, Err(())),
            Next::Fail(vec![], vec!["Doc-tests dead"])
        );
        let unbuilt = "error: could not compile `dead`\n";
        assert_eq!(next(unbuilt, Err(())), Next::Fail(vec![], vec![]));
        // Failures that have no names cannot be tried again.
        let nameless = FAILS.replace("---- fails stdout ----", "") + EXAMPLES;
        assert_eq!(next(&nameless, Err(())), Next::Fail(vec![], vec![]));
    }

    #[test]
    fn what_passes_at_the_second_try_is_called_so_by_name() {
        assert!(all_passed(EXAMPLES, &failed(&["src/lib.rs - (line 1)"])));
        // The harness names one that is to fail without what it ends the line with.
        assert!(all_passed(EXAMPLES, &failed(&["src/lib.rs - (line 5)"])));
        assert!(all_passed(FAILS, &failed(&["should"])));
        // Others passed, more than failed before.
        assert!(!all_passed(EXAMPLES, &failed(&["fails"])));
        assert!(!all_passed(FAILS, &failed(&["fails"])));
        let both = ["should", "should"];
        assert!(!all_passed(FAILS, &failed(&both)));
        assert!(all_passed(&FAILS.repeat(2), &failed(&both)));
    }

    const LOG: &str = "test a ... ok\n\
        test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s\n\
        \n\
        failures:\n\
        \n\
        ---- queue::reset stdout ----\n\
        \n\
        thread 'queue::reset' panicked at src/queue.rs:7:\n\
        left is not right\n\
        stack backtrace:\n   0: rust_begin_unwind\n\
        \n\
        ---- ring stdout ----\n\
        Error: it is broken\n\
        \n\
        failures:\n    queue::reset\n    ring\n\
        \n\
        test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.00s\n";

    #[test]
    fn the_closing_lines_add_up() {
        let count = counts(LOG);
        assert_eq!((count.passed, count.failed, count.skipped), (15, 2, 1));
        assert_eq!(counts("error: could not compile"), Count::default());
    }

    #[test]
    fn failed_tests_are_named_with_what_they_said() {
        let found = failures(LOG);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].name, "queue::reset");
        assert_eq!(
            found[0].said,
            "    | thread 'queue::reset' panicked at src/queue.rs:7:\n    | left is not right"
        );
        assert_eq!(found[1].name, "ring");
        assert_eq!(found[1].said, "    | Error: it is broken");
        assert!(failures("error: could not compile").is_empty());
    }
}
