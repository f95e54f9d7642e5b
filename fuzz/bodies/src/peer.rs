// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other end of a socket by which a device is served: all of its messages, sent before anybody listens, and the memory that it
//! gives away.

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use hvkit_virtio_devices::vhost_user::channel::{Channel, MOST_FILES};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};

/// Bytes of the memory that is given away, in whole or in part.
pub(crate) const MEMORY: u64 = 0x1_0000;
/// No honest piece of it goes on beyond this: nobody may write there.
pub(crate) const GIVEN: u64 = 0xc000;
/// What is there.
const OURS: u8 = 0xa7;
/// How long a message may take into an empty socket.
const PATIENCE: Duration = Duration::from_secs(10);

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
        let peer = Self {
            socket,
            channel: channel.expect("a socket"),
            memory,
        };
        (peer, served)
    }

    /// Says `message`, with files.
    pub(crate) fn say(&self, message: &[u8], beside: &[Beside]) {
        let files: Vec<OwnedFd> = beside
            .iter()
            .take(MOST_FILES)
            .map(|kind| self.file(*kind))
            .collect();
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        self.channel
            .send(message, &files, Instant::now() + PATIENCE)
            .expect("room for a few messages");
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
    pub(crate) fn answers(mut self) -> Vec<u8> {
        let mut answers = Vec::new();
        // If something of ours was not read, that is told as an error, after all that was answered.
        let _ = self.socket.read_to_end(&mut answers);
        let mut beyond = [0; (MEMORY - GIVEN) as usize];
        self.memory
            .read_exact_at(&mut beyond, GIVEN)
            .expect("as long as it was");
        assert!(
            beyond == [OURS; (MEMORY - GIVEN) as usize],
            "memory of others was written"
        );
        answers
    }
}
