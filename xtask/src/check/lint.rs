// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a house rule sees, and what it says.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cargo::{Package, packages};
use lab_kit::paths;

/// A Rust file of the checkout.
#[derive(Debug)]
pub(crate) struct Source {
    /// Its path from the root.
    pub(crate) path: PathBuf,
    /// Its text.
    pub(crate) text: String,
}

impl Source {
    /// Whether the file is test code by its place, or measures.
    pub(crate) fn is_test(&self) -> bool {
        let test_folder = self.path.components().any(|c| {
            matches!(
                c.as_os_str().to_str(),
                Some("tests" | "benches" | "fuzz_targets")
            )
        });
        test_folder
            || self.path.starts_with("bench")
            || self.path.file_name().is_some_and(|n| n == "tests.rs")
    }

    /// The lines outside modules for tests, numbered from 1.
    pub(crate) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut lines = (1..).zip(self.text.lines()).peekable();
        std::iter::from_fn(move || {
            loop {
                let (number, line) = lines.next()?;
                let next = match line.trim() {
                    "#[cfg(test)]" => lines.peek().map(|(_, next)| next.trim_start()),
                    _ => None,
                };
                let Some(module) = next.filter(|next| next.starts_with("mod ")) else {
                    return Some((number, line));
                };
                // A module in a file of its own: what is below this line is still code.
                if !module.ends_with('{') {
                    lines.next();
                    continue;
                }
                // The formatter puts the brace that closes it under the attribute.
                let indent = line.len().saturating_sub(line.trim_start().len());
                let end = format!("{}}}", &line[..indent]);
                lines.find(|(_, line)| *line == end)?;
            }
        })
    }
}

/// All that the rules look at.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Every Rust file that git knows or could add.
    pub(crate) files: Vec<Source>,
    /// The workspace's members.
    pub(crate) packages: Vec<Package>,
    /// The folders of packages outside the workspace, from the root.
    pub(crate) outside: Vec<PathBuf>,
}

impl Sources {
    /// Reads the checkout.
    pub(crate) fn read() -> Result<Self> {
        let mut files = Vec::new();
        for path in listed("*.rs")? {
            let whole = paths::root().join(&path);
            if whole.exists() {
                let text = fs::read_to_string(&whole)
                    .with_context(|| format!("cannot read {}", whole.display()))?;
                files.push(Source { path, text });
            }
        }
        let packages = packages()?;
        let outside = listed("*Cargo.toml")?
            .into_iter()
            .filter_map(|manifest| Some(manifest.parent()?.to_owned()))
            .filter(|folder| {
                let whole = paths::root().join(folder);
                *folder != Path::new("") && packages.iter().all(|p| p.folder != whole)
            })
            .collect();
        Ok(Sources {
            files,
            packages,
            outside,
        })
    }

    /// A package's files.
    pub(crate) fn of<'a>(&'a self, package: &'a Package) -> impl Iterator<Item = &'a Source> {
        self.below(from_root(&package.folder))
    }

    /// The files below a folder, but for those of packages further below.
    pub(crate) fn below<'a>(&'a self, folder: &'a Path) -> impl Iterator<Item = &'a Source> {
        let members = self.packages.iter().map(|p| from_root(&p.folder));
        let outside = self.outside.iter().map(PathBuf::as_path);
        let deeper: Vec<&Path> = members
            .chain(outside)
            .filter(|other| *other != folder && other.starts_with(folder))
            .collect();
        self.files.iter().filter(move |file| {
            let of_other = deeper.iter().any(|other| file.path.starts_with(other));
            file.path.starts_with(folder) && !of_other
        })
    }
}

/// A folder of the checkout as files have it.
pub(crate) fn from_root(folder: &Path) -> &Path {
    folder.strip_prefix(paths::root()).unwrap_or(folder)
}

/// The files of this kind that git knows or could add.
fn listed(kind: &str) -> Result<Vec<PathBuf>> {
    let out = Command::new("git")
        .current_dir(paths::root())
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .arg(kind)
        .output()
        .context("cannot start git")?;
    if !out.status.success() {
        bail!(
            "git ls-files: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().map(PathBuf::from).collect())
}

/// A breach of a house rule.
#[derive(Debug)]
pub(crate) struct Finding {
    /// The rule's short name.
    pub(crate) rule: &'static str,
    /// The file.
    pub(crate) path: PathBuf,
    /// The line, from 1; 0 for the whole file.
    pub(crate) line: usize,
    /// What is wrong.
    pub(crate) what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}: {}: {}",
            self.path.display(),
            self.line,
            self.rule,
            self.what
        )
    }
}

/// Takes what a rule found.
pub(crate) type Report<'a> = dyn FnMut(Finding) + 'a;

/// A house rule: its short name, why it is one, and how it is seen.
pub(crate) struct Rule {
    /// Short name.
    pub(crate) name: &'static str,
    /// Why; shown with what it finds.
    pub(crate) why: &'static str,
    /// Looks and reports.
    pub(crate) look: fn(&Sources, &mut Report<'_>),
}
