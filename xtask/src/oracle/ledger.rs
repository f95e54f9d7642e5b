// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The differences that are explained: `lab/ledgers/NAME.md`.
//!
//! A section per rule. Its heading is the rule's name, which the oracle's code knows too; its text says
//! what the rule is, who is right by the manual, and gives an example case.

use std::fs;

use anyhow::{Context, Result, ensure};

use lab_kit::paths;

/// Fails unless the ledger of oracle `name` has a section for each of `rules`, and for nothing else.
pub(super) fn check(name: &str, rules: &[&str]) -> Result<()> {
    let path = paths::root().join(format!("lab/ledgers/{name}.md"));
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    agree(&text, rules).with_context(|| format!("the ledger {}", path.display()))
}

fn agree(text: &str, rules: &[&str]) -> Result<()> {
    let sections: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(str::trim)
        .collect();
    for rule in rules {
        ensure!(sections.contains(rule), "has no section {rule:?}");
    }
    for section in &sections {
        ensure!(
            rules.contains(section),
            "explains {section:?}, which no code looks for"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_needs_a_section_and_a_section_a_rule() {
        let text = "# Ledger\n\n## one\n\ntext\n\n## two\n";
        agree(text, &["one", "two"]).unwrap();
        assert!(
            agree(text, &["one"])
                .unwrap_err()
                .to_string()
                .contains("\"two\"")
        );
        let error = agree(text, &["one", "two", "three"]).unwrap_err();
        assert!(error.to_string().contains("\"three\""));
    }
}
