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
            command.args(["--cases", &cases.to_string()]);
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
pub(super) fn write(page: &mut String) -> Result<()> {
    writeln!(
        page,
        "## Oracles\n\nThe same cases in our code and on a model that others wrote.\n"
    )?;
    writeln!(
        page,
        "| oracle | model | cases | agree | explained | unexplained |\n|---|---|---|---|---|---|"
    )?;
    let mut explained = String::new();
    for name in names() {
        let Ok(text) = fs::read_to_string(Summary::path(&name)) else {
            writeln!(page, "| `{name}` | did not run | | | | |")?;
            continue;
        };
        let summary =
            Summary::parse(&text).with_context(|| format!("the result of oracle {name}"))?;
        let sum: u64 = summary.explained.values().sum();
        let Summary {
            model,
            cases,
            agreeing,
            differing,
            unstable,
            ..
        } = &summary;
        let once = match unstable {
            0 => String::new(),
            once => format!(" ({once} more differed once, and not when run again)"),
        };
        ensure!(
            agreeing + sum + differing <= *cases,
            "oracle {name} has more results than cases"
        );
        writeln!(
            page,
            "| `{name}` | {model} | {cases} | {agreeing} | {sum} | {differing}{once} |"
        )?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracles_are_those_of_the_command_line() {
        let names = names();
        assert!(names.contains(&"paging".to_owned()) && names.contains(&"vm-entry".to_owned()));
    }
}
