// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a record says of the code it is about: the commit, and whether files were changed since.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab_kit::paths;

/// What stands behind a commit whose files were changed, or had others beside them.
const CHANGES: &str = "+changes";

/// What commands write of their runs, and is committed after them: no change of the code that runs. As git takes it.
const RECORDS: [&str; 5] = [
    ":(exclude)EVIDENCE.md",
    ":(exclude)coverage.txt",
    ":(exclude)fuzz/record",
    ":(exclude)fuzz/seeds",
    ":(exclude)mutants",
];

/// Which code something was seen of. To be taken before it is looked at: a run may take hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The day of the commit, such as `2026-11-23`.
    pub(crate) date: String,
    /// The commit, short; with `+changes` behind it if a file is not as it is there, or is not there, but for the records that commands
    /// write.
    pub(crate) commit: String,
}

impl Stamp {
    /// Of this checkout as it is now.
    pub(crate) fn now() -> Result<Self> {
        Self::of(paths::root())
    }

    fn of(root: &Path) -> Result<Self> {
        let mut commit = git(root, &["rev-parse", "--short", "HEAD"])?;
        let status = [&["status", "--porcelain", "--", "."], &RECORDS[..]].concat();
        if !git(root, &status)?.is_empty() {
            commit += CHANGES;
        }
        let date = git(root, &["show", "-s", "--format=%cs", "HEAD"])?;
        Ok(Stamp { date, commit })
    }
}

/// What git says in a folder.
fn git(folder: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .current_dir(folder)
        .args(arguments)
        .output()
        .context("cannot start git")?;
    ensure!(output.status.success(), "git {arguments:?} failed");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_changed_file_shows_and_a_record_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let write = |name: &str, text: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let run = |arguments: &[&str]| git(root, arguments).unwrap();
        write("src/lib.rs", "");
        write("fuzz/record/mapper", "one\n");
        run(&["init", "-q"]);
        run(&["add", "."]);
        let author = ["-c", "user.name=a", "-c", "user.email=a@b"];
        run(&[&author[..], &["commit", "-q", "-m", "one"]].concat());
        let head = run(&["rev-parse", "--short", "HEAD"]);
        let commit = || Stamp::of(root).unwrap().commit;
        assert_eq!(commit(), head);
        for record in [
            "EVIDENCE.md",
            "coverage.txt",
            "fuzz/record/mapper",
            "fuzz/seeds/mapper/0",
            "mutants/ept",
        ] {
            write(record, "two\n");
            assert_eq!(commit(), head, "{record}");
        }
        let changed = format!("{head}+changes");
        write("src/lib.rs", "fn f() {}\n");
        assert_eq!(commit(), changed);
        run(&["checkout", "-q", "src/lib.rs"]);
        assert_eq!(commit(), head);
        // What git does not know of is compiled all the same.
        write("src/bin/new.rs", "fn main() {}\n");
        assert_eq!(commit(), changed);
    }

    #[test]
    fn what_is_no_checkout_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Stamp::of(folder.path()).is_err());
    }
}
