// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `crate-shape`: each published crate stands alone: front page, changelog, licences.

use crate::check::lint::{Finding, Report, Rule, Sources};
use lab_kit::paths;

const FILES: &[&str] = &[
    "README.md",
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-BSD-3-Clause",
];

pub(crate) const RULE: Rule = Rule {
    name: "crate-shape",
    why: "a crate is read alone on crates.io and docs.rs, far from this repository",
    look,
};

fn look(sources: &Sources, report: &mut Report<'_>) {
    for package in sources.packages.iter().filter(|p| p.published) {
        let mut say = |what: String| {
            report(Finding {
                rule: RULE.name,
                path: package
                    .folder
                    .strip_prefix(paths::root())
                    .unwrap_or(&package.folder)
                    .into(),
                line: 0,
                what,
            });
        };
        for name in FILES {
            let length = std::fs::metadata(package.folder.join(name)).map_or(0, |m| m.len());
            if length == 0 {
                say(format!("{name} is missing or empty"));
            }
        }
        let front = sources.of(package).find(|f| f.path.ends_with("src/lib.rs"));
        let has_program = front.is_some_and(|f| f.text.contains("//! ```"))
            || front.is_some_and(|f| f.text.contains("include_str!(\"../README.md\")"));
        if !has_program {
            say("the front page of src/lib.rs has no program".to_owned());
        }
    }
}
