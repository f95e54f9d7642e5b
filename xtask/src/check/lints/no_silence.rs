// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `no-silence`: no lint is switched off for dead code, and none without a reason.

use crate::check::lint::{Finding, Report, Rule, Sources};

pub(crate) const RULE: Rule = Rule {
    name: "no-silence",
    why: "an `allow` without a reason outlives what it was for; `expect` says when it is over",
    look,
};

fn look(sources: &Sources, report: &mut Report<'_>) {
    for file in &sources.files {
        let lines: Vec<&str> = file.text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let text = line.trim_start();
            let attribute = ["#[allow(", "#![allow(", "#[expect(", "#![expect("];
            if !attribute.iter().any(|a| text.starts_with(a)) {
                continue;
            }
            // An attribute may be broken over a few lines by the formatter.
            let whole: String = lines[at..]
                .iter()
                .scan(false, |ended, l| {
                    let now = !*ended;
                    *ended = l.trim_end().ends_with(")]");
                    now.then_some(*l)
                })
                .collect();
            // What tests share is compiled into each of them, and each uses its part.
            let shared = file.is_test() && whole.contains("reason");
            let what = if (whole.contains("dead_code") || whole.contains("unused")) && !shared {
                "silences dead or unused code: delete it"
            } else if !whole.contains("reason") {
                "has no `reason`"
            } else {
                continue;
            };
            report(Finding {
                rule: RULE.name,
                path: file.path.clone(),
                line: at + 1,
                what: what.to_owned(),
            });
        }
    }
}
