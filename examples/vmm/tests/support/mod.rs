// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The real `vmm`, run to its end.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A folder for one test, readable by any user.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Folder(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// The real program.
pub(crate) fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
    command.stdin(Stdio::null());
    command
}

/// Runs `command` to its end; its exit status (none for a signal) and what it said.
pub(crate) fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Whether this user can use this machine's KVM. Where not, the test that asked counts as skipped.
pub(crate) fn has_kvm() -> bool {
    let mut device = fs::File::options();
    match device.read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            skip(&format!("/dev/kvm: {error}"));
            false
        }
    }
}

/// Says loudly that the test that calls it did not run, and why.
fn skip(why: &str) {
    let thread = std::thread::current();
    let line = format!("{}: {why}", thread.name().unwrap_or("a test"));
    eprintln!("SKIPPED {line}");
    // `cargo xtask test` counts these lines.
    let file = xtask::paths::logs().join("skipped");
    if let Ok(mut file) = fs::File::options().append(true).open(file) {
        writeln!(file, "{line}").unwrap();
    }
}
