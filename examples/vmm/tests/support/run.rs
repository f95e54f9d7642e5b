// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A program, run to its end.

use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// No small guest needs as long, on any machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs `command` to its end, and ends it if that does not come; its exit status (none for a signal) and what it said.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().unwrap();
    let id = rustix::process::Pid::from_child(&child);
    let (ended, end) = mpsc::channel();
    thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    let Output {
        status,
        stdout,
        stderr,
    } = end.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let _ = rustix::process::kill_process(id, rustix::process::Signal::KILL);
        panic!("{command:?} did not end in {PATIENCE:?}: {:?}", end.recv())
    });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}
