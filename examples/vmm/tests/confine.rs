// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What each kind of thread is forbidden, by trying it: this program starts itself again for every attempt, since
//! nobody gets out of a filter.
#![expect(unsafe_code, reason = "forbidden system calls are made by number")]

#[path = "support/chosen.rs"]
mod chosen;
#[path = "support/landlock.rs"]
mod landlock;

use hvkit_vmm::config::Confinement;
use hvkit_vmm::confine::{Confiner, Kind};
use hvkit_vmm::exit_status::ExitStatus;
use std::io::{self, Read, Write};
use std::os::raw::c_long;
use std::process::{Command, ExitCode, Output};
use std::sync::mpsc::channel;
use std::thread;

/// The variable by which an attempt is told what to try: `KIND/ATTEMPT`.
const TRY: &str = "HVKIT_CONFINE_TRY";
/// The one test here, as `cargo test` names it: what it counts is attempts.
const TEST: &str = "what_each_kind_is_forbidden";
/// What an attempt says that was refused by an error, or not at all.
const REFUSED: &str = "refused by an error";
const WORKED: &str = "it worked";

/// What must not work, for which kinds.
struct Attempt {
    name: &'static str,
    /// The system call and its arguments.
    call: fn() -> c_long,
    /// Kinds that may do this.
    allowed: &'static [Kind],
    refusal: Refusal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The process ends.
    Alarm,
    /// Libraries try this; they get an error.
    Error,
}

macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the call is refused before the kernel looks at an argument; where it is not, the test fails and
        // this process ends.
        || unsafe { libc::syscall(libc::$number $(, $argument)*) }
    };
}

const SHADOW: &std::ffi::CStr = c"/etc/shadow";
const TRUE: &std::ffi::CStr = c"/bin/true";
const NONE: *const u8 = std::ptr::null();

const fn alarm(name: &'static str, call: fn() -> c_long) -> Attempt {
    Attempt {
        name,
        call,
        allowed: &[],
        refusal: Refusal::Alarm,
    }
}

fn attempts() -> Vec<Attempt> {
    vec![
        Attempt {
            refusal: Refusal::Error,
            ..alarm(
                "open a file",
                call!(SYS_openat, libc::AT_FDCWD, SHADOW.as_ptr(), libc::O_RDONLY),
            )
        },
        Attempt {
            refusal: Refusal::Error,
            ..alarm(
                "open a file, the old way",
                call!(SYS_open, SHADOW.as_ptr(), libc::O_RDONLY),
            )
        },
        alarm(
            "open a file, the new way",
            call!(SYS_openat2, libc::AT_FDCWD, SHADOW.as_ptr(), NONE, 0),
        ),
        alarm(
            "start a program",
            call!(SYS_execve, TRUE.as_ptr(), NONE, NONE),
        ),
        alarm(
            "start a process",
            call!(SYS_clone, libc::SIGCHLD, 0, 0, 0, 0),
        ),
        alarm("fork", call!(SYS_fork)),
        alarm("trace", call!(SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0)),
        alarm(
            "write to another process",
            call!(SYS_process_vm_writev, 1, NONE, 0, NONE, 0, 0),
        ),
        alarm("end another process", call!(SYS_kill, 1, 0)),
        alarm("be another user", call!(SYS_setuid, 0)),
        alarm("mount", call!(SYS_mount, NONE, NONE, NONE, 0, NONE)),
        alarm(
            "leave its namespace",
            call!(SYS_unshare, libc::CLONE_NEWUSER),
        ),
        alarm(
            "raise a limit",
            call!(SYS_prlimit64, 0, libc::RLIMIT_NOFILE, NONE, NONE),
        ),
        alarm("use io_uring", call!(SYS_io_uring_setup, 1, NONE)),
        alarm("load a program into the kernel", call!(SYS_bpf, 0, NONE, 0)),
        alarm(
            "type into a terminal",
            call!(SYS_ioctl, 0, libc::TIOCSTI, NONE),
        ),
        alarm("make a KVM machine", call!(SYS_ioctl, -1, 0xae01, 0)),
        alarm(
            "use the Internet",
            call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
        ),
        alarm(
            "map memory that can be executed",
            call!(
                SYS_mmap,
                NONE,
                4096,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0
            ),
        ),
        alarm(
            "make memory executable",
            call!(SYS_mprotect, NONE, 4096, libc::PROT_EXEC),
        ),
        Attempt {
            allowed: &[Kind::Sockets, Kind::Nursery],
            ..alarm(
                "make a local socket",
                call!(SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0),
            )
        },
        Attempt {
            allowed: &[Kind::Main],
            ..alarm(
                "catch a signal",
                call!(SYS_rt_sigaction, libc::SIGUSR1, NONE, NONE, 8),
            )
        },
        Attempt {
            allowed: &[Kind::Main],
            ..alarm(
                "remove a file",
                call!(SYS_unlink, c"/no/such/file".as_ptr()),
            )
        },
    ]
}

fn main() -> ExitCode {
    if let Ok(what) = std::env::var(TRY) {
        attempt(&what);
        return ExitCode::SUCCESS;
    }
    if chosen::chosen(std::env::args().skip(1), &[TEST]).is_empty() {
        println!("test result: ok. 0 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    let mut wrong = Vec::new();
    let mut count = 0;
    for kind in Kind::ALL {
        for attempt in attempts() {
            count += 1;
            wrong.extend(judge(kind, &attempt));
        }
        count += 2;
        wrong.extend(ordinary_work(kind));
        wrong.extend(panic_is_told(kind));
    }
    count += 1;
    wrong.extend(unconfined());
    let (judged, of_landlock) = landlock_alone();
    count += judged;
    wrong.extend(of_landlock);
    for line in &wrong {
        eprintln!("FAILED: {line}");
    }
    // In the words of libtest, which `cargo xtask test` counts.
    let verdict = if wrong.is_empty() { "ok" } else { "FAILED" };
    println!(
        "test {TEST} ... {verdict}\ntest result: {verdict}. {} passed; {} failed",
        count - wrong.len(),
        wrong.len()
    );
    ExitCode::from(u8::from(!wrong.is_empty()))
}

/// Runs this program again to try `what`.
fn again(what: &str) -> Output {
    let program = std::env::current_exe().expect("this program's name");
    Command::new(program)
        .env(TRY, what)
        .output()
        .expect("this program runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What is wrong with how `attempt` ended for a thread of this kind, if anything is.
fn judge(kind: Kind, attempt: &Attempt) -> Option<String> {
    let output = again(&format!("{kind:?}/{}", attempt.name));
    let text = said(&output);
    let code = output.status.code();
    let alarmed = code == Some(ExitStatus::Forbidden.code().into())
        && text.contains("tried system call")
        && !text.contains(REFUSED)
        && !text.contains(WORKED);
    let right = if attempt.allowed.contains(&kind) {
        code == Some(0)
    } else if attempt.refusal == Refusal::Error {
        code == Some(0) && text.contains(REFUSED)
    } else {
        alarmed
    };
    (!right).then(|| format!("{kind:?}: {}: {:?}: {text}", attempt.name, output.status))
}

/// What any thread does, beside what is forbidden: each kind must still be able to.
fn ordinary_work(kind: Kind) -> Option<String> {
    let output = again(&format!("{kind:?}/work"));
    let right = output.status.success() && said(&output).contains(WORKED);
    (!right).then(|| format!("{kind:?}: ordinary work: {}", said(&output)))
}

/// A defect is told with its backtrace's attempt to open files, and does not end in an alarm.
fn panic_is_told(kind: Kind) -> Option<String> {
    let output = again(&format!("{kind:?}/panic"));
    let text = said(&output);
    let right =
        output.status.success() && text.contains("on purpose") && !text.contains("system call");
    (!right).then(|| format!("{kind:?}: panic: {text}"))
}

/// `--confine off` confines nothing.
fn unconfined() -> Option<String> {
    let output = again("off/open a file");
    let right = said(&output).contains(WORKED);
    (!right).then(|| format!("off: {}", said(&output)))
}

/// How much of Landlock was tried, and what was wrong.
fn landlock_alone() -> (usize, Vec<String>) {
    let version = match landlock::version() {
        Ok(version) => version,
        Err(error) => {
            lab_kit::skip::skip(&format!("no Landlock here: {error}"));
            return (0, Vec::new());
        }
    };
    let scene = landlock::Scene::new().expect("files and sockets");
    let output = again(&format!("landlock/{}", scene.told().expect("a port")));
    let (judged, mut wrong) = landlock::judge(&said(&output), version);
    wrong.extend(scene.changed());
    (judged, wrong)
}

/// The attempt itself, in a thread of the kind.
fn attempt(what: &str) {
    let (kind, name) = what.split_once('/').expect("KIND/ATTEMPT");
    if kind == "landlock" {
        return landlock::attempts(name);
    }
    let chosen = if kind == "off" {
        Confinement::Off
    } else {
        Confinement::On
    };
    let confiner = Confiner::new(chosen).expect("filters compile");
    let kind = Kind::ALL
        .into_iter()
        .find(|known| format!("{known:?}") == kind)
        .unwrap_or(Kind::Vcpu);
    let name = name.to_owned();
    let thread = thread::Builder::new().name("attempt".to_owned());
    let (entered, confined) = channel();
    let (look, looked) = channel();
    let thread = thread.spawn(move || {
        confiner.enter(kind).expect("this kernel filters");
        // SAFETY: takes no argument, and cannot fail.
        entered.send(unsafe { libc::gettid() }).expect("it waits");
        looked.recv().expect("it is as it should be");
        match name.as_str() {
            "work" => work(),
            "panic" => panic!("on purpose"),
            name => forbidden(name),
        }
    });
    let thread = thread.expect("a thread");
    as_chosen(chosen, confined.recv().expect("it comes so far"));
    look.send(()).expect("it waits");
    // A panic is what one attempt is for.
    let _ = thread.join();
}

/// What the kernel says of the thread: proc(5), "/proc/pid/status".
fn as_chosen(chosen: Confinement, thread: libc::pid_t) {
    let path = format!("/proc/self/task/{thread}/status");
    let status = std::fs::read_to_string(path).expect("a thread of this process");
    let expected = match chosen {
        Confinement::On => ["NoNewPrivs:\t1\n", "Seccomp:\t2\n"],
        Confinement::Off => ["NoNewPrivs:\t0\n", "Seccomp:\t0\n"],
    };
    for line in expected {
        assert!(status.contains(line), "{line:?} {status}");
    }
}

fn forbidden(name: &str) {
    let attempts = attempts();
    let attempt = attempts.iter().find(|attempt| attempt.name == name);
    let result = (attempt.expect("a known attempt").call)();
    println!("{}", if result < 0 { REFUSED } else { WORKED });
}

/// Memory from the heap and back, locks, time, an event.
fn work() {
    let mut kept = Vec::new();
    for size in [16, 4 << 10, 1 << 20, 64 << 20] {
        kept.push(vec![1u8; size]);
    }
    kept.reverse();
    drop(kept);
    thread::sleep(std::time::Duration::from_millis(1));
    let (mut reader, mut writer) = (io::empty(), io::stdout());
    let mut data = [0; 4];
    assert_eq!(reader.read(&mut data).expect("nothing to read"), 0);
    writeln!(writer, "{WORKED}").expect("standard output");
}
