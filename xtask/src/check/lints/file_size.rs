// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `file-size`: one idea per file.

use crate::check::lint::{Finding, Report, Rule, Sources};

/// Lines of code and comment before the inline tests.
const CODE: usize = 500;
/// Lines of everything.
const WHOLE: usize = 800;

pub(crate) const RULE: Rule = Rule {
    name: "file-size",
    why: "a file that passes 500 lines is usually two ideas; tests that long belong beside it",
    look,
};

fn look(sources: &Sources, report: &mut Report<'_>) {
    for file in &sources.files {
        let whole = file.text.lines().count();
        let code = if file.is_test() {
            0
        } else {
            file.code_lines().count()
        };
        if code > CODE || whole > WHOLE {
            report(Finding {
                rule: RULE.name,
                path: file.path.clone(),
                line: 0,
                what: format!("{code} lines of code (at most {CODE}), {whole} in all ({WHOLE})"),
            });
        }
    }
}
