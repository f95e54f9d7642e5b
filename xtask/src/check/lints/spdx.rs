// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `spdx`: each file says its licence.

use crate::check::lint::{Finding, Report, Rule, Sources};

const LINE: &str = "// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause";

pub(crate) const RULE: Rule = Rule {
    name: "spdx",
    why: "a file copied out of a crate keeps its licence only if it carries it",
    look,
};

fn look(sources: &Sources, report: &mut Report<'_>) {
    for file in sources
        .files
        .iter()
        .filter(|f| f.text.lines().next() != Some(LINE))
    {
        report(Finding {
            rule: RULE.name,
            path: file.path.clone(),
            line: 1,
            what: format!("the first line is not `{LINE}`"),
        });
    }
}
