// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The result of an oracle's run, kept for `cargo xtask evidence`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use lab_kit::paths;

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The model and its version, as it names itself.
    pub(crate) model: String,
    /// The commit it ran on, as a [`Stamp`](crate::checkout::Stamp) has it.
    pub(crate) commit: String,
    /// Of which cases.
    pub(crate) seed: u64,
    /// The first case's number.
    pub(crate) first: u64,
    /// How many cases ran, from the first on.
    pub(crate) cases: u64,
    /// The same on both sides.
    pub(crate) agreeing: u64,
    /// Different by a rule of the ledger: how many by each.
    pub(crate) explained: BTreeMap<String, u64>,
    /// Different, and no rule says why.
    pub(crate) differing: u64,
    /// Different once, and not when run again.
    pub(crate) unstable: u64,
}

impl Summary {
    /// Where the last result of oracle `name` is kept.
    pub(crate) fn path(name: &str) -> PathBuf {
        paths::logs().join(format!("oracle-{name}.json"))
    }

    /// Keeps it.
    pub(super) fn save(&self, name: &str) -> Result<()> {
        let path = Self::path(name);
        fs::create_dir_all(paths::logs())?;
        let text = json!({
            "model": self.model, "commit": self.commit, "seed": self.seed,
            "first": self.first, "cases": self.cases, "agreeing": self.agreeing,
            "explained": self.explained, "differing": self.differing,
            "unstable": self.unstable,
        });
        fs::write(&path, text.to_string())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads one.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let number = |name: &str| {
            value[name]
                .as_u64()
                .with_context(|| format!("no number {name:?}"))
        };
        let text = |name: &str| {
            let text = value[name].as_str().map(str::to_owned);
            text.with_context(|| format!("no {name:?}"))
        };
        let explained = value["explained"].as_object().context("no \"explained\"")?;
        let explained = explained.iter().map(|(rule, count)| {
            Ok((
                rule.clone(),
                count.as_u64().context("a count is no number")?,
            ))
        });
        Ok(Self {
            model: text("model")?,
            commit: text("commit")?,
            seed: number("seed")?,
            first: number("first")?,
            cases: number("cases")?,
            agreeing: number("agreeing")?,
            explained: explained.collect::<Result<_>>()?,
            differing: number("differing")?,
            unstable: number("unstable")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_and_what_is_not() {
        let text = r#"{"agreeing":7,"cases":10,"commit":"abc","differing":1,"explained":{"rule":2},"first":4,"model":"Bochs","seed":3,"unstable":0}"#;
        let summary = Summary::parse(text).unwrap();
        assert_eq!(
            (summary.agreeing, summary.cases, summary.differing),
            (7, 10, 1)
        );
        assert_eq!(summary.explained["rule"], 2);
        assert_eq!((summary.seed, summary.first), (3, 4));
        assert_eq!((&*summary.model, &*summary.commit), ("Bochs", "abc"));
        // As one was written that did not say on what it ran.
        assert!(Summary::parse(&text.replace("commit", "comment")).is_err());
        assert!(Summary::parse("{}").is_err());
        assert!(Summary::parse("").is_err());
    }
}
