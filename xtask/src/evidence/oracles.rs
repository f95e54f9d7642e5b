// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the oracles compared.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::oracle::{Oracle, Summary};

/// The oracles' names, as the command line has them.
fn names() -> Vec<String> {
    let commands = Oracle::augment_subcommands(clap::Command::new("oracle"));
    commands
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect()
}

/// Runs every oracle, each in a process of its own; those that failed. A difference does not stop it: the page will show it.
pub(super) fn run_all(cases: Option<u64>) -> Result<Vec<String>> {
    let mut failed = Vec::new();
    let program = std::env::current_exe().context("where is this program?")?;
    for name in names() {
        let mut command = Command::new(&program);
        command.args(["oracle", &name]);
        if let Some(cases) = cases {
            command.args(["--keep", "--cases", &cases.to_string()]);
        }
        let _ = fs::remove_file(Summary::path(&name));
        let status = command
            .status()
            .with_context(|| format!("cannot start oracle {name}"))?;
        if !status.success() {
            eprintln!("oracle {name} failed: {status}");
            failed.push(name);
        }
    }
    Ok(failed)
}

/// A row for each oracle, then what each explained difference was.
///
/// A result that is not of the page's `commit` says so.
pub(super) fn write(page: &mut String, commit: &str) -> Result<()> {
    writeln!(
        page,
        "## Oracles\n\nThe same cases in our code and on a model that others wrote.\n"
    )?;
    writeln!(
        page,
        "| oracle | model | at commit | seed | cases | agree | explained | unexplained |\n|---|---|---|---|---|---|---|---|"
    )?;
    let mut explained = String::new();
    for name in names() {
        let Ok(text) = fs::read_to_string(Summary::path(&name)) else {
            writeln!(page, "| `{name}` | did not run to its end | | | | | | |")?;
            continue;
        };
        let summary =
            Summary::parse(&text).with_context(|| format!("the result of oracle {name}"))?;
        writeln!(page, "{}", row(&name, &summary, commit)?)?;
        for (rule, count) in &summary.explained {
            writeln!(
                explained,
                "| `{name}` | [`{rule}`](lab/ledgers/{name}.md) | {count} |"
            )?;
        }
    }
    if !explained.is_empty() {
        writeln!(
            page,
            "\n| oracle | explained by the ledger's | cases |\n|---|---|---|\n{explained}"
        )?;
    }
    Ok(())
}

/// What one compared, on a page of this commit.
fn row(name: &str, summary: &Summary, page: &str) -> Result<String> {
    let sum: u64 = summary.explained.values().sum();
    let Summary {
        model,
        commit,
        seed,
        first,
        cases,
        agreeing,
        differing,
        unstable,
        ..
    } = summary;
    let other = match commit == page {
        true => "",
        false => ", not this page's",
    };
    let from = match first {
        0 => String::new(),
        first => format!(" from {first}"),
    };
    let once = match unstable {
        0 => String::new(),
        once => format!(" ({once} more differed once, and not when run again)"),
    };
    ensure!(
        agreeing + sum + differing <= *cases,
        "oracle {name} has more results than cases"
    );
    Ok(format!(
        "| `{name}` | {model} | {commit}{other} | {seed} | {cases}{from} | {agreeing} | {sum} | {differing}{once} |"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_says_at_which_commit_it_was_seen() {
        let mut summary = Summary {
            model: "Bochs".to_owned(),
            commit: "abc".to_owned(),
            seed: 3,
            cases: 10,
            agreeing: 7,
            explained: [("rule".to_owned(), 2)].into(),
            differing: 1,
            ..Summary::default()
        };
        let row = |summary: &Summary| row("paging", summary, "abc").unwrap();
        assert_eq!(
            row(&summary),
            "| `paging` | Bochs | abc | 3 | 10 | 7 | 2 | 1 |"
        );
        summary.commit = "abc+changes".to_owned();
        summary.first = 40;
        assert_eq!(
            row(&summary),
            "| `paging` | Bochs | abc+changes, not this page's | 3 | 10 from 40 | 7 | 2 | 1 |"
        );
        summary.agreeing = 8;
        assert!(super::row("paging", &summary, "abc").is_err());
    }

    #[test]
    fn the_oracles_are_those_of_the_command_line() {
        let names = names();
        assert!(names.contains(&"paging".to_owned()) && names.contains(&"vm-entry".to_owned()));
    }
}
