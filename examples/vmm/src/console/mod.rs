// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's console: a serial line to the guest, a terminal, file or nothing to the user.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

pub mod escape;
pub mod input;
pub mod output;
pub mod patient;
pub mod pty;
pub mod serial;
pub mod terminal;
pub mod tty;

use crate::config::{self, Serial};
use crate::machine::stop::Stop;
use crate::output_file::{self, NotEmptied, ToEmpty};
use crate::snapshot::{SerialState, SnapshotError};
use crate::wake::Wake;
use escape::Escape;
use input::{Session, Typing};
use output::{Deadline, Output};
use patient::Patient;
use serial::SerialLine;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use terminal::RawTerminal;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The user's end of the serial line cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file for the guest's output.
    #[error("cannot write serial output to {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The terminal's mode cannot be changed.
    #[error("--serial tty: cannot take over the terminal: {0}")]
    Enter(io::Error),
    /// The file cannot be emptied.
    #[error(transparent)]
    Empty(#[from] NotEmptied),
    /// The host has no more file descriptors, or something of that kind.
    #[error("cannot create an event: {0}")]
    Event(io::Error),
}

/// The serial line and the user's end of it.
#[derive(Debug)]
pub struct Console {
    line: Arc<Mutex<SerialLine>>,
    interrupt: EventFd,
    room: Arc<Wake>,
    deadline: Arc<Deadline>,
    is_interactive: bool,
    /// The file, when the machine starts.
    to_empty: Option<ToEmpty>,
}

impl Console {
    /// The line that `serial` describes; nothing if there is none. A file is emptied or not, as `begun` says.
    ///
    /// What the guest prints waits for its reader while the machine of `stop` goes on.
    pub fn open(
        serial: &Serial,
        begun: config::Output,
        stop: &Stop,
    ) -> Result<Option<Self>, ConsoleError> {
        let mut to_empty = None;
        let to: Box<dyn Write + Send> = match serial {
            Serial::Off => return Ok(None),
            Serial::Null => Box::new(io::sink()),
            Serial::Tty => Box::new(Patient::new(io::stdout(), stop.clone())),
            Serial::File(path) => {
                let fail = |source| ConsoleError::File {
                    path: path.clone(),
                    source,
                };
                let opened = output_file::open("--serial file", path, begun);
                let (opened, when_it_starts) = opened.map_err(fail)?;
                to_empty = when_it_starts;
                Box::new(Patient::new(opened, stop.clone()))
            }
        };
        let deadline = Arc::new(Deadline::new().map_err(ConsoleError::Event)?);
        let output = Output::new(to, Some(Arc::clone(&deadline)));
        let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(ConsoleError::Event)?;
        let line = interrupt
            .try_clone()
            .and_then(|interrupt| SerialLine::new(interrupt, output))
            .map_err(ConsoleError::Event)?;
        Ok(Some(Console {
            room: line.room(),
            line: Arc::new(Mutex::new(line)),
            interrupt,
            deadline,
            is_interactive: *serial == Serial::Tty,
            to_empty,
        }))
    }

    /// The line, to be put on a bus.
    #[must_use]
    pub fn serial(&self) -> Arc<Mutex<SerialLine>> {
        Arc::clone(&self.line)
    }

    /// Signalled when the guest is to be interrupted.
    #[must_use]
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// The line's state.
    #[must_use]
    pub fn save(&self) -> SerialState {
        lock(&self.line).save()
    }

    /// Becomes the line that was saved.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Serial`].
    pub fn restore(&self, state: &SerialState) -> Result<(), SnapshotError> {
        lock(&self.line).restore(state)
    }

    /// Writes what of the output waits.
    pub fn drain(&self) {
        lock(&self.line).drain();
    }

    /// Takes over standard input, and the terminal if it is one, for as long as the session lives.
    pub fn enter(&self) -> Result<Session<'_>, ConsoleError> {
        if let Some(file) = &self.to_empty {
            file.empty()?;
        }
        let mut session = Session::new(&self.line, &self.deadline);
        if self.is_interactive {
            let terminal = RawTerminal::enter().map_err(ConsoleError::Enter)?;
            // Bytes that no user types are all the guest's.
            let escape = terminal.is_some().then(Escape::default);
            let typing = Typing::to_line(Arc::clone(&self.line), Arc::clone(&self.room), escape);
            session = session.with_input(typing, terminal);
        }
        Ok(session)
    }
}

fn lock(line: &Mutex<SerialLine>) -> MutexGuard<'_, SerialLine> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}
