// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The main thread while the guest runs: it waits for the machine's end, for signals, for what the
//! user types and for prompts to print.
//!
//! `poll` and not `epoll`, because standard input may be a file.

use super::escape::{Escape, Typed};
use super::output::Deadline;
use super::serial::SerialLine;
use crate::machine::stop::{Stop, StopReason};
use crate::wake::Wake;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::stdio::stdin;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Signals that ask for an orderly end.
const ENDING: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];

/// The signals that end the VMM, from the moment this exists.
#[derive(Debug)]
pub struct Signals {
    woken: UnixStream,
    which: Arc<AtomicUsize>,
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
        Ok(Signals { woken, which })
    }

    /// The last signal that arrived.
    fn arrived(&self) -> Option<i32> {
        i32::try_from(self.which.load(Ordering::Acquire))
            .ok()
            .filter(|&signal| signal != 0)
    }
}

/// What the user types goes where.
#[derive(Debug)]
pub struct Typing {
    serial: Arc<Mutex<SerialLine>>,
    room: Arc<Wake>,
    escape: Option<Escape>,
    ended: bool,
}

impl Typing {
    /// Standard input goes to `serial`; with an escape key if it is a terminal.
    #[must_use]
    pub fn new(serial: Arc<Mutex<SerialLine>>, escape: Option<Escape>) -> Self {
        let room = lock(&serial).room();
        Typing {
            serial,
            room,
            escape,
            ended: false,
        }
    }

    /// Whether the guest's line can take input, which may still come.
    fn wants_input(&self) -> bool {
        !self.ended && lock(&self.serial).capacity() > 0
    }

    /// Takes what can be read without waiting, and no more than the line can take.
    fn take(&mut self) -> io::Result<Typed> {
        let mut line = lock(&self.serial);
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

fn lock(serial: &Mutex<SerialLine>) -> std::sync::MutexGuard<'_, SerialLine> {
    serial.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until the machine is asked to stop, by anybody, and asks it itself for signals and the
/// escape key.
pub fn wait_for_stop(
    stop: &Stop,
    signals: &Signals,
    mut typing: Option<Typing>,
    printing: Option<(&Mutex<SerialLine>, &Deadline)>,
) -> io::Result<()> {
    while !stop.is_asked() {
        let ready = {
            let never = stop.event().as_fd();
            let (input, room) = match &typing {
                Some(typing) if typing.wants_input() => (Some(stdin()), None),
                Some(typing) if !typing.ended => (None, Some(typing.room.as_fd())),
                _ => (None, None),
            };
            let sources: [Option<BorrowedFd<'_>>; 5] = [
                Some(never),
                Some(signals.woken.as_fd()),
                printing.map(|(_, deadline)| deadline.as_fd()),
                input,
                room,
            ];
            wait(sources)?
        };
        let [_, signalled, deadline, input, room] = ready;
        if signalled && let Some(signal) = signals.arrived() {
            stop.ask(StopReason::Signal(signal));
        }
        if deadline && let Some((serial, deadline)) = printing {
            deadline.passed();
            lock(serial).drain();
        }
        if let Some(typing) = &mut typing {
            if room {
                typing.room.clear();
            }
            if input {
                match typing.take() {
                    Ok(Typed::Quit) => stop.ask(StopReason::Quit),
                    Ok(Typed::Input) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        log::warn!("standard input: {error}; the guest gets no more of it");
                        typing.ended = true;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Waits for any of `sources`; which are ready, in their order.
fn wait<const N: usize>(sources: [Option<BorrowedFd<'_>>; N]) -> io::Result<[bool; N]> {
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
        let ready = wait([Some(a.as_fd()), None, Some(b.as_fd())]).unwrap();
        assert_eq!(ready, [false, false, true]);
    }

    #[test]
    fn a_stop_asked_elsewhere_ends_the_wait() {
        let stop = Stop::new().unwrap();
        let signals = Signals::catch().unwrap();
        let elsewhere = stop.clone();
        let guest = thread::spawn(move || elsewhere.ask(StopReason::PowerOff));
        wait_for_stop(&stop, &signals, None, None).unwrap();
        guest.join().unwrap();
        assert_eq!(stop.reason(), Some(&StopReason::PowerOff));
    }
}
