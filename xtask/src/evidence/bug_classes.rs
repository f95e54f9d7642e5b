// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Known classes of bugs in this field, and the tests of ours that would have caught them.

use std::fmt::Write;

use anyhow::{Result, ensure};

use crate::check::lint::Sources;

/// A class of bugs.
struct Class {
    /// What went wrong, where.
    what: &'static str,
    /// Names of test functions. Empty: none of ours would catch it yet.
    tests: &'static [&'static str],
}

const CLASSES: &[Class] = &[];

pub(super) fn write(page: &mut String, sources: &Sources) -> Result<()> {
    writeln!(
        page,
        "## Known bug classes\n\n| class | caught by |\n|---|---|"
    )?;
    for class in CLASSES {
        for test in class.tests {
            let head = format!("fn {test}(");
            let found = sources.files.iter().any(|file| file.text.contains(&head));
            ensure!(found, "there is no test {test}");
        }
        let tests: Vec<_> = class.tests.iter().map(|test| format!("`{test}`")).collect();
        let tests = if tests.is_empty() {
            "none yet".to_owned()
        } else {
            tests.join(", ")
        };
        writeln!(page, "| {} | {tests} |", class.what)?;
    }
    Ok(())
}
