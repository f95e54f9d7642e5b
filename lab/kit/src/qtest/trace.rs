// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What QEMU's own trace points say: what a model does inside, where nothing shows it outside.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Qtest;

/// The file that the trace points write to, and how far it was read.
#[derive(Debug)]
pub(super) struct Trace {
    path: PathBuf,
    read: u64,
}

impl Trace {
    pub(super) fn of(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            read: 0,
        }
    }

    /// The lines that were ended since this was last asked.
    fn lines(&mut self) -> Result<Vec<String>> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            // QEMU makes it when it has something to say.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("cannot read the trace"),
        };
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(whole.map_or(0, |end| end + 1));
        self.read += bytes.len() as u64;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.lines().map(str::to_owned).collect())
    }
}

impl Qtest {
    /// What the trace points of [`QtestOptions::trace`](super::QtestOptions::trace) said since this was last asked,
    /// oldest first. All that a request caused is there when it is answered.
    pub fn traced(&mut self) -> Result<Vec<String>> {
        self.trace.lines()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    #[test]
    fn each_whole_line_comes_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace");
        let mut trace = Trace::of(&path);
        assert!(trace.lines().unwrap().is_empty());
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        file.write_all(b"one\ntwo\nthr").unwrap();
        assert_eq!(trace.lines().unwrap(), ["one", "two"]);
        assert!(trace.lines().unwrap().is_empty());
        file.write_all(b"ee\n").unwrap();
        assert_eq!(trace.lines().unwrap(), ["three"]);
    }
}
