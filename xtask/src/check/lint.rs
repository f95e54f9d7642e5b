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
    /// Whether the file is test code by its place.
    pub(crate) fn is_test(&self) -> bool {
        let test_folder = self.path.components().any(|c| {
            matches!(
                c.as_os_str().to_str(),
                Some("tests" | "benches" | "bench" | "fuzz")
            )
        });
        test_folder || self.path.file_name().is_some_and(|n| n == "tests.rs")
    }

    /// The lines before an inline test module, numbered from 1.
    pub(crate) fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut lines = self
            .text
            .lines()
            .enumerate()
            .map(|(n, line)| (n + 1, line))
            .peekable();
        std::iter::from_fn(move || {
            let (number, line) = lines.next()?;
            let inline_tests = line.trim() == "#[cfg(test)]"
                && lines
                    .peek()
                    .is_some_and(|(_, next)| next.trim_start().starts_with("mod "));
            (!inline_tests).then_some((number, line))
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
}

impl Sources {
    /// Reads the checkout.
    pub(crate) fn read() -> Result<Self> {
        let out = Command::new("git")
            .current_dir(paths::root())
            .args([
                "ls-files",
                "--cached",
                "--others",
                "--exclude-standard",
                "*.rs",
            ])
            .output()
            .context("cannot start git")?;
        if !out.status.success() {
            bail!(
                "git ls-files: {}",
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        let mut files = Vec::new();
        for line in String::from_utf8_lossy(&out.stdout).lines() {
            let path = PathBuf::from(line);
            let whole = paths::root().join(&path);
            if whole.exists() {
                let text = fs::read_to_string(&whole)
                    .with_context(|| format!("cannot read {}", whole.display()))?;
                files.push(Source { path, text });
            }
        }
        Ok(Sources {
            files,
            packages: packages()?,
        })
    }

    /// The files below a package's folder.
    pub(crate) fn of(&self, package: &Package) -> impl Iterator<Item = &Source> {
        let folder = package
            .folder
            .strip_prefix(paths::root())
            .unwrap_or(Path::new(""))
            .to_owned();
        self.files
            .iter()
            .filter(move |f| f.path.starts_with(&folder))
    }
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
