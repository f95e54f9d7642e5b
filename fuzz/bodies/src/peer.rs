// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other end of a socket by which a device is served: its messages, all sent before anybody listens, and the memory that it
//! gives away.

use std::cell::Cell;
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use hvkit_virtio_devices::vhost_user::channel::{Channel, MOST_FILES};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes of the memory that is given away, in whole or in part.
pub(crate) const MEMORY: u64 = 0x1_0000;
/// No honest piece of it goes on beyond this: nobody may write there.
pub(crate) const GIVEN: u64 = 0xc000;
/// What is there.
const OURS: u8 = 0xa7;

/// A file that goes with a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Beside {
    /// The memory.
    Memory,
    /// An event that has happened.
    Event,
    /// A socket whose other end is gone.
    Socket,
}

/// One that says everything, and then goes.
pub(crate) struct Peer {
    socket: UnixStream,
    channel: Channel,
    memory: File,
    /// The socket took no more: what would come after is not said.
    full: Cell<bool>,
    /// Hears the answers while they are given, so that nobody waits for room for them.
    hears: JoinHandle<Vec<u8>>,
}

impl Peer {
    /// A peer, and the end of the connection that is for who serves it. `words` are what its memory has: where, and what.
    pub(crate) fn new(words: &[(u16, u64)]) -> (Self, UnixStream) {
        let (socket, served) = UnixStream::pair().expect("a pair of sockets");
        let channel = socket.try_clone().and_then(Channel::new);
        let memory = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a file");
        let memory = File::from(memory);
        let beyond = [OURS; (MEMORY - GIVEN) as usize];
        memory.write_all_at(&beyond, GIVEN).expect("a file");
        for (at, word) in words {
            let at = u64::from(*at) % (GIVEN - 8);
            memory
                .write_all_at(&word.to_le_bytes(), at)
                .expect("a file");
        }
        let mut heard = socket.try_clone().expect("a socket");
        let channel = channel.expect("a socket");
        let peer = Self {
            socket,
            channel,
            memory,
            full: Cell::new(false),
            hears: thread::spawn(move || hear(&mut heard)),
        };
        (peer, served)
    }

    /// Says `message`, with files, as long as there is room for more.
    pub(crate) fn say(&self, message: &[u8], beside: &[Beside]) {
        let files: Vec<OwnedFd> = beside
            .iter()
            .take(MOST_FILES)
            .map(|kind| self.file(*kind))
            .collect();
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        if !self.full.get() {
            let sent = self.channel.send(message, &files, Instant::now());
            self.full.set(sent.is_err());
        }
    }

    fn file(&self, kind: Beside) -> OwnedFd {
        match kind {
            Beside::Memory => self.memory.try_clone().expect("a file").into(),
            Beside::Event => eventfd(1, EventfdFlags::NONBLOCK).expect("an event"),
            Beside::Socket => UnixStream::pair().expect("a pair of sockets").0.into(),
        }
    }

    /// Has said everything.
    pub(crate) fn end(&self) {
        self.socket.shutdown(Shutdown::Write).expect("a socket");
    }

    /// What was answered. Nobody serves any more, and nobody wrote what was not given away.
    pub(crate) fn answers(self) -> Vec<u8> {
        let mut beyond = [0; (MEMORY - GIVEN) as usize];
        self.memory
            .read_exact_at(&mut beyond, GIVEN)
            .expect("as long as it was");
        assert!(
            beyond == [OURS; (MEMORY - GIVEN) as usize],
            "memory of others was written"
        );
        self.hears.join().expect("no panic of ours")
    }
}

/// All that is said until the other end is gone.
fn hear(socket: &mut UnixStream) -> Vec<u8> {
    let (mut answers, mut some) = (Vec::new(), [0; 4096]);
    loop {
        let waited = poll(&mut [PollFd::new(&*socket, PollFlags::IN)], None);
        match waited
            .map_err(Error::from)
            .and_then(|_| socket.read(&mut some))
        {
            Ok(0) => return answers,
            Ok(count) => answers.extend(&some[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // If something of ours was not read, that is told as an error, after all that was answered.
            Err(_) => return answers,
        }
    }
}

/// A message that came: its header's words, what follows, and files.
pub(crate) type Heard<const WORDS: usize> = ([u32; WORDS], Vec<u8>, Vec<OwnedFd>);

/// The next message on `channel`, whose header has so many words, of which the one at `size` counts the bytes that follow and
/// `with` more; nothing at the end.
pub(crate) fn next<const WORDS: usize>(
    channel: &Channel,
    (size, with): (usize, usize),
    patience: Duration,
) -> Option<Heard<WORDS>> {
    channel.wait_for_more().ok()?;
    let end = Instant::now() + patience;
    let mut files = Vec::new();
    let mut words = [0; WORDS];
    for word in &mut words {
        let mut bytes = [0; 4];
        channel.receive(&mut bytes, &mut files, end).ok()?;
        *word = u32::from_ne_bytes(bytes);
    }
    let mut payload = vec![0; (words[size] as usize).checked_sub(with)?];
    channel.receive(&mut payload, &mut files, end).ok()?;
    Some((words, payload, files))
}
