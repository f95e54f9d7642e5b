// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--on-reboot restart`: a process that starts the VMM anew whenever the guest asks for a reset.
//!
//! ```text
//!   vmm --on-reboot restart ...              waits; passes signals on
//!     '-- vmm ... --restarted-by PID         the machine; status 3: one more of them, else its end is the end
//! ```
//!
//! A process that gave up its files and system calls has no way back to them, so the machine after a reset is another process's:
//! the same options, every file, interface and socket opened anew. The one that waits has no devices and reads nothing of the
//! guest's but the status.

use crate::exit_status::ExitStatus;
use crate::stderr;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The option by which a VMM learns that it has one who waits for it: the process, and how many machines came before.
pub(super) const OPTION: &str = "--restarted-by";
/// From one start to the next: a guest that does nothing else shall not keep the host busy.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often a machine that begins is asked whether it can be told to save itself.
const BEGINNING: Duration = Duration::from_millis(50);
/// A machine that ends by a reset so soon after it was told to save itself was ending already, and did not hear it.
const UNHEARD: Duration = Duration::from_secs(5);
/// Signals that are for the machine.
const PASSED_ON: [i32; 5] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1];

/// What becomes of a machine whose guest asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum OnReboot {
    /// It ends.
    Exit,
    /// Another one begins.
    Restart,
}

/// Who waits for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    process: u32,
    /// Machines that ended before this one.
    pub(super) before: u32,
}

/// The value of [`OPTION`].
pub(super) fn waiting(text: &str) -> Result<Waiting, String> {
    let parts = text.split_once(',');
    let parts =
        parts.and_then(|(process, before)| Some((process.parse().ok()?, before.parse().ok()?)));
    let (process, before) = parts.ok_or_else(|| "not a process and a number".to_owned())?;
    Ok(Waiting { process, before })
}

impl Waiting {
    /// Has this process be ended, as by SIGTERM, when the one that waits is no more.
    pub(super) fn end_with(self) -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::TERM))?;
        if parent_id() == self.process {
            Ok(())
        } else {
            Err(io::Error::other("the VMM that waits for it has ended"))
        }
    }
}

/// Runs machine after machine by `arguments`, the program's name first; the exit status of the last.
pub(super) fn main(arguments: &[OsString]) -> u8 {
    match machines(arguments) {
        Ok(status) => status,
        Err(error) => {
            stderr::line(format_args!("vmm: --on-reboot restart: {error}"));
            ExitStatus::Host.code()
        }
    }
}

fn machines(arguments: &[OsString]) -> io::Result<u8> {
    let program = std::env::current_exe()?;
    let mut signals = Signals::catch()?;
    let mut before = 0u32;
    loop {
        let began = Instant::now();
        let mut child = Command::new(&program)
            .args(arguments.iter().skip(1))
            .arg(format!("{OPTION}={},{before}", std::process::id()))
            .spawn()?;
        let status = signals.wait(&mut child)?;
        if status != ExitStatus::Reset.code() || signals.ending {
            return Ok(status);
        }
        signals.keep_unheard();
        before = before.saturating_add(1);
        log::info!("the guest asked for a reset: machine {before} after the first");
        thread::sleep(INTERVAL.saturating_sub(began.elapsed()));
    }
}

/// The signals of a process that waits.
struct Signals {
    woken: UnixStream,
    arrived: [(i32, Arc<AtomicBool>); PASSED_ON.len()],
    /// Whether one asked for the end.
    ending: bool,
    /// When a machine was last told to save itself.
    told_to_save: Option<Instant>,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let (woken, wake) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        let arrived = PASSED_ON.map(|signal| (signal, Arc::new(AtomicBool::new(false))));
        for (signal, flag) in &arrived {
            // Before the wake-up, so that whoever is woken knows.
            signal_hook::flag::register(*signal, Arc::clone(flag))?;
            signal_hook::low_level::pipe::register(*signal, wake.try_clone()?)?;
        }
        signal_hook::low_level::pipe::register(SIGCHLD, wake)?;
        Ok(Signals {
            woken,
            arrived,
            ending: false,
            told_to_save: None,
        })
    }

    /// Waits for `child` and passes on what comes; its exit status as a shell tells it.
    fn wait(&mut self, child: &mut Child) -> io::Result<u8> {
        loop {
            if let Some(status) = child.try_wait()? {
                let signal = status.signal().and_then(|signal| u8::try_from(signal).ok());
                let code = status.code().and_then(|code| u8::try_from(code).ok());
                return Ok(code
                    .or(signal.map(|signal| 128 | signal))
                    .unwrap_or(u8::MAX));
            }
            let mut early = false;
            for (number, flag) in &self.arrived {
                // One that has not come so far would be ended by it.
                if *number == SIGUSR1 && flag.load(Ordering::Acquire) && !takes(child, *number) {
                    early = true;
                } else if flag.swap(false, Ordering::AcqRel) {
                    match *number {
                        SIGUSR1 => self.told_to_save = Some(Instant::now()),
                        _ => self.ending = true,
                    }
                    pass_on(*number, child);
                }
            }
            self.woken.set_read_timeout(early.then_some(BEGINNING))?;
            match (&self.woken).read(&mut [0; 16]) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) =>
                {
                    return Err(error);
                }
                _ => {}
            }
        }
    }

    /// A machine ended by a reset: what it was told in its last moments is for the next one.
    fn keep_unheard(&mut self) {
        let told = self.told_to_save.take();
        if told.is_some_and(|told| told.elapsed() < UNHEARD) {
            let mut arrived = self.arrived.iter();
            if let Some((_, flag)) = arrived.find(|(number, _)| *number == SIGUSR1) {
                flag.store(true, Ordering::Release);
            }
        }
    }
}

/// Whether `child` catches this signal, or lets it wait, by what Linux tells of a process: proc_pid_status(5).
fn takes(child: &Child, number: i32) -> bool {
    let told = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let set = |name| {
        let words = told.lines().find_map(|line| line.strip_prefix(name));
        words.and_then(|words| u64::from_str_radix(words.trim(), 16).ok())
    };
    let either = set("SigBlk:").unwrap_or(0) | set("SigCgt:").unwrap_or(0);
    let bit = u32::try_from(number).ok().and_then(|n| n.checked_sub(1));
    bit.is_some_and(|bit| either.checked_shr(bit).is_some_and(|set| set & 1 != 0))
}

fn pass_on(number: i32, child: &Child) {
    let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (Some(process), Some(signal)) = (process, Signal::from_named_raw(number)) {
        // It is not waited for yet, so the number is nobody else's; if it has ended, that is as well.
        let _ = kill_process(process, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn a_process_takes_a_signal_from_when_it_catches_it() {
        let shell = |script: &str| {
            let mut shell = Command::new("/bin/sh");
            let shell = shell.args(["-c", script]).stdin(Stdio::piped());
            shell.stdout(Stdio::piped()).spawn()
        };
        // A shell that starts a program lets every signal wait for a moment; these start none.
        let mut idle = shell("echo; read _").unwrap();
        let mut catching = shell("trap : USR1; echo; read _").unwrap();
        for child in [&mut idle, &mut catching] {
            child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        }
        let answers = [&idle, &catching].map(|child| takes(child, SIGUSR1));
        for child in [&mut idle, &mut catching] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(answers, [false, true]);
    }

    #[test]
    fn who_waits_is_told_by_two_numbers() {
        let (process, before) = (12, 3);
        assert_eq!(waiting("12,3"), Ok(Waiting { process, before }));
        for wrong in ["", "12", "12,", ",3", "a,3", "12,-1"] {
            assert!(waiting(wrong).is_err(), "{wrong}");
        }
        // Nobody has that number here.
        assert!(waiting("1,0").unwrap().process != parent_id() || std::process::id() == 1);
    }
}
