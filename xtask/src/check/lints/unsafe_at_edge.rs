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
        let opens = files
            .iter()
            .any(|f| f.text.contains("expect(unsafe_code, reason"));
        let Some(front) = files.iter().find(|f| f.path.ends_with("src/lib.rs")) else {
            continue;
        };
        let forbids = front.text.contains("#![forbid(unsafe_code)]");
        // Behind a feature or an architecture, `cfg_attr` may forbid it for the rest.
        let denies = front.text.contains("forbid(unsafe_code)")
            || front.text.contains("#![deny(unsafe_code)]");
        let what = match (opens, forbids, denies) {
            (false, false, _) => "uses no unsafe code but does not `#![forbid(unsafe_code)]`",
            (true, _, false) => "opens unsafe code in a module but does not deny it elsewhere",
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
