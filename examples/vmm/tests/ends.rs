// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How a machine ends, and what `vmm` says of it: kernels of a few instructions, on this machine's
//! own KVM, also one that only emulates.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
#[path = "support/signal.rs"]
mod signal;
mod support;

use elf::kernel;
use kvm::has_kvm;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use signal::{Signalled, signalled};
use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::{Folder, run, vmm};

/// CLI; a jump to itself.
const SPIN: &[u8] = &[0xfa, 0xeb, 0xfe];

/// MOV DX, port; MOV AL, value; OUT DX, AL.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// `vmm` on a kernel that executes `code`.
fn machine(folder: &Folder, code: &[u8]) -> Command {
    let path = folder.file("kernel", &kernel(code));
    let mut command = vmm();
    command.args(["--memory", "size=4M", "--kernel"]).arg(path);
    command
}

/// Runs `code`, then a loop: what comes after the end must not matter.
fn ends(code: &[u8]) -> (Option<i32>, String, String) {
    let folder = Folder::new();
    run(&mut machine(&folder, &[code, SPIN].concat()))
}

#[test]
fn power_off_is_success_and_silent() {
    if !has_kvm() {
        return;
    }
    // Sleep type 5 in bits 4:2 and the enable bit 5.
    let (code, stdout, stderr) = ends(&out(0x600, 5 << 2 | 1 << 5));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), "", ""));
}

#[test]
fn a_machine_goes_on_when_nobody_reads_what_it_says() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // What it prints is lost, which is worth a line, which is lost as well.
    let said = [out(0x3f8, b'A'), out(0x3f8, b'\n')].concat();
    let off = out(0x600, 5 << 2 | 1 << 5);
    let mut command = machine(&folder, &[&said[..], &said, &off, SPIN].concat());
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    assert_eq!(command.status().unwrap().code(), Some(0));
}

#[test]
fn each_way_to_reset_is_told() {
    if !has_kvm() {
        return;
    }
    assert_eq!(ends(&out(0xcf9, 6)).0, Some(3));
    assert_eq!(ends(&out(0x64, 0xfe)).0, Some(3));
    // Jumping to the BIOS needs real mode, by way of 16-bit segments: LGDT, far jump, PE off, far
    // jump. Linux does this, too, if much more of it.
    let mut code = vec![0x0f, 0x01, 0x15, 0x40, 0, 0x10, 0]; // LGDT [0x100040]
    code.extend([0x66, 0xea, 0x00, 0x00, 0x08, 0x00]); // JMP 8:0, base 0x100080
    code.resize(0x40, 0x90);
    code.extend([0x0f, 0, 0x50, 0, 0x10, 0]); // limit 15, table at 0x100050
    code.resize(0x58, 0);
    // Base 0x100080, limit 0xffff, 16-bit code.
    code.extend(0x0000_9b10_0080_ffff_u64.to_le_bytes());
    code.resize(0x80, 0);
    code.extend([0x31, 0xc0, 0x0f, 0x22, 0xc0]); // XOR AX, AX; MOV CR0, EAX
    code.extend([0xea, 0xf0, 0xff, 0x00, 0xf0]); // JMP F000:FFF0
    assert_eq!(ends(&code).0, Some(3));
}

#[test]
fn a_panic_is_told() {
    if !has_kvm() {
        return;
    }
    let (code, _, stderr) = ends(&out(0x505, 1));
    assert_eq!(
        (code, stderr.as_str()),
        (
            Some(4),
            "vmm: the guest panicked\nthe last exits of vCPU 0, newest last:\n  0: write to port 0x505, 1 bytes: 0x1\n"
        )
    );
}

#[test]
fn a_triple_fault_is_told_with_registers() {
    if !has_kvm() {
        return;
    }
    // A write; then UD2, with no interrupt table to deliver the exception by, nor the double fault after it.
    let (code, _, stderr) = ends(&[out(0x3f8, b'.'), vec![0x0f, 0x0b]].concat());
    assert_eq!(code, Some(5), "{stderr}");
    assert!(
        stderr.starts_with("vmm: triple fault on vCPU 0\nrip "),
        "{stderr}"
    );
    assert!(stderr.contains("\ncs "), "{stderr}");
    // The write is exit 0, the triple fault is exit 1.
    let history = "the last exits of vCPU 0, newest last:\n  0: write to port 0x3f8, 1 bytes: 0x2e\n  1: another exit\n";
    let (_, told) = stderr.split_at(stderr.find("the last exits").unwrap());
    assert_eq!(told, history);
}

#[test]
fn the_serial_line_prints_to_standard_output_or_a_file() {
    if !has_kvm() {
        return;
    }
    let text = b"hi\n".map(|byte| out(0x3f8, byte)).concat();
    let code = [text, out(0x600, 0x34), SPIN.to_vec()].concat();
    let folder = Folder::new();
    let (status, stdout, _) = run(&mut machine(&folder, &code));
    assert_eq!((status, stdout.as_str()), (Some(0), "hi\n"));

    let log = folder.file("log", b"something longer from yesterday\n");
    let serial = format!("file={}", log.display());
    let (status, stdout, _) = run(machine(&folder, &code).args(["--serial", &serial]));
    assert_eq!((status, stdout.as_str()), (Some(0), ""));
    assert_eq!(fs::read(&log).unwrap(), b"hi\n");

    for mode in ["null", "off"] {
        let (status, stdout, _) = run(machine(&folder, &code).args(["--serial", mode]));
        assert_eq!((status, stdout.as_str()), (Some(0), ""), "{mode}");
    }
}

#[test]
fn a_string_of_bytes_is_printed_byte_by_byte() {
    if !has_kvm() {
        return;
    }
    // MOV ESI, text; MOV ECX, 4; MOV DX, 0x3f8; REP OUTSB; then off. Four bytes in one exit are
    // not one access of four.
    let mut code = vec![0xfc, 0xbe, 0x40, 0, 0x10, 0, 0xb9, 4, 0, 0, 0];
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e]);
    code.extend(out(0x600, 0x34));
    code.extend(SPIN);
    code.resize(0x40, 0x90);
    code.extend(b"abc\n");
    let folder = Folder::new();
    let (status, stdout, stderr) = run(&mut machine(&folder, &code));
    assert_eq!((status, stdout.as_str()), (Some(0), "abc\n"), "{stderr}");
}

#[test]
fn input_reaches_the_guest() {
    if !has_kvm() {
        return;
    }
    // Echo until a '.': IN AL, LSR; TEST AL, 1; JZ; IN AL, DATA; OUT; CMP AL, '.'; JNE.
    let mut code = vec![0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7];
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, b'.', 0x75, 0xed]);
    code.extend(out(0x600, 0x34));
    code.extend(SPIN);
    let folder = Folder::new();
    // More than the line's FIFO holds, from a file: `poll` takes one, `epoll` would not.
    let typed = format!("{}.", "0123456789".repeat(30));
    let input = folder.file("input", typed.as_bytes());
    let mut command = machine(&folder, &code);
    command.stdin(fs::File::open(input).unwrap());
    let (status, stdout, stderr) = run(&mut command);
    assert_eq!((status, stdout), (Some(0), typed), "{stderr}");
}

#[test]
fn signals_end_a_guest_that_never_would_whatever_its_processors_do() {
    if !has_kvm() {
        return;
    }
    for (signal, status) in [("TERM", 143), ("INT", 130), ("HUP", 129)] {
        let folder = Folder::new();
        // It says that it runs, then spins; the second processor waits to be started.
        let code = [out(0x3f8, b'\n'), SPIN.to_vec()].concat();
        let mut command = machine(&folder, &code);
        let patience = Duration::from_secs(5);
        let ended = signalled(command.args(["--cpus", "boot=2"]), signal, patience);
        let Signalled { stderr, line, .. } = ended;
        assert_eq!(line, "\n");
        assert_eq!(ended.status, Some(status), "{signal}: {stderr}");
        assert_eq!(stderr, "", "{signal}");
    }
}

#[test]
fn the_built_in_guest_does_all_it_should() {
    if !has_kvm() {
        return;
    }
    let (code, stdout, stderr) = run(vmm().args(["--guest", "hello"]));
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert_eq!(stdout.matches("\n  ok ").count(), 4, "{stdout}");
    assert!(!stdout.contains("WRONG"), "{stdout}");
}

#[test]
fn the_start_is_reported_as_json() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let report = folder.path("report");
    let code = [out(0x600, 0x34), SPIN.to_vec()].concat();
    let (status, _, _) = run(machine(&folder, &code).arg("--report").arg(&report));
    assert_eq!(status, Some(0));
    let report = fs::read_to_string(&report).unwrap();
    assert!(
        report.starts_with("{\"start_to_first_run_us\":"),
        "{report}"
    );
    assert!(report.contains(",\"cpu_us\":"), "{report}");
}

/// Its exit status, once it has ended.
fn ends_in_time(mut child: Child) -> Option<i32> {
    let asked = Instant::now();
    loop {
        match child.try_wait().unwrap() {
            Some(ended) => return ended.code(),
            None if asked.elapsed() > Duration::from_secs(60) => {
                let _ = child.kill();
                panic!("it does not end");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A terminal, and its end that nobody reads.
fn terminal() -> (OwnedFd, OwnedFd) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let name = ptsname(&user, Vec::new()).unwrap();
    let program = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    (user, program.unwrap())
}

/// Nobody reads what the guest prints: it waits, and the VMM still ends when it is told to; also where what it says itself
/// has the same reader.
#[test]
fn a_reader_that_does_not_read_keeps_nobody_from_ending_the_vmm() {
    if !has_kvm() {
        return;
    }
    let pipe = || {
        let (reader, writer) = std::io::pipe().unwrap();
        (OwnedFd::from(reader), OwnedFd::from(writer))
    };
    let ((one, stdout), (two, stderr)) = (pipe(), pipe());
    let (three, both) = pipe();
    let (four, screen) = terminal();
    let _readers = [one, two, three, four];
    let ends = [
        (stdout, stderr),
        (both.try_clone().unwrap(), both),
        (screen.try_clone().unwrap(), screen),
    ];
    // Prints for ever.
    let code = [out(0x3f8, b'r'), out(0x3f8, b'\n'), vec![0xeb, 0xf0]].concat();
    let folder = Folder::new();
    let children = ends.map(|(stdout, stderr)| {
        let mut command = machine(&folder, &code);
        command.arg("-vvv").stdout(stdout).stderr(stderr);
        command.spawn().unwrap()
    });
    // By then they have long been full.
    std::thread::sleep(Duration::from_secs(5));
    let ended = children.map(|mut child| {
        assert_eq!(child.try_wait().unwrap(), None);
        let kill = format!("kill -TERM {}", child.id());
        let sent = Command::new("sh").args(["-c", &kill]).status().unwrap();
        assert!(sent.success());
        ends_in_time(child)
    });
    assert_eq!(ended, [Some(128 + 15); 3]);
}

/// Nobody reads what the VMM says of a guest that came to harm.
#[test]
fn a_report_that_nobody_reads_is_not_waited_for() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let (_reader, mut writer) = std::io::pipe().unwrap();
    // pipe(7), "Pipe capacity".
    writer.write_all(&[b'x'; 65536]).unwrap();
    let mut command = machine(&folder, &out(0x505, 1));
    command.stdout(Stdio::null()).stderr(writer);
    assert_eq!(ends_in_time(command.spawn().unwrap()), Some(4));
}

/// What a machine wrote before is gone once another runs, and what has nothing to lose is written to as it is.
#[test]
fn files_are_emptied_when_the_machine_starts() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let code = [out(0x3f8, b'n'), out(0x600, 0x34), SPIN.to_vec()].concat();
    let logs = ["serial", "console", "bitmap"].map(|name| folder.file(name, b"yesterday's\n"));
    let [serial, console, bitmap] = logs.each_ref().map(|log| log.to_str().unwrap());
    for (serial, console, bitmap) in [
        (serial, console, bitmap),
        ("/dev/null", "/dev/null", "/dev/null"),
    ] {
        let socket = folder.path("socket");
        let (code, stdout, stderr) = run(machine(&folder, &code)
            .args(["--serial", &format!("file={serial}")])
            .args(["--console", &format!("file={console}")])
            .arg(format!(
                "--dirty-log=socket={},bitmap={bitmap}",
                socket.display()
            )));
        assert_eq!(
            (code, stdout.as_str(), stderr.as_str()),
            (Some(0), "", ""),
            "{serial}"
        );
    }
    assert_eq!(
        logs.map(|log| fs::read(log).unwrap()),
        [&b"n"[..], b"", b""]
    );
}

/// Sockets that a killed VMM has left keep nobody from starting; those of one that runs stay its own.
#[test]
fn sockets_of_a_vmm_that_was_killed_are_taken_over() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let names = ["balloon", "disk", "log", "counters"].map(|name| folder.path(name));
    let [balloon, disk, log, counters] = names.each_ref().map(|name| name.display());
    let image = folder.file("image", &[0; 4096]);
    let options = [
        format!("--balloon=socket={balloon}"),
        format!("--disk=path={},readonly=on,control={disk}", image.display()),
        format!("--dirty-log=socket={log}"),
        format!("--counters=socket={counters}"),
    ];
    let mut first = machine(&folder, SPIN)
        .args(&options)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    // The last of them.
    while std::os::unix::net::UnixStream::connect(&names[3]).is_err() {
        assert!(since.elapsed() < Duration::from_secs(60), "no socket");
        std::thread::sleep(Duration::from_millis(20));
    }
    let code = [out(0x600, 0x34), SPIN.to_vec()].concat();
    let (status, _, stderr) = run(machine(&folder, &code).args(&options));
    assert_eq!(status, Some(50 + 4), "{stderr}");
    assert!(
        stderr.contains(&format!("--disk control={disk}: in use")),
        "{stderr}"
    );
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(names.iter().all(|name| name.exists()));
    let (status, _, stderr) = run(machine(&folder, &code).args(&options));
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    assert!(!names.iter().any(|name| name.exists()));
}
