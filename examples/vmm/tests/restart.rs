// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--on-reboot restart`: one machine after the other, on this machine's own KVM with kernels of a few instructions.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
mod support;

use elf::kernel;
use kvm::has_kvm;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use support::{Folder, run, vmm};

/// No start and no end of a machine takes as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// MOV DX, port; MOV AL, value; OUT DX, AL.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `vmm` on a kernel that prints a letter and a line's end to a file, executes `code`, and then spins.
fn machine(folder: &Folder, code: &[u8]) -> Command {
    let said = [out(0x3f8, b'A'), out(0x3f8, b'\n')].concat();
    let code = [&said[..], code, &[0xfa, 0xeb, 0xfe]].concat();
    let path = folder.file("kernel", &kernel(&code));
    let mut command = vmm();
    command
        .args(["--memory", "size=4M", "--on-reboot", "restart", "--serial"])
        .arg(format!("file={}", folder.path("serial").display()))
        .arg("--kernel")
        .arg(path);
    command
}

/// How many machines have printed.
fn machines(folder: &Folder) -> usize {
    fs::read_to_string(folder.path("serial")).map_or(0, |text| text.matches('A').count())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The process that runs the machine, whose parent is `child`.
fn child_of(child: &Child) -> Option<u32> {
    let id = child.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn send(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

#[test]
fn a_guest_that_asks_for_a_reset_begins_again_until_somebody_ends_it() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    fs::write(folder.path("serial"), "from before\n").unwrap();
    let began = Instant::now();
    let mut command = machine(&folder, &out(0xcf9, 6));
    let mut waiting = command.stderr(Stdio::null()).spawn().unwrap();
    until("three machines", || machines(&folder) >= 3);
    // Not more often than once a second, and what the first wrote is still there.
    assert!(began.elapsed() >= Duration::from_secs(2));
    send(&waiting, rustix::process::Signal::TERM);
    let status = waiting.wait().unwrap();
    // The signal's, or of a machine that was at its reset just then.
    assert!([Some(143), Some(3)].contains(&status.code()), "{status}");
    assert!(
        !fs::read_to_string(folder.path("serial"))
            .unwrap()
            .contains("before")
    );
}

#[test]
fn every_other_end_is_the_end() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let (code, _, stderr) = run(&mut machine(&folder, &out(0x600, 5 << 2 | 1 << 5)));
    assert_eq!((code, machines(&folder)), (Some(0), 1), "{stderr}");
    let (code, _, stderr) = run(&mut machine(&folder, &out(0x505, 1)));
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.starts_with("vmm: the guest panicked\n"), "{stderr}");
    // What no machine comes of is said once.
    let (code, _, stderr) = run(machine(&folder, &[]).args(["--disk", "/nowhere"]));
    assert_eq!((code, stderr.lines().count()), (Some(50), 1), "{stderr}");
    let (code, _, stderr) = run(machine(&folder, &[]).args(["--restore", "/nowhere"]));
    assert_eq!(code, Some(2), "{stderr}");
}

/// The signal comes when the machine's process has hardly begun, where it would end it.
#[test]
fn a_request_to_save_that_comes_early_waits_for_the_machine() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut command = machine(&folder, &[]);
    command.arg("--snapshot").arg(folder.path("saved"));
    let mut waiting = command.spawn().unwrap();
    // Without a pause between two looks: what is meant is over in milliseconds.
    let began = Instant::now();
    while child_of(&waiting).is_none() {
        assert!(began.elapsed() < PATIENCE, "a machine");
    }
    send(&waiting, rustix::process::Signal::USR1);
    assert_eq!(waiting.wait().unwrap().code(), Some(16));
    assert!(folder.path("saved").join("manifest.json").exists());
}

#[test]
fn the_machine_ends_with_the_one_that_waits() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let mut waiting = machine(&folder, &[]).spawn().unwrap();
    until("a machine", || machines(&folder) == 1);
    let machine = child_of(&waiting).unwrap();
    send(&waiting, rustix::process::Signal::KILL);
    waiting.wait().unwrap();
    // It may be a zombie of somebody's who does not care.
    let status = format!("/proc/{machine}/status");
    until("the machine's end", || {
        fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"))
    });
}

/// What is answered at `path`.
fn asked(path: &Path, line: &str) -> String {
    let mut client = UnixStream::connect(path).unwrap();
    client.write_all(line.as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

/// The sockets of a machine are removed and made anew; `--counters` tells of every device in a confined process.
#[test]
fn counters_are_told_by_a_confined_machine() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let (socket, disk) = (folder.path("counters"), folder.file("disk", &[0; 4096]));
    let mut command = machine(&folder, &[]);
    command
        .arg("--counters")
        .arg(&socket)
        .arg("--disk")
        .arg(format!("path={},num_queues=3", disk.display()))
        .arg("--rng");
    let mut waiting = command.spawn().unwrap();
    until("a machine", || machines(&folder) == 1);
    let told: serde_json::Value = serde_json::from_str(&asked(&socket, "counters\n")).unwrap();
    let devices = told["devices"].as_array().unwrap();
    let named = devices.iter().map(|device| {
        let queues = device["queues"].as_array().unwrap();
        (device["device"].as_str().unwrap(), queues.len())
    });
    assert_eq!(
        named.collect::<Vec<_>>(),
        [("disk", 3), ("random bytes", 1)]
    );
    assert_eq!(devices[0]["queues"][2]["chains"], 0);
    assert!(asked(&socket, "reset\n").starts_with("error: "));
    // Another cannot have the same socket.
    let (code, _, stderr) = run(vmm()
        .args(["--serial", "null", "--memory", "4M", "--kernel"])
        .arg(folder.path("kernel"))
        .arg("--counters")
        .arg(&socket));
    assert_eq!(code, Some(77), "{stderr}");
    assert!(stderr.starts_with("vmm: --counters "), "{stderr}");
    send(&waiting, rustix::process::Signal::TERM);
    assert_eq!(waiting.wait().unwrap().code(), Some(143));
    assert!(!socket.exists());
}
