// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests that cannot run here.
//!
//! libtest decides before a test starts whether it is ignored; a test that finds out while it runs
//! that this machine lacks something returns through [`skip`]. That is loud, is counted by
//! `cargo xtask test` as skipped and not as passed, and is a failure where `CI` is set.
//!
//! ```no_run
//! fn a_test() {
//!     lab_kit::skip_if!(lab_kit::bochs::missing());
//!     // ...
//! }
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::paths;

/// Where skips are noted, one a line: `cargo xtask test` empties it first and counts it after.
pub fn record() -> PathBuf {
    paths::logs().join("skipped")
}

/// Says that the running test is skipped, and why. Return right after it.
///
/// # Panics
///
/// If `CI` is in the environment: there, nothing of the laboratory may be skipped.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    assert!(
        std::env::var_os("CI").is_none(),
        "{test} may not be skipped where CI is set: {reason}"
    );
    say(test, reason);
}

/// The same for a test that needs a [newer model](crate::models): these come from suites that move on, so one
/// that cannot be had is counted as skipped, and fails nothing, even where `CI` is set.
pub fn skip_newer(reason: &str) {
    let thread = std::thread::current();
    say(thread.name().unwrap_or("a test"), reason);
}

fn say(test: &str, reason: &str) {
    // Written so, it passes libtest's capture.
    let _ = std::io::stderr().write_all(format!("SKIPPED {test}: {reason}\n").as_bytes());
    note(&record(), test, reason);
}

/// Adds one line to the record.
fn note(record: &Path, test: &str, reason: &str) {
    let line = format!("{test}: {reason}\n");
    let append = || {
        fs::create_dir_all(record.parent().unwrap_or(Path::new(".")))?;
        // One write of one line: tests in other processes append at the same time.
        let mut file = File::options().create(true).append(true).open(record)?;
        file.write_all(line.as_bytes())
    };
    // A skip that is not counted would be taken for a pass.
    if let Err(error) = append() {
        panic!(
            "cannot note in {} that {test} was skipped: {error}",
            record.display()
        );
    }
}

/// Returns from the test, skipped, if the expression is `Some(reason)`.
#[macro_export]
macro_rules! skip_if {
    ($missing:expr) => {
        if let Some(reason) = $missing {
            return $crate::skip::skip(&reason);
        }
    };
}

/// Returns from the test, skipped for want of a newer model, if the expression is `Some(reason)`.
#[macro_export]
macro_rules! skip_newer_if {
    ($missing:expr) => {
        if let Some(reason) = $missing {
            return $crate::skip::skip_newer(&reason);
        }
    };
}

/// The first of `files` that is not on this machine, in words.
pub fn missing(files: &[&str]) -> Option<String> {
    let file = files.iter().find(|file| !Path::new(file).exists())?;
    Some(format!("no {file} here; `cargo xtask setup` installs it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_is_one_line_of_the_record() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("logs/skipped");
        note(&record, "first", "no bochs");
        note(&record, "second", "no qemu");
        let lines = fs::read_to_string(&record).unwrap();
        assert_eq!(lines, "first: no bochs\nsecond: no qemu\n");
    }

    #[test]
    #[should_panic(expected = "cannot note")]
    fn a_skip_that_cannot_be_counted_fails() {
        note(Path::new("/proc/no/such/place"), "a test", "no bochs");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(&["/proc/self", "/"]), None);
        let reason = missing(&["/", "/no/such/file"]).unwrap();
        assert!(reason.contains("/no/such/file"), "{reason}");
    }
}
