// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The user's terminal: the guest's while it runs, with an escape key, and as it was after every
//! end.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
mod support;

use elf::kernel;
use kvm::has_kvm;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Folder, run, vmm};

/// Prints '>', then echoes for ever: MOV DX, 0x3f8; MOV AL, '>'; OUT; then IN LSR; TEST 1; JZ;
/// IN DATA; OUT; JMP.
const ECHO: &[u8] = &[
    0xfa, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'>', 0xee, //
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, //
    0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xef,
];
/// The same prompt, then UD2 without an interrupt table.
const FAULT: &[u8] = &[0xfa, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'>', 0xee, 0x0f, 0x0b];

/// A terminal with `vmm` in it, as a user's would be.
struct Terminal {
    user: File,
    program: File,
    before: Termios,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let path = PathBuf::from(name.to_str().unwrap());
        let program = File::options().read(true).write(true).open(path).unwrap();
        Terminal {
            before: tcgetattr(&program).unwrap(),
            user: user.into(),
            program,
        }
    }

    fn start(&self, folder: &Folder, code: &[u8]) -> Child {
        let path = folder.file("kernel", &kernel(code));
        let end = || Stdio::from(self.program.try_clone().unwrap());
        let mut command = vmm();
        command
            .args(["--memory", "size=4M", "--kernel"])
            .arg(path)
            .stdin(end())
            .stdout(end())
            .stderr(Stdio::null());
        command.spawn().unwrap()
    }

    /// Reads until what the guest printed ends with `text`.
    fn expect(&mut self, text: &[u8]) {
        let mut seen = Vec::new();
        while !seen.ends_with(text) {
            let mut byte = [0];
            assert_eq!(self.user.read(&mut byte).unwrap(), 1);
            seen.push(byte[0]);
        }
    }

    fn is_raw(&self) -> bool {
        let keys = LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        !tcgetattr(&self.program)
            .unwrap()
            .local_modes
            .intersects(keys)
    }

    fn assert_restored(&self, after: &str) {
        let now = tcgetattr(&self.program).unwrap();
        assert_eq!(now.local_modes, self.before.local_modes, "{after}");
        assert_eq!(now.input_modes, self.before.input_modes, "{after}");
        assert_eq!(now.output_modes, self.before.output_modes, "{after}");
    }
}

fn end_of(mut child: Child) -> Option<i32> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if started.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            panic!("vmm did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn keys_are_the_guests_and_ctrl_a_x_is_ours() {
    if !has_kvm() {
        return;
    }
    let (folder, mut terminal) = (Folder::new(), Terminal::new());
    let child = terminal.start(&folder, ECHO);
    terminal.expect(b">");
    assert!(terminal.is_raw());
    // Ctrl-C and Ctrl-A go to the guest, which sends them back.
    terminal.user.write_all(b"ab\x03\x01\x01").unwrap();
    terminal.expect(b"ab\x03\x01");
    terminal.user.write_all(b"\x01x").unwrap();
    assert_eq!(end_of(child), Some(6));
    terminal.assert_restored("Ctrl-A x");
}

#[test]
fn the_terminal_is_restored_after_a_signal() {
    if !has_kvm() {
        return;
    }
    for (signal, status) in [("TERM", 143), ("HUP", 129), ("QUIT", 131)] {
        let (folder, mut terminal) = (Folder::new(), Terminal::new());
        let child = terminal.start(&folder, ECHO);
        terminal.expect(b">");
        assert!(terminal.is_raw());
        let kill = format!("kill -{signal} {}", child.id());
        let (sent, _, _) = run(Command::new("sh").args(["-c", &kill]));
        assert_eq!(sent, Some(0));
        assert_eq!(end_of(child), Some(status));
        terminal.assert_restored(signal);
    }
}

#[test]
fn the_terminal_is_restored_after_a_crash_and_untouched_by_a_machine_that_never_starts() {
    if !has_kvm() {
        return;
    }
    let (folder, mut terminal) = (Folder::new(), Terminal::new());
    let child = terminal.start(&folder, FAULT);
    terminal.expect(b">");
    assert_eq!(end_of(child), Some(5));
    terminal.assert_restored("a triple fault");

    let mut command = vmm();
    command
        .args(["--kernel", "/nonexistent"])
        .stdin(Stdio::from(terminal.program.try_clone().unwrap()));
    assert_eq!(run(&mut command).0, Some(20));
    terminal.assert_restored("a kernel that is missing");
}
