// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `unsafe-at-edge`: library crates forbid unsafe code, or open it in named modules with a reason.

use crate::check::lint::{Finding, Report, Rule, Sources};

pub(crate) const RULE: Rule = Rule {
    name: "unsafe-at-edge",
    why: "unsafe code is argued where it stands; a crate that needs none says so to the compiler",
    look,
};

fn look(sources: &Sources, report: &mut Report<'_>) {
    for package in sources.packages.iter().filter(|p| p.published) {
        let files: Vec<_> = sources.of(package).filter(|f| !f.is_test()).collect();
        // The formatter may break an attribute over lines.
        let opens = files.iter().any(|f| {
            let dense: String = f.text.split_whitespace().collect();
            dense.contains("expect(unsafe_code,reason=")
        });
        let Some(front) = files.iter().find(|f| f.path.ends_with("src/lib.rs")) else {
            continue;
        };
        // Where a module opens it, the workspace's lints deny it elsewhere.
        let what = match (opens, front.text.contains("#![forbid(unsafe_code)]")) {
            (false, false) => "uses no unsafe code but does not `#![forbid(unsafe_code)]`",
            _ => continue,
        };
        report(Finding {
            rule: RULE.name,
            path: front.path.clone(),
            line: 1,
            what: what.to_owned(),
        });
    }
}
