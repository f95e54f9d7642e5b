// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The main thread while the guest runs: it waits for the machine's end, for signals, for what the
//! user types and for prompts to print.
//!
//! `poll` and not `epoll`, because standard input may be a file.

use super::escape::{Escape, Typed};
use super::output::Deadline;
use super::serial::SerialLine;
use super::terminal::RawTerminal;
use crate::machine::stop::{Stop, StopReason};
use crate::wake::Wake;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::stdio::stdin;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Signals that ask for an orderly end.
const ENDING: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];

/// The signals that end the VMM, from the moment this exists.
#[derive(Debug)]
pub struct Signals {
    woken: UnixStream,
    wake: UnixStream,
    which: Arc<AtomicUsize>,
    save: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers.
    pub fn catch() -> io::Result<Self> {
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let which = Arc::new(AtomicUsize::new(0));
        for signal in ENDING {
            // Before the wake-up, so that whoever is woken knows.
            let number = usize::try_from(signal).unwrap_or_default();
            signal_hook::flag::register_usize(signal, Arc::clone(&which), number)?;
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        Ok(Signals {
            woken,
            wake,
            which,
            save: Arc::default(),
        })
    }

    /// Catches SIGUSR1, too, which asks that the machine be saved.
    pub fn catch_save(&mut self) -> io::Result<()> {
        signal_hook::flag::register(SIGUSR1, Arc::clone(&self.save))?;
        signal_hook::low_level::pipe::register(SIGUSR1, self.wake.try_clone()?)?;
        Ok(())
    }

    /// Whether somebody asked that the machine be saved; from now on nobody did.
    fn asked_to_save(&self) -> bool {
        self.save.swap(false, Ordering::AcqRel)
    }

    /// Forgets that a signal came: what it asks for is kept apart.
    fn seen(&self) {
        // Not by the socket's own calls, which the main thread may not make.
        while matches!(rustix::io::read(&self.woken, &mut [0; 16]), Ok(1..)) {}
    }

    /// The last signal that arrived.
    fn arrived(&self) -> Option<i32> {
        i32::try_from(self.which.load(Ordering::Acquire))
            .ok()
            .filter(|&signal| signal != 0)
    }
}

/// The user's input on its way to the guest.
#[derive(Debug)]
pub struct Typing {
    room: Arc<Wake>,
    escape: Option<Escape>,
    ended: bool,
}

impl Typing {
    /// Standard input, with an escape key if it is a terminal. `room` is signalled when the line
    /// can take more.
    #[must_use]
    pub fn new(room: Arc<Wake>, escape: Option<Escape>) -> Self {
        Typing {
            room,
            escape,
            ended: false,
        }
    }

    /// Takes what can be read without waiting, and no more than `line` can take.
    fn take(&mut self, line: &mut SerialLine) -> io::Result<Typed> {
        let mut bytes = [0; 64];
        // An escape pair that turns out not to be one grows by the byte that was held back.
        let room = line.capacity().saturating_sub(1).clamp(1, bytes.len());
        let count = rustix::io::read(stdin(), &mut bytes[..room])?;
        if count == 0 {
            self.ended = true;
        }
        let typed = &bytes[..count];
        let Some(escape) = &mut self.escape else {
            line.type_in(typed);
            return Ok(Typed::Input);
        };
        let mut input = Vec::with_capacity(count + 1);
        let asked = escape.feed(typed, &mut input);
        line.type_in(&input);
        Ok(asked)
    }
}

/// The serial line while the machine runs: what is printed, and what is typed.
#[derive(Debug)]
pub struct Session<'a> {
    line: &'a Mutex<SerialLine>,
    deadline: &'a Deadline,
    typing: Option<Typing>,
    /// Restores the terminal when the session ends, however it ends.
    _terminal: Option<RawTerminal>,
}

impl<'a> Session<'a> {
    /// Output only.
    #[must_use]
    pub fn new(line: &'a Mutex<SerialLine>, deadline: &'a Deadline) -> Self {
        Session {
            line,
            deadline,
            typing: None,
            _terminal: None,
        }
    }

    /// With input, from a terminal that was taken over or from what else standard input is.
    #[must_use]
    pub fn with_input(mut self, typing: Typing, terminal: Option<RawTerminal>) -> Self {
        self.typing = Some(typing);
        self._terminal = terminal;
        self
    }

    /// What to wait for: the printing deadline, and input or room for it.
    fn sources(&self) -> [Option<BorrowedFd<'_>>; 3] {
        let (input, room) = match &self.typing {
            Some(typing) if !typing.ended => match lock(self.line).capacity() {
                0 => (None, Some(typing.room.as_fd())),
                _ => (Some(stdin()), None),
            },
            _ => (None, None),
        };
        [Some(self.deadline.as_fd()), input, room]
    }

    /// Does what the sources that are ready ask for.
    fn serve(&mut self, [deadline, input, room]: [bool; 3]) -> Typed {
        if deadline {
            self.deadline.passed();
            lock(self.line).drain();
        }
        let Some(typing) = &mut self.typing else {
            return Typed::Input;
        };
        if room {
            typing.room.clear();
        }
        if !input {
            return Typed::Input;
        }
        match typing.take(&mut lock(self.line)) {
            Ok(typed) => typed,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Typed::Input,
            Err(error) => {
                log::warn!("standard input: {error}; the guest gets no more of it");
                typing.ended = true;
                Typed::Input
            }
        }
    }
}

fn lock(line: &Mutex<SerialLine>) -> MutexGuard<'_, SerialLine> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the main thread has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// End the machine, which was asked to stop.
    Stop,
    /// Save it.
    Save,
}

/// Waits until the machine is asked to stop, by anybody, and asks it itself for signals and the
/// escape key; or until it is to be saved.
pub fn wait(
    stop: &Stop,
    signals: &Signals,
    mut session: Option<&mut Session<'_>>,
) -> io::Result<Waited> {
    while !stop.is_asked() {
        let sources = session.as_deref().map(Session::sources);
        let [deadline, input, room] = sources.unwrap_or([None; 3]);
        let [_, signalled, deadline, input, room] = ready([
            Some(stop.event().as_fd()),
            Some(signals.woken.as_fd()),
            deadline,
            input,
            room,
        ])?;
        if signalled {
            // Before what it asks for is looked at, so that none is missed.
            signals.seen();
        }
        if let Some(signal) = signals.arrived() {
            stop.ask(StopReason::Signal(signal));
        } else if signals.asked_to_save() {
            return Ok(Waited::Save);
        }
        if let Some(session) = &mut session
            && session.serve([deadline, input, room]) == Typed::Quit
        {
            stop.ask(StopReason::Quit);
        }
    }
    Ok(Waited::Stop)
}

/// Waits for any of `sources`; which are ready, in their order.
fn ready<const N: usize>(sources: [Option<BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
    let mut fds: Vec<PollFd<'_>> = sources
        .iter()
        .flatten()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    match poll(&mut fds, None) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok([false; N]),
        Err(error) => return Err(error.into()),
    }
    let mut answers = fds.iter().map(|fd| !fd.revents().is_empty());
    Ok(sources.map(|source| source.is_some() && answers.next() == Some(true)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn readiness_is_told_of_the_right_source() {
        let (a, b) = (Wake::new().unwrap(), Wake::new().unwrap());
        b.signal();
        let ready = ready([Some(a.as_fd()), None, Some(b.as_fd())]).unwrap();
        assert_eq!(ready, [false, false, true]);
    }

    #[test]
    fn a_stop_asked_elsewhere_ends_the_wait() {
        let stop = Stop::new().unwrap();
        let signals = Signals::catch().unwrap();
        let elsewhere = stop.clone();
        let guest = thread::spawn(move || elsewhere.ask(StopReason::PowerOff));
        assert_eq!(wait(&stop, &signals, None).unwrap(), Waited::Stop);
        guest.join().unwrap();
        assert_eq!(stop.reason(), Some(&StopReason::PowerOff));
    }
}
