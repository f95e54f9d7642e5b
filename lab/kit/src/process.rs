// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A child process that never outlives us: killed when dropped, and by the kernel if we die first.

use std::ffi::OsStr;
use std::process::{Child, ChildStdout, Command, ExitStatus};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often the keeper looks whether the child has ended.
const POLL: Duration = Duration::from_millis(5);

/// A command that starts `program` so that it dies with the thread that started it.
pub fn tether(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A running child, started from a command that [`tether`] made.
///
/// The kernel's "parent death signal" is about the *thread* that started the child, so a thread of
/// its own keeps it, and this handle may move between threads freely.
#[derive(Debug)]
pub struct Tethered {
    end: Sender<()>,
    status: Receiver<ExitStatus>,
    ended: Option<ExitStatus>,
    keeper: Option<JoinHandle<()>>,
    stdout: Option<ChildStdout>,
}

impl Tethered {
    /// Starts `command`.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let (end, ending) = mpsc::channel();
        let (report, status) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let keeper = thread::Builder::new().spawn(move || match command.spawn() {
            Ok(mut child) => {
                // The command holds our ends of the child's pipes: with them open, no reader of
                // the child's output would see its end.
                drop(command);
                let _ = started.send(Ok(child.stdout.take()));
                keep(child, &ending, &report);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        })?;
        let stdout = start
            .recv()
            .context("the keeper of a child process died")?
            .context("cannot start setpriv (Debian package util-linux)")?;
        Ok(Tethered {
            end,
            status,
            ended: None,
            keeper: Some(keeper),
            stdout,
        })
    }

    /// The child's output, if the command piped it; once.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// How the child ended, if it does within `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.status.recv_timeout(patience).ok();
        }
        self.ended
    }

    /// Ends the child now.
    pub fn kill(&mut self) {
        let _ = self.end.send(());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

impl Drop for Tethered {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until the child ends or must be ended, then reaps it.
fn keep(mut child: Child, ending: &Receiver<()>, report: &Sender<ExitStatus>) {
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => {
                let _ = report.send(status);
                return;
            }
            Err(_) => return,
        }
        match ending.recv_timeout(POLL) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                if let Ok(status) = child.wait() {
                    let _ = report.send(status);
                }
                return;
            }
        }
    }
}

/// A point in time after which patience has run out.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    start: Instant,
    patience: Duration,
}

impl Deadline {
    /// `patience` from now.
    pub fn after(patience: Duration) -> Self {
        Deadline {
            start: Instant::now(),
            patience,
        }
    }

    /// The patience there was at the start.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// What is left of the patience; `None` once it has run out.
    pub fn left(&self) -> Option<Duration> {
        self.patience
            .checked_sub(self.start.elapsed())
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn an_end_is_reported_with_its_status() {
        let mut command = tether("sh");
        command.args(["-c", "exit 7"]);
        let mut child = Tethered::spawn(command).unwrap();
        let status = child.wait(Duration::from_secs(20)).unwrap();
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn a_child_that_goes_on_is_killed() {
        let mut command = tether("sleep");
        command.arg("1000");
        let mut child = Tethered::spawn(command).unwrap();
        assert_eq!(child.wait(Duration::from_millis(1)), None);
        child.kill();
        let status = child.wait(Duration::from_secs(20)).unwrap();
        assert_eq!(status.signal(), Some(9));
    }
}
