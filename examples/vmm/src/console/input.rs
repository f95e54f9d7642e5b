// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The main thread while the guest runs: it waits for the machine's end, for signals, for what the
//! user types, for another size of the terminal and for prompts to print.
//!
//! `poll` and not `epoll`, because standard input may be a file.

use super::escape::{Escape, Typed};
use super::output::Deadline;
use super::serial::SerialLine;
use super::terminal::RawTerminal;
use super::tty::TtyPort;
use crate::machine::stop::{Stop, StopReason};
use crate::wake::Wake;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::stdio::stdin;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGWINCH};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::signal::unblock_signal;

/// Signals that ask for an orderly end.
const ENDING: [i32; 4] = [SIGTERM, SIGINT, SIGHUP, SIGQUIT];

/// The signals that end the VMM, and the one that says that the terminal has another size, from the moment this exists.
#[derive(Debug)]
pub struct Signals {
    woken: UnixStream,
    wake: UnixStream,
    resized: Arc<AtomicBool>,
    save: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers; those that end the VMM are noted in `stop`.
    pub fn catch(stop: &Stop) -> io::Result<Self> {
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        for signal in ENDING {
            // Before the wake-up, so that whoever is woken knows.
            let number = usize::try_from(signal).unwrap_or_default();
            signal_hook::flag::register_usize(signal, Arc::clone(stop.arrived()), number)?;
            signal_hook::low_level::pipe::register(signal, wake.try_clone()?)?;
        }
        let resized = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGWINCH, Arc::clone(&resized))?;
        signal_hook::low_level::pipe::register(SIGWINCH, wake.try_clone()?)?;
        Ok(Signals {
            woken,
            wake,
            resized,
            save: Arc::default(),
        })
    }

    /// Catches SIGUSR1, too, which asks that the machine be saved.
    pub fn catch_save(&mut self) -> io::Result<()> {
        signal_hook::flag::register(SIGUSR1, Arc::clone(&self.save))?;
        signal_hook::low_level::pipe::register(SIGUSR1, self.wake.try_clone()?)?;
        // One that came before this waits, if whoever made the machine had it wait.
        unblock_signal(SIGUSR1).map_err(|error| io::Error::other(error.to_string()))
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

    /// Whether the terminal has changed its size since this was asked last.
    fn take_resized(&self) -> bool {
        self.resized.swap(false, Ordering::AcqRel)
    }
}

/// Bytes that are read at once.
const READ: usize = 64;

/// What of the guest's takes the input.
#[derive(Debug)]
enum Taker {
    /// The serial line, and what is signalled when it can take more.
    Line(Arc<Mutex<SerialLine>>, Arc<Wake>),
    /// A console's port behind a socket, and what the socket did not take.
    Port(UnixStream, Vec<u8>),
}

impl Taker {
    /// Bytes that it can take now.
    fn capacity(&self) -> usize {
        match self {
            Taker::Line(line, _) => lock(line).capacity(),
            Taker::Port(_, waiting) if waiting.is_empty() => READ + 1,
            Taker::Port(..) => 0,
        }
    }

    /// Ready when it can take more, after it could not.
    fn room(&self) -> Source<'_> {
        match self {
            Taker::Line(_, room) => readable(room),
            Taker::Port(port, _) => Some((port.as_fd(), PollFlags::OUT)),
        }
    }

    /// What [`room`](Self::room) said is done.
    fn make_room(&mut self) {
        match self {
            Taker::Line(_, room) => {
                room.clear();
            }
            Taker::Port(..) => self.give(&[]),
        }
    }

    fn give(&mut self, input: &[u8]) {
        match self {
            Taker::Line(line, _) => lock(line).type_in(input),
            Taker::Port(port, waiting) => {
                waiting.extend_from_slice(input);
                match rustix::io::write(&*port, waiting) {
                    Ok(count) => drop(waiting.drain(..count)),
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                    // Nobody reads it any more.
                    Err(_) => waiting.clear(),
                }
            }
        }
    }
}

/// The user's input on its way to the guest.
#[derive(Debug)]
pub struct Typing {
    to: Taker,
    escape: Option<Escape>,
    ended: bool,
}

impl Typing {
    /// Standard input for the serial line, with an escape key if it is a terminal. `room` is signalled when the
    /// line can take more.
    #[must_use]
    pub fn to_line(line: Arc<Mutex<SerialLine>>, room: Arc<Wake>, escape: Option<Escape>) -> Self {
        Typing {
            to: Taker::Line(line, room),
            escape,
            ended: false,
        }
    }

    /// The same for a console's port, the other end of `port`, which does not wait.
    #[must_use]
    pub fn to_port(port: UnixStream, escape: Option<Escape>) -> Self {
        Typing {
            to: Taker::Port(port, Vec::new()),
            escape,
            ended: false,
        }
    }

    /// Takes what can be read without waiting, and no more than the guest can take.
    fn take(&mut self) -> io::Result<Typed> {
        let mut bytes = [0; READ];
        // An escape pair that turns out not to be one grows by the byte that was held back.
        let room = self.to.capacity().saturating_sub(1).clamp(1, bytes.len());
        let room = bytes.get_mut(..room).unwrap_or_default();
        let count = rustix::io::read(stdin(), room)?;
        if count == 0 {
            self.ended = true;
        }
        let typed = bytes.get(..count).unwrap_or_default();
        let Some(escape) = &mut self.escape else {
            self.to.give(typed);
            return Ok(Typed::Input);
        };
        let mut input = Vec::with_capacity(count.saturating_add(1));
        let asked = escape.feed(typed, &mut input);
        self.to.give(&input);
        Ok(asked)
    }
}

/// The guest's consoles while the machine runs: what is printed, and what is typed.
#[derive(Debug, Default)]
pub struct Session<'a> {
    line: Option<(&'a Mutex<SerialLine>, &'a Deadline)>,
    typing: Option<Typing>,
    /// Who wants to know the terminal's size.
    size: Option<&'a TtyPort>,
    /// Restores the terminal when the session ends, however it ends.
    _terminal: Option<RawTerminal>,
}

impl<'a> Session<'a> {
    /// The serial line's output only.
    #[must_use]
    pub fn new(line: &'a Mutex<SerialLine>, deadline: &'a Deadline) -> Self {
        Session {
            line: Some((line, deadline)),
            ..Session::default()
        }
    }

    /// With input, from a terminal that was taken over or from what else standard input is.
    #[must_use]
    pub fn with_input(mut self, typing: Typing, terminal: Option<RawTerminal>) -> Self {
        self.typing = Some(typing);
        self._terminal = terminal;
        self
    }

    /// Tells `port` of other sizes of the terminal.
    #[must_use]
    pub fn with_size(mut self, port: &'a TtyPort) -> Self {
        self.size = Some(port);
        self
    }

    /// What to wait for: the printing deadline, and input or room for it.
    fn sources(&self) -> [Source<'_>; 3] {
        let (input, room) = match &self.typing {
            Some(typing) => match typing.to.capacity() {
                0 => (None, typing.to.room()),
                _ if typing.ended => (None, None),
                _ => (Some((stdin(), PollFlags::IN)), None),
            },
            None => (None, None),
        };
        let deadline = self.line.and_then(|(_, deadline)| readable(deadline));
        [deadline, input, room]
    }

    /// Does what the sources that are ready ask for.
    fn serve(&mut self, [deadline, input, room]: [bool; 3]) -> Typed {
        if deadline && let Some((line, deadline)) = self.line {
            deadline.passed();
            lock(line).drain();
        }
        let Some(typing) = &mut self.typing else {
            return Typed::Input;
        };
        if room {
            typing.to.make_room();
        }
        if !input {
            return Typed::Input;
        }
        match typing.take() {
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

/// Something to wait for, and what for.
type Source<'a> = Option<(BorrowedFd<'a>, PollFlags)>;

fn readable(source: &impl AsFd) -> Source<'_> {
    Some((source.as_fd(), PollFlags::IN))
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
    /// Give devices back to the host.
    Wanted,
}

/// Waits until the machine is asked to stop, by anybody, and asks it itself for signals and the
/// escape key; or until it is to be saved, or the host wants what `wanted` is readable for.
pub fn wait(
    stop: &Stop,
    signals: &Signals,
    wanted: &impl AsFd,
    mut session: Option<&mut Session<'_>>,
) -> io::Result<Waited> {
    while !stop.is_asked() {
        let sources = session.as_deref().map(Session::sources);
        let [deadline, input, room] = sources.unwrap_or([None; 3]);
        let [_, signalled, is_wanted, deadline, input, room] = ready([
            readable(stop.event()),
            readable(&signals.woken),
            readable(wanted),
            deadline,
            input,
            room,
        ])?;
        if signalled {
            // Before what it asks for is looked at, so that none is missed.
            signals.seen();
        }
        if signals.take_resized()
            && let Some(port) = session.as_deref().and_then(|session| session.size)
        {
            port.resize();
        }
        if let Some(signal) = stop.signal() {
            stop.ask(StopReason::Signal(signal));
        } else if signals.asked_to_save() {
            return Ok(Waited::Save);
        }
        if is_wanted {
            return Ok(Waited::Wanted);
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
fn ready<const N: usize>(sources: [Source<'_>; N]) -> io::Result<[bool; N]> {
    let mut fds: Vec<PollFd<'_>> = sources
        .iter()
        .flatten()
        .map(|(fd, what)| PollFd::from_borrowed_fd(*fd, *what))
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
        let ready = ready([readable(&a), None, readable(&b)]).unwrap();
        assert_eq!(ready, [false, false, true]);
    }

    #[test]
    fn a_stop_asked_elsewhere_ends_the_wait() {
        let stop = Stop::new().unwrap();
        let signals = Signals::catch(&stop).unwrap();
        let elsewhere = stop.clone();
        let guest = thread::spawn(move || elsewhere.ask(StopReason::PowerOff));
        let wanted = Wake::new().unwrap();
        assert_eq!(wait(&stop, &signals, &wanted, None).unwrap(), Waited::Stop);
        guest.join().unwrap();
        assert_eq!(stop.reason(), Some(&StopReason::PowerOff));
    }
}
