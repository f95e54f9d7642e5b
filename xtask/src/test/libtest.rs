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

#[cfg(test)]
mod tests {
    use super::*;

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
