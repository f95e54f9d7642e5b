// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A `vmm` whose guest runs, and which is then sent a signal.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What came of it.
pub(crate) struct Signalled {
    /// The guest's first line, which was waited for.
    pub(crate) line: String,
    /// The exit status; none if a signal ended it.
    pub(crate) status: Option<i32>,
    /// What it complained of.
    pub(crate) stderr: String,
}

/// Starts `command`, and sends it `signal` when the guest has said a line. It has `patience` to end.
pub(crate) fn signalled(command: &mut Command, signal: &str, patience: Duration) -> Signalled {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Open to the end: the guest may say more.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let asked = Instant::now();
    let kill = format!("kill -{signal} {}", child.id());
    let sent = Command::new("sh").args(["-c", &kill]).status();
    assert!(sent.unwrap().success());
    let ended = loop {
        match child.try_wait().unwrap() {
            Some(ended) => break ended,
            None if asked.elapsed() < patience => thread::sleep(Duration::from_millis(5)),
            None => {
                child.kill().unwrap();
                panic!("{signal}: not in {patience:?}");
            }
        }
    };
    let mut stderr = String::new();
    let mut said = child.stderr.take().unwrap();
    said.read_to_string(&mut stderr).unwrap();
    Signalled {
        line,
        status: ended.code(),
        stderr,
    }
}
