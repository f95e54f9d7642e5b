// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client's end of the socket: what we ask, and what the server asks.
//!
//! ```text
//!   vCPUs, main thread -- ask --> socket              wait for the answer, and no longer than so long
//!   the unit -- tell soon --> outbox --> socket       a thread of its own, or who speaks next; the unit waits for nobody
//!   another thread of its own <-- socket              answers go to who waits, requests for memory are fulfilled
//! ```
//!
//! The server is not believed, and not waited for without end: the first message that makes no sense, and the first
//! answer that does not come, end the connection for ever. Then everything here fails at once.

use super::dma::{Access, Astray, Dma};
use super::message::{Command, Header, MOST_DATA, Wanted, Words, command, receive, refusal, reply};
use super::outbox::{Kept, Outbox, Turn};
use super::version::Limits;
use hvkit_virtio_devices::patience::end_of;
use hvkit_virtio_devices::vhost_user::channel::Channel;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What was asked and is not to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The server says no.
    #[error("{command} was answered with error {error}")]
    Refused {
        /// What was asked.
        command: Command,
        /// The error number that it answered with.
        error: i32,
    },
    /// The server says what it was not asked.
    #[error("the answer to {0} makes no sense")]
    Senseless(Command),
    /// The connection has ended.
    #[error("{0}")]
    Gone(String),
}

impl From<CallError> for io::Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { error, .. } => io::Error::from_raw_os_error(error),
            error => io::Error::other(error),
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) payload: Vec<u8>,
    pub(super) files: Vec<OwnedFd>,
    refusal: Option<i32>,
    command: Command,
}

#[derive(Debug, Default)]
struct Calls {
    next: u16,
    /// What is waited for, and its answer once that is here.
    waiting: BTreeMap<u16, Option<Reply>>,
    /// Why nothing comes any more.
    gone: Option<String>,
}

/// A connection to a server.
#[derive(Debug)]
pub(super) struct Connection {
    /// What messages call it.
    name: String,
    channel: Channel,
    outbox: Outbox,
    calls: Mutex<Calls>,
    answered: Condvar,
    patience: Duration,
    /// Whether its end is said when it comes: else who asks last says so.
    in_use: AtomicBool,
    pub(super) limits: Limits,
    pub(super) dma: Dma,
}

impl Connection {
    /// One over `channel`, on which versions were told already. Nothing is heard before somebody [`listen`](Self::listen)s.
    pub(super) fn new(name: String, channel: Channel, limits: Limits, dma: Dma) -> Self {
        Connection {
            name,
            channel,
            outbox: Outbox::default(),
            calls: Mutex::default(),
            answered: Condvar::new(),
            patience: PATIENCE,
            in_use: AtomicBool::new(false),
            limits,
            dma,
        }
    }

    /// Waits so long for each answer, and no longer.
    #[cfg(test)]
    pub(super) fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(
        &self,
        what: Command,
        payload: &[u8],
        files: &[BorrowedFd<'_>],
    ) -> Result<Reply, CallError> {
        let end = end_of(self.patience);
        let id = {
            let mut calls = self.calls();
            let id = calls.free_id()?;
            calls.waiting.insert(id, None);
            id
        };
        self.send(&command(id, what, payload, Wanted::Reply), files);
        let mut calls = self.calls();
        loop {
            if let Some(Some(_)) = calls.waiting.get(&id) {
                // It was there a moment ago.
                let reply = calls.waiting.remove(&id).flatten();
                let reply = reply.ok_or(CallError::Senseless(what))?;
                drop(calls);
                return self.checked(what, reply);
            }
            if let Some(why) = &calls.gone {
                let why = why.clone();
                calls.waiting.remove(&id);
                return Err(CallError::Gone(why));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(calls);
                let seconds = self.patience.as_secs();
                self.give_up(&format!("it has not answered {what} for {seconds} s"));
                calls = self.calls();
                continue;
            }
            let waited = self.answered.wait_timeout(calls, left);
            calls = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn checked(&self, what: Command, reply: Reply) -> Result<Reply, CallError> {
        if reply.command != what {
            return Err(self.senseless(what));
        }
        match reply.refusal {
            Some(error) => Err(CallError::Refused {
                command: what,
                error,
            }),
            None => Ok(reply),
        }
    }

    /// Ends the connection, for what was answered to `what` makes no sense.
    pub(super) fn senseless(&self, what: Command) -> CallError {
        self.give_up(&format!("its answer to {what} makes no sense"));
        CallError::Senseless(what)
    }

    /// Tells what needs no answer. Messages arrive in the order in which they are sent.
    pub(super) fn tell(&self, what: Command, payload: &[u8]) -> Result<(), CallError> {
        let id = self.calls().free_id()?;
        self.send(&command(id, what, payload, Wanted::Nothing), &[]);
        Ok(())
    }

    /// Tells what needs no answer as soon as the server reads, and waits for nobody: for who holds a lock. Only if
    /// thousands of messages wait already does it wait for its turn.
    pub(super) fn tell_soon(&self, what: Command, payload: &[u8]) -> Result<(), CallError> {
        let id = self.calls().free_id()?;
        let message = command(id, what, payload, Wanted::Nothing);
        if self.outbox.leave(message) == Kept::Full {
            self.send(&command(id, what, payload, Wanted::Nothing), &[]);
        }
        Ok(())
    }

    /// Says what was left to be told, until the connection ends.
    pub(super) fn speak(&self) {
        while let Some(turn) = self.outbox.wait() {
            let sent = self.say_what_was_left(&turn, end_of(self.patience));
            drop(turn);
            self.said(sent);
        }
    }

    /// All of it within the time of one message: a server that reads a byte now and then is not waited for without end.
    fn say_what_was_left(&self, turn: &Turn<'_>, end: Instant) -> io::Result<()> {
        let mut left = turn.left();
        left.try_for_each(|message| self.channel.send(&message, &[], end))
    }

    fn send(&self, message: &[u8], files: &[BorrowedFd<'_>]) {
        let turn = self.outbox.turn();
        let end = end_of(self.patience);
        let sent = self.say_what_was_left(&turn, end);
        let sent = sent.and_then(|()| self.channel.send(message, files, end));
        drop(turn);
        self.said(sent);
    }

    fn said(&self, sent: io::Result<()>) {
        if let Err(error) = sent {
            self.give_up(&match error.kind() {
                ErrorKind::TimedOut => "it does not read what it is sent".to_owned(),
                _ => format!("it cannot be reached: {error}"),
            });
        }
    }

    /// From now on its end is said when it comes; or now, if it has come.
    pub(super) fn say_when_gone(&self) {
        let calls = self.calls();
        self.in_use.store(true, Ordering::Relaxed);
        if let Some(why) = &calls.gone {
            log::error!("the device {} is gone: {why}", self.name);
        }
    }

    /// Ends the connection, and says why if it had not ended before.
    fn give_up(&self, why: &str) {
        let mut calls = self.calls();
        if calls.gone.is_none() {
            if self.in_use.load(Ordering::Relaxed) {
                log::error!("the device {} is gone: {why}", self.name);
            }
            calls.gone = Some(why.to_owned());
            self.channel.end();
        }
        drop(calls);
        self.outbox.end();
        self.answered.notify_all();
    }

    /// Ends the connection because nobody needs it any more.
    pub(super) fn close(&self) {
        let mut calls = self.calls();
        calls
            .gone
            .get_or_insert_with(|| "it is not needed any more".to_owned());
        drop(calls);
        self.channel.end();
        self.outbox.end();
        self.answered.notify_all();
    }

    /// Whether it has ended.
    pub(super) fn is_gone(&self) -> bool {
        self.calls().gone.is_some()
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears the server until the connection ends.
    pub(super) fn listen(self: &Arc<Self>) {
        loop {
            let heard = self.channel.wait_for_more().and_then(|()| {
                let (header, payload, files) = receive(&self.channel, end_of(self.patience))?;
                if header.is_reply() {
                    self.answer(header, payload, files);
                } else {
                    self.fulfil(header, &payload);
                }
                Ok(())
            });
            if let Err(error) = heard {
                self.give_up(&match error.kind() {
                    ErrorKind::UnexpectedEof => "the other process has hung up".to_owned(),
                    ErrorKind::TimedOut => "it does not end what it has begun to say".to_owned(),
                    ErrorKind::InvalidData => "what it says makes no sense".to_owned(),
                    _ => format!("it cannot be heard: {error}"),
                });
                return;
            }
        }
    }

    /// Gives an answer to who waits for it; one that nobody waits for is dropped.
    fn answer(&self, header: Header, payload: Vec<u8>, files: Vec<OwnedFd>) {
        let mut calls = self.calls();
        if let Some(place @ None) = calls.waiting.get_mut(&header.id) {
            *place = Some(Reply {
                payload,
                files,
                refusal: header.refusal(),
                command: header.command,
            });
            self.answered.notify_all();
        }
    }

    /// Does what the server asks for: memory, and nothing else.
    fn fulfil(&self, header: Header, payload: &[u8]) {
        let mut words = Words(payload);
        let asked = words.long().zip(words.long());
        let (answer, astray) = match (header.command, asked) {
            (Command::DMA_READ | Command::DMA_WRITE, Some((address, count))) => {
                let access = match header.command {
                    Command::DMA_READ => Access::Read,
                    _ => Access::Write,
                };
                self.transfer(access, address, count, words.0)
            }
            (Command::DMA_READ | Command::DMA_WRITE, None) => (Err(libc::EINVAL), None),
            _ => (Err(libc::EOPNOTSUPP), None),
        };
        if header.wants_reply() {
            let message = match answer {
                Ok(data) => reply(header, &data),
                Err(error) => refusal(header, error),
            };
            self.send(&message, &[]);
        }
        // After the answer, for the server may be waited for by who holds what this needs.
        if let Some(astray) = astray {
            self.dma.report(astray);
        }
    }

    /// A transfer's answer: address, count, and what was read.
    fn transfer(
        &self,
        access: Access,
        address: u64,
        count: u64,
        data: &[u8],
    ) -> (Result<Vec<u8>, i32>, Option<Astray>) {
        if count > MOST_DATA.into() {
            return (Err(libc::E2BIG), None);
        }
        let mut answer = [address, count].map(u64::to_ne_bytes).concat();
        let done = match access {
            Access::Read => {
                // At most `MOST_DATA`.
                let mut read = vec![0; count as usize];
                let done = self.dma.read(address, &mut read);
                answer.extend(read);
                done
            }
            Access::Write if data.len() as u64 != count => return (Err(libc::EINVAL), None),
            Access::Write => self.dma.write(address, data),
        };
        match done {
            Ok(()) => (Ok(answer), None),
            Err(astray) => (Err(libc::EFAULT), Some(astray)),
        }
    }
}

impl Calls {
    /// An identifier that nobody waits for.
    fn free_id(&mut self) -> Result<u16, CallError> {
        if let Some(why) = &self.gone {
            return Err(CallError::Gone(why.clone()));
        }
        // Far fewer threads wait than there are identifiers.
        for _ in 0..=u16::MAX {
            self.next = self.next.wrapping_add(1);
            if !self.waiting.contains_key(&self.next) {
                return Ok(self.next);
            }
        }
        Err(CallError::Gone("too many wait for it".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory::GuestRam;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use vm_memory::GuestAddress;

    fn connect(patience: Duration) -> (Arc<Connection>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let limits = Limits {
            files: 1,
            data: 512,
        };
        let channel = Channel::new(ours).unwrap();
        let dma = Dma::new(&ram);
        let connection = Connection::new("it".to_owned(), channel, limits, dma);
        let connection = Arc::new(connection.with_patience(patience));
        let listener = Arc::clone(&connection);
        thread::spawn(move || listener.listen());
        let speaker = Arc::clone(&connection);
        thread::spawn(move || speaker.speak());
        (connection, theirs)
    }

    #[test]
    fn a_server_that_hangs_is_waited_for_once() {
        let (connection, _theirs) = connect(Duration::from_millis(50));
        let why = CallError::Gone("it has not answered DEVICE_RESET for 0 s".to_owned());
        for _ in 0..3 {
            let answer = connection.ask(Command::RESET, &[], &[]);
            assert_eq!(answer.unwrap_err(), why);
        }
        assert!(connection.is_gone());
        assert_eq!(connection.tell(Command::RESET, &[]).unwrap_err(), why);
    }

    #[test]
    fn a_server_that_reads_nothing_is_not_written_to_without_end() {
        let (connection, _theirs) = connect(Duration::from_millis(50));
        let payload = vec![0; 4096];
        // Far more than a socket holds.
        let refused = (0..10_000).any(|_| {
            let told = connection.tell(Command::REGION_WRITE, &payload);
            told.is_err()
        });
        assert!(refused && connection.is_gone());
    }

    #[test]
    fn who_holds_a_lock_does_not_wait_for_a_server_that_reads_nothing() {
        let (connection, theirs) = connect(PATIENCE);
        let payload = vec![0; 64];
        // More than a socket holds: what is sent, and waited for, would stand here for ten seconds.
        let begun = Instant::now();
        for _ in 0..10_000 {
            connection.tell_soon(Command::DMA_UNMAP, &payload).unwrap();
        }
        assert!(begun.elapsed() < PATIENCE / 2 && !connection.is_gone());
        // What is asked afterwards comes after it, and each of them once, with a number of its own.
        let asking = Arc::clone(&connection);
        let asked = thread::spawn(move || asking.ask(Command::RESET, &[], &[]));
        let channel = Channel::new(theirs).unwrap();
        let end = Instant::now() + PATIENCE;
        let mut last = 0;
        for _ in 0..10_000 {
            let (header, told, _) = receive(&channel, end).unwrap();
            assert_eq!(header.command, Command::DMA_UNMAP);
            assert_eq!((header.id, told.len()), (last + 1, 64));
            last = header.id;
        }
        let (header, ..) = receive(&channel, end).unwrap();
        assert_eq!(header.command, Command::RESET);
        channel.send(&reply(header, &[]), &[], end).unwrap();
        asked.join().unwrap().unwrap();
    }

    #[test]
    fn who_leaves_messages_without_end_is_told_of_the_end() {
        let (connection, _theirs) = connect(Duration::from_millis(50));
        let payload = vec![0; 64];
        let refused = (0..100_000).any(|_| {
            let told = connection.tell_soon(Command::DMA_UNMAP, &payload);
            told.is_err()
        });
        assert!(refused && connection.is_gone());
    }

    #[test]
    fn answers_that_nobody_waits_for_are_dropped() {
        let (connection, theirs) = connect(PATIENCE);
        let answering = thread::spawn(move || {
            let channel = Channel::new(theirs).unwrap();
            channel.wait_for_more().unwrap();
            let end = Instant::now() + PATIENCE;
            let (header, ..) = receive(&channel, end).unwrap();
            // Of another message, and then of this one.
            let mut other = reply(header, &[1]);
            other[0] ^= 0x55;
            for message in [other, reply(header, &[2])] {
                channel.send(&message, &[], end).unwrap();
            }
            channel
        });
        let answer = connection.ask(Command::GET_INFO, &[], &[]).unwrap();
        assert_eq!(answer.payload, [2]);
        drop(answering.join().unwrap());
    }
}
