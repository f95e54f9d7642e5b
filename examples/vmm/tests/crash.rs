// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM at its own end: a panic of one of its threads, and a system call that a thread may not make. Each tells what
//! the guest did last.
//!
//! The whole program, in a process of its own for each test: this one, started again with arguments of `vmm`. Only its
//! log is not the program's: whichever thread logs a certain line comes to harm there.
#![expect(unsafe_code, reason = "a forbidden system call is made by number")]

#[path = "support/chosen.rs"]
mod chosen;
#[path = "support/elf.rs"]
mod elf;
#[path = "support/folder.rs"]
mod folder;
#[path = "support/kvm.rs"]
mod kvm;
#[path = "support/run.rs"]
mod run;
#[path = "support/signal.rs"]
mod signal;

use elf::kernel;
use folder::Folder;
use hvkit_vmm::exit_status::ExitStatus;
use kvm::has_kvm;
use log::{LevelFilter, Log, Metadata, Record};
use run::run;
use signal::signalled;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// The variable by which a child is told who comes to harm.
const TRY: &str = "HVKIT_CRASH_TRY";

/// A `.` on the serial line; then a store where nothing is, in PCI's window for registers.
const CODE: &[u8] = &[
    0xfa, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, // CLI; OUT 0x3f8, '.'
    0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x34, 0x12, 0x00,
    0x00, // MOV DWORD [0xd0000000], 0x1234
    0xb0, b'\n', 0xee, // OUT 0x3f8, a new line
    0xeb, 0xfe,
];
const FIRST: &str = "the last exits of vCPU 0, newest last:\n  0: write to port 0x3f8, 1 bytes: 0x2e\n  \
     1: write to memory 0xd0000000, 4 bytes: 0x1234\n";

/// Who comes to harm, and how.
struct Harm {
    name: &'static str,
    /// In the line that its thread logs.
    at: &'static str,
    how: fn(),
}

const HARMS: [Harm; 3] = [
    Harm {
        name: "a panic of a vCPU's thread",
        at: "nothing there",
        how: || panic!("on purpose"),
    },
    Harm {
        name: "a panic of the main thread",
        at: "saved in",
        how: || panic!("on purpose"),
    },
    Harm {
        name: "a forbidden call of a vCPU's thread",
        at: "nothing there",
        how: || {
            // SAFETY: takes no argument, and changes nothing.
            let _ = unsafe { libc::syscall(libc::SYS_getppid) };
        },
    },
];

const TESTS: [(&str, fn()); 3] = [
    (
        "a_panic_of_a_vcpus_thread_ends_the_machine_and_tells",
        a_panic_of_a_vcpus_thread_ends_the_machine_and_tells,
    ),
    (
        "a_panic_of_the_main_thread_tells",
        a_panic_of_the_main_thread_tells,
    ),
    ("a_forbidden_call_tells", a_forbidden_call_tells),
];

impl Log for Harm {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.args().to_string().contains(self.at) {
            (self.how)();
        }
    }

    fn flush(&self) {}
}

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(TRY) {
        let harm = HARMS.iter().find(|harm| harm.name == name);
        log::set_logger(harm.expect("a known one")).expect("the first");
        log::set_max_level(LevelFilter::Trace);
        return hvkit_vmm::cli::main(std::env::args_os()).into();
    }
    let chosen = chosen::chosen(std::env::args().skip(1), &TESTS.map(|(name, _)| name));
    for (name, test) in TESTS.iter().filter(|(name, _)| chosen.contains(name)) {
        // Each by itself: each that is skipped counts as passed first.
        if has_kvm() {
            test();
        }
        println!("test {name} ... ok");
    }
    // In the words of libtest, which `cargo xtask test` counts. What fails has panicked.
    println!("test result: ok. {} passed; 0 failed", chosen.len());
    ExitCode::SUCCESS
}

/// The program, whose guest is to come to where `name` happens.
fn program(folder: &Folder, name: &str) -> Command {
    let program = std::env::current_exe().expect("this program's name");
    let mut command = Command::new(program);
    command
        .env(TRY, name)
        .env("RUST_BACKTRACE", "0")
        .args(["--memory", "size=4M", "--kernel"])
        .arg(folder.file("kernel", &kernel(CODE)))
        .arg("--snapshot")
        .arg(folder.path("saved"))
        .stdin(Stdio::null());
    command
}

fn a_panic_of_a_vcpus_thread_ends_the_machine_and_tells() {
    let folder = Folder::new();
    let (status, _, said) = run(&mut program(&folder, HARMS[0].name));
    let (panic, rest) = said.split_once("on purpose\n").expect(&said);
    assert!(panic.contains("thread 'vcpu0'"), "{said}");
    let expected = format!("vmm: the VMM's thread vcpu0 panicked\n{FIRST}");
    assert!(rest.ends_with(&expected), "{said}");
    assert_eq!(status, Some(ExitStatus::Host.code().into()), "{said}");
}

fn a_panic_of_the_main_thread_tells() {
    let folder = Folder::new();
    let mut program = program(&folder, HARMS[1].name);
    let ended = signalled(&mut program, "USR1", Duration::from_secs(60));
    let (status, line, said) = (ended.status, ended.line, ended.stderr);
    assert_eq!(line, ".\n", "{said}");
    let (panic, rest) = said.split_once("on purpose\n").expect(&said);
    assert!(panic.contains("thread 'main'"), "{said}");
    let expected = format!("{FIRST}  2: write to port 0x3f8, 1 bytes: 0xa\n");
    assert!(rest.ends_with(&expected), "{said}");
    // That of a Rust program which panicked.
    assert_eq!(status, Some(101), "{said}");
}

fn a_forbidden_call_tells() {
    let folder = Folder::new();
    let (status, _, said) = run(&mut program(&folder, HARMS[2].name));
    let number = libc::SYS_getppid;
    let alarm = format!("vmm: thread vcpu0 tried system call {number} (");
    let (first, rest) = said.split_once('\n').expect(&said);
    assert!(first.starts_with(&alarm), "{said}");
    assert_eq!(rest, FIRST);
    assert_eq!(status, Some(ExitStatus::Forbidden.code().into()), "{said}");
}
