// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that a running machine writes to: opened before, and emptied when the machine starts. One that never does leaves
//! what was there.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use crate::config::Output;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A file that cannot be emptied.
#[derive(Debug, thiserror::Error)]
#[error("{option}={}: cannot be emptied: {source}", path.display())]
pub struct NotEmptied {
    /// The option and its key.
    pub option: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// A file that is emptied once.
#[derive(Debug)]
pub struct ToEmpty {
    option: &'static str,
    path: PathBuf,
    file: File,
}

/// Opens the file at `path`, the value of `option`, or makes it; and, unless what comes is added to it, what empties it. A
/// pipe waits for its reader.
///
/// # Errors
///
/// The host's.
pub fn open(
    option: &'static str,
    path: &Path,
    begun: Output,
) -> io::Result<(File, Option<ToEmpty>)> {
    let goes_on = begun == Output::GoesOn;
    let mut options = File::options();
    let options = options.create(true).append(goes_on).write(true);
    let opened = options.truncate(false).open(path)?;
    if goes_on {
        return Ok((opened, None));
    }
    let to_empty = ToEmpty {
        option,
        path: path.to_path_buf(),
        file: opened.try_clone()?,
    };
    Ok((opened, Some(to_empty)))
}

impl ToEmpty {
    /// Empties it, if it is of the kind that keeps what is written: a pipe or a terminal has nothing to lose.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn empty(&self) -> Result<(), NotEmptied> {
        let emptied = self
            .file
            .metadata()
            .and_then(|found| match found.is_file() {
                true => self.file.set_len(0),
                false => Ok(()),
            });
        emptied.map_err(|source| NotEmptied {
            option: self.option,
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::fs;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    const OPTION: &str = "--serial file";

    #[test]
    fn a_file_is_emptied_when_it_is_said_and_not_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        fs::write(&path, "yesterday's").unwrap();
        let (mut file, to_empty) = open(OPTION, &path, Output::Anew).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"yesterday's");
        to_empty.unwrap().empty().unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let (mut file, to_empty) = open(OPTION, &path, Output::GoesOn).unwrap();
        assert!(to_empty.is_none());
        file.write_all(b"er").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
    }

    #[test]
    fn what_keeps_nothing_is_not_emptied() {
        let null = open(OPTION, Path::new("/dev/null"), Output::Anew);
        null.unwrap().1.unwrap().empty().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let (mut file, to_empty) = open(OPTION, path.as_ref(), Output::Anew).unwrap();
        to_empty.unwrap().empty().unwrap();
        file.write_all(b"said").unwrap();
        let mut said = [0; 4];
        reader.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"said");
    }

    #[test]
    fn what_cannot_be_emptied_is_named() {
        let file = memfd_create("log", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::io::write(&file, b"kept").unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (_, to_empty) = open(OPTION, path.as_ref(), Output::Anew).unwrap();
        let line = to_empty.unwrap().empty().unwrap_err().to_string();
        let start = format!("--serial file={path}: cannot be emptied: ");
        assert!(line.starts_with(&start), "{line}");
    }
}
