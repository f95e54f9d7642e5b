// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The paravirtual console on the user's terminal.
//!
//! ```text
//!   standard input --> main thread: escape key --> pair of sockets --> the console's port --> guest
//!   standard output <--------------------------------------------- the console's port <-- guest
//!   SIGWINCH --> main thread: the terminal's size --> guest
//! ```

use super::escape::Escape;
use super::input::{Session, Typing};
use super::patient::Patient;
use super::terminal::RawTerminal;
use crate::machine::stop::Stop;
use hvkit_virtio_devices::console::{Port, Size, Terminal};
use rustix::stdio::stdout;
use rustix::termios::tcgetwinsize;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

/// The user's end of a paravirtual console.
#[derive(Debug)]
pub struct TtyPort {
    /// What is typed, from this end to the port's.
    keys: UnixStream,
    port: UnixStream,
    guest: OnceLock<Terminal>,
    stop: Stop,
}

impl TtyPort {
    /// An end that no console has yet, of the machine of `stop`.
    pub fn open(stop: Stop) -> io::Result<Self> {
        let (keys, port) = UnixStream::pair()?;
        keys.set_nonblocking(true)?;
        port.set_nonblocking(true)?;
        Ok(TtyPort {
            keys,
            port,
            guest: OnceLock::new(),
            stop,
        })
    }

    /// The console's port `name`: standard output, and what is typed.
    pub fn port(&self, name: &str) -> io::Result<Port> {
        let output = Patient::new(io::stdout(), self.stop.clone());
        Ok(Port::new(name, output).with_input(self.port.try_clone()?))
    }

    /// Has the guest's `terminal` be as large as the user's from now on.
    pub fn follow(&self, terminal: Terminal) {
        // A machine has one such console, and another would keep the size that it has.
        let _ = self.guest.set(terminal);
    }

    /// Tells the guest how large the user's terminal is; nothing if standard output is none.
    pub fn resize(&self) {
        if let (Some(guest), Ok(size)) = (self.guest.get(), tcgetwinsize(stdout())) {
            guest.resize(Size {
                columns: size.ws_col,
                rows: size.ws_row,
            });
        }
    }

    /// Takes over standard input, and the terminal if it is one, beside what `session` does.
    pub fn enter<'a>(&'a self, session: Option<Session<'a>>) -> io::Result<Session<'a>> {
        let terminal = RawTerminal::enter()?;
        // Bytes that no user types are all the guest's.
        let escape = terminal.is_some().then(Escape::default);
        let typing = Typing::to_port(self.keys.try_clone()?, escape);
        self.resize();
        let session = session.unwrap_or_default().with_input(typing, terminal);
        Ok(session.with_size(self))
    }
}
