// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is written to the guest's memory, told by the real `vmm` on this machine's own KVM: a kernel of five instructions that
//! writes three pages for ever.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
mod support;

use elf::kernel;
use kvm::has_kvm;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};
use support::{Folder, run, vmm};

/// However busy this machine is.
const PATIENCE: Duration = Duration::from_secs(120);

/// CLI; then MOV [0x200000], EAX; MOV [0x201000], EAX; MOV [0x205000], EAX; and again.
const WRITES: &[u8] = &[
    0xfa, 0xa3, 0, 0, 0x20, 0, 0xa3, 0, 0x10, 0x20, 0, 0xa3, 0, 0x50, 0x20, 0, 0xeb, 0xef,
];

fn ask(path: &Path, line: &str) -> String {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(format!("{line}\n").as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn pages_that_a_processor_writes_are_told() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let (socket, bitmap) = (folder.path("log"), folder.path("bitmap"));
    let mut machine = vmm();
    machine
        .args(["--serial", "null", "--memory", "size=4M", "--kernel"])
        .arg(folder.file("kernel", &kernel(WRITES)))
        .arg(format!(
            "--dirty-log=socket={},bitmap={}",
            socket.display(),
            bitmap.display()
        ));
    // It says which process it is, to be ended by us.
    let number = folder.path("number");
    let mut told = Command::new("sh");
    told.args(["-c", "echo $$ >$0; exec \"$@\""])
        .arg(&number)
        .arg(machine.get_program())
        .args(machine.get_args());
    let machine = spawn(move || run(&mut told));
    until("no socket", || socket.exists());
    let idle = "error: the log does not run: start it";
    until("nobody answers", || UnixStream::connect(&socket).is_ok());
    assert_eq!(ask(&socket, "pages"), idle);
    assert_eq!(ask(&socket, "start"), "ok");
    // Each time again, for it goes on writing.
    for _ in 0..2 {
        let mut last = String::new();
        until("not these pages", || {
            last = ask(&socket, "pages");
            last == "all=3 processors=3 vmm=unknown"
        });
        let mut expected = vec![0; 128];
        expected[0x200 / 8] = 0b10_0011;
        assert_eq!(fs::read(&bitmap).unwrap(), expected, "{last}");
    }
    assert_eq!(ask(&socket, "stop"), "ok");
    assert_eq!(ask(&socket, "pages"), idle);
    let number = fs::read_to_string(number).unwrap();
    let process = Pid::from_raw(number.trim().parse().unwrap()).unwrap();
    kill_process(process, Signal::TERM).unwrap();
    let (code, _, stderr) = machine.join().unwrap();
    assert_eq!((code, stderr.as_str()), (Some(143), ""));
    assert!(!socket.exists());
}
