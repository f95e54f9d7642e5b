// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The program as a user runs it.

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs `hvkit inspect` with these arguments and this on its standard input.
pub(crate) fn hvkit(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_hvkit"))
        .arg("inspect")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    // One that fails before it reads closes the pipe.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().expect("it ends")
}
