// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A host that runs: follows its stream to the end, whichever end that is.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::stream::{Event, Stream};
use super::{CommandReport, HostError, HostReport, Watcher};
use crate::cpio;
use crate::process::{Deadline, Tethered};

/// How long a host that has said it is done may take to switch itself off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// How much of a log an error shows, in bytes.
const SHOWN: usize = 3000;

/// A host that runs.
pub(super) struct Run<'a> {
    qemu: Tethered,
    stream: Stream,
    deadline: Deadline,
    folder: &'a Path,
    names: Vec<String>,
    commands: Vec<CommandReport>,
    until_first: Duration,
    watcher: Option<Watcher>,
}

impl<'a> Run<'a> {
    /// `qemu` was just started, its logs are in `folder`, and its time has run since the start of
    /// `deadline`.
    pub(super) fn new(
        qemu: Tethered,
        token: &str,
        deadline: Deadline,
        folder: &'a Path,
        names: Vec<String>,
        watcher: Option<Watcher>,
    ) -> Self {
        Run {
            qemu,
            stream: Stream::new(token),
            deadline,
            folder,
            names,
            commands: Vec::new(),
            until_first: Duration::ZERO,
            watcher,
        }
    }

    /// Follows the host to its end.
    pub(super) fn finish(mut self) -> Result<HostReport> {
        self.follow()?;
        Ok(HostReport {
            files: files(&self.folder.join("files"))?,
            console: self.log("console"),
            until_first_command: self.until_first,
            commands: self.commands,
            total: self.deadline.elapsed(),
        })
    }

    fn follow(&mut self) -> Result<()> {
        let pieces = self.pieces()?;
        loop {
            let Some(left) = self.deadline.left() else {
                bail!(self.timed_out());
            };
            match pieces.recv_timeout(left) {
                Ok(bytes) => {
                    for event in self.stream.feed(&bytes) {
                        if self.take(event) {
                            // Only the power-off is left, and nothing depends on it.
                            self.qemu.wait(POWER_OFF);
                            return Ok(());
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => bail!(self.timed_out()),
                Err(RecvTimeoutError::Disconnected) => bail!(self.ended()),
            }
        }
    }

    /// What QEMU's standard output brings, read by a thread so that we can wait with a time-out.
    fn pieces(&mut self) -> Result<Receiver<Vec<u8>>> {
        let mut out = self.qemu.stdout().context("QEMU's output is not piped")?;
        let (send, pieces) = mpsc::channel();
        thread::Builder::new().spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = out.read(&mut buffer) {
                if send.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        })?;
        Ok(pieces)
    }

    /// Records an event; true if it was the last.
    fn take(&mut self, event: Event) -> bool {
        match event {
            Event::Begin(index) => {
                if self.commands.is_empty() {
                    self.until_first = self.deadline.elapsed();
                }
                self.commands.push(CommandReport {
                    command: self.names.get(index).cloned().unwrap_or_default(),
                    status: -1,
                    output: Vec::new(),
                });
            }
            Event::Output(bytes) => {
                if let Some(watcher) = &mut self.watcher {
                    watcher(&bytes);
                }
                if let Some(command) = self.commands.last_mut() {
                    command.output.extend(bytes);
                }
            }
            Event::End(_, status) => {
                if let Some(command) = self.commands.last_mut() {
                    command.status = status;
                }
            }
            Event::Done => return true,
        }
        false
    }

    fn timed_out(&self) -> HostError {
        if let Some(panicked) = self.panicked() {
            return panicked;
        }
        let output = self.commands.last().map(CommandReport::text);
        HostError::TimedOut {
            during: self.during(),
            seconds: self.deadline.patience().as_secs(),
            output: end(&output.unwrap_or_default()).to_owned(),
            console: end(&self.log("console")).to_owned(),
        }
    }

    fn ended(&mut self) -> HostError {
        let status = self.qemu.wait(POWER_OFF);
        if let Some(panicked) = self.panicked() {
            return panicked;
        }
        HostError::Ended {
            status: status.map_or("still running".to_owned(), |s| s.to_string()),
            during: self.during(),
            qemu: end(&self.log("qemu")).to_owned(),
            console: end(&self.log("console")).to_owned(),
        }
    }

    fn panicked(&self) -> Option<HostError> {
        let console = self.log("console");
        let (_, message) = console.split_once("Kernel panic - not syncing: ")?;
        Some(HostError::Panicked {
            message: message.lines().next().unwrap_or_default().to_owned(),
            console: end(&console).to_owned(),
        })
    }

    fn during(&self) -> String {
        match self.commands.last() {
            None => "booting".to_owned(),
            Some(last) => format!("`{}`", last.command),
        }
    }

    fn log(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The files that came back.
fn files(archive: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let archive = fs::read(archive).context("no files came back from the host")?;
    let entries = cpio::entries(&archive).context("the host's files came back damaged")?;
    Ok(entries
        .iter()
        .map(|entry| {
            let name = entry.name.trim_start_matches("./").to_owned();
            (name, entry.data.to_vec())
        })
        .collect())
}

/// The end of a text, cut at a character.
fn end(text: &str) -> &str {
    let mut from = text.len().saturating_sub(SHOWN);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}
