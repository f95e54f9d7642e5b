// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other machine: what its VMM says, and what it hears.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use arbitrary::Arbitrary;
use hvkit_virtio_devices::vhost_user::channel::Channel;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

/// Bytes of a file that can be shown.
const FILE: u64 = 0x8000;
/// Header flags: version 1; that it is an answer.
pub(super) const VERSION: u32 = 1;
pub(super) const REPLY: u32 = 1 << 2;

/// A file that goes with a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) enum Beside {
    /// Memory that cannot be made shorter.
    Sealed,
    /// Memory that can.
    Open,
    /// An event.
    Event,
    /// A socket whose other end is gone.
    Socket,
    /// No file in memory.
    Null,
}

impl Beside {
    pub(super) fn file(self) -> OwnedFd {
        let memory = |seals| {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let file = memfd_create("fuzz", flags).expect("a file");
            ftruncate(&file, FILE).expect("a file");
            fcntl_add_seals(&file, seals).expect("a file");
            file
        };
        match self {
            Self::Sealed => memory(SealFlags::SHRINK),
            Self::Open => memory(SealFlags::GROW),
            Self::Event => eventfd(0, EventfdFlags::NONBLOCK).expect("an event"),
            Self::Socket => UnixStream::pair().expect("a pair of sockets").0.into(),
            Self::Null => File::open("/dev/null").expect("a file").into(),
        }
    }
}

/// A piece of memory, by pages of its file, as far as it is not odd.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(super) struct Region {
    offset: u8,
    length: u8,
    odd: u8,
}

impl Region {
    fn words(self) -> [u64; 4] {
        let [offset, length] = [self.offset, self.length].map(|pages| u64::from(pages % 8) << 12);
        match self.odd {
            0..240 => [0, length + 0x1000, 0, offset & 0x3000],
            240..244 => [0, length | 0x800, 0, offset],
            244..248 => [0, length, 0, offset | 0x800],
            248..252 => [0, !0xfff, 0, offset],
            _ => [!0, length, !0, !0xfff],
        }
    }
}

/// What the other machine's VMM says.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Message {
    /// SET_MEM_TABLE, with so many files more or less, and a count of regions that is so wrong.
    Table(Vec<Region>, i8, u8, Beside),
    /// SET_VRING_KICK, CALL, ERR.
    Event(u8, u16, bool, Vec<Beside>),
    /// One with a word.
    Word(u8, u64),
    /// Anything.
    Raw(u8, u32, i16, Vec<u8>, Vec<Beside>),
}

impl Message {
    /// Its bytes, and the files that go with it.
    pub(super) fn raw(&self) -> (Vec<u8>, Vec<Beside>) {
        let (mut raw, payload, beside) = match self {
            Self::Table(regions, more, wrong, kind) => {
                let regions = &regions[..regions.len().min(9)];
                let count = regions.len() as u32;
                let mut payload = [(count ^ u32::from(*wrong >> 6)).to_ne_bytes(), [0; 4]].concat();
                let all = regions.iter().flat_map(|region| region.words());
                payload.extend(all.flat_map(u64::to_ne_bytes));
                // Nearly always as many as there are regions.
                let more = if more % 16 == 0 { more / 16 } else { 0 };
                let files = regions.len().saturating_add_signed(more.into());
                let kinds = vec![*kind; files];
                (head(5, VERSION, payload.len() as u32), payload, kinds)
            }
            Self::Event(which, queue, none, beside) => {
                let word = u64::from(queue % 32) | u64::from(*none) << 8;
                let payload = word.to_ne_bytes().to_vec();
                let beside = if *none { Vec::new() } else { beside.clone() };
                (head(12 + u32::from(which % 3), VERSION, 8), payload, beside)
            }
            Self::Word(request, word) => {
                let payload = word.to_ne_bytes().to_vec();
                (head((request % 48).into(), VERSION, 8), payload, Vec::new())
            }
            Self::Raw(request, flags, more, payload, beside) => {
                let payload = payload[..payload.len().min(512)].to_vec();
                let size = payload.len().saturating_add_signed((*more).into());
                let flags = if flags % 4 == 0 {
                    VERSION ^ flags >> 2
                } else {
                    VERSION
                };
                (
                    head((*request).into(), flags, size as u32),
                    payload,
                    beside.clone(),
                )
            }
        };
        raw.extend(payload);
        (raw, beside)
    }
}

/// The other machine's end of a connection.
pub(super) struct Other {
    pub(super) socket: UnixStream,
    pub(super) channel: Channel,
    pub(super) said: Vec<u8>,
    heard: Vec<u8>,
    /// The socket took no more: what would come after is not said.
    full: bool,
}

impl Other {
    pub(super) fn new(socket: UnixStream) -> Self {
        let channel = socket.try_clone().and_then(Channel::new);
        socket.set_nonblocking(true).expect("a socket");
        Self {
            socket,
            channel: channel.expect("a socket"),
            said: Vec::new(),
            heard: Vec::new(),
            full: false,
        }
    }

    pub(super) fn say(&mut self, bytes: &[u8], files: &[OwnedFd]) {
        let files: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        if !self.full {
            self.full = self.channel.send(bytes, &files, Instant::now()).is_err();
            self.said.extend(bytes);
        }
    }

    /// What was answered is answers, of what can be carried.
    pub(super) fn hear(&mut self) {
        let mut some = [0; 4096];
        while let Ok(count @ 1..) = self.socket.read(&mut some) {
            self.heard.extend(&some[..count]);
        }
        let mut left = &self.heard[..];
        while let Some((head, rest)) = left.split_first_chunk::<12>() {
            let [request, flags, size] = words(head);
            assert_eq!(flags & 7, VERSION | REPLY, "an answer's flags");
            let Some((payload, rest)) = rest.split_at_checked(size as usize) else {
                break;
            };
            if let Ok(word) = payload.try_into().map(u64::from_ne_bytes) {
                match request {
                    // MQ, REPLY_ACK, CONFIG.
                    15 => assert_eq!(word & !0x209, 0, "a feature that needs files"),
                    17 => assert!(word <= 16, "{word} queues"),
                    _ => {}
                }
            }
            left = rest;
        }
    }
}

pub(super) fn words(head: &[u8; 12]) -> [u32; 3] {
    let (words, _) = head.as_chunks::<4>();
    [0, 1, 2].map(|word| u32::from_ne_bytes(words[word]))
}

pub(super) fn head(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size].map(u32::to_ne_bytes).concat()
}
