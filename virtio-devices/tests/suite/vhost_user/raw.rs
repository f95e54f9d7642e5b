// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end of translated addresses in raw words, and a back end of ours at the other end.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hvkit_virtio_devices::fake::Ring;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::{PATIENCE, shared_memory};
use crate::support::guest::Memory;

/// What the device's addresses are above the guest's.
pub(super) const AWAY: u64 = 0x7_0000_0000;
pub(super) const RING: u64 = 0x1_0000;
pub(super) const PAGE: u64 = 0x1000;
pub(super) const TRANSLATED: u64 = 1 << 33;
/// Where the guest's memory is in the front end's process.
const THEIRS: u64 = 1 << 40;

pub(super) struct Raw {
    pub(super) socket: UnixStream,
    pub(super) own: UnixStream,
    pub(super) memory: Memory,
}

/// A queue, and the events of both sides.
pub(super) struct Queue {
    pub(super) ring: Ring,
    pub(super) kick: EventFd,
    _call: EventFd,
}

/// The words of an update: a page that leads to `to`, for `access`.
pub(super) fn update(page: u64, to: u64, access: u64) -> [u64; 4] {
    [AWAY + page, PAGE, THEIRS + to, access | 2 << 8]
}

/// A message's words.
pub(super) fn words(payload: &[u8]) -> [u64; 4] {
    let word = |at: usize| u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap());
    [word(0), word(8), word(16), word(24)]
}

impl Raw {
    /// Settles on translated addresses, and gives the memory.
    pub(super) fn begin(socket: UnixStream) -> Self {
        let (own, theirs) = UnixStream::pair().unwrap();
        for stream in [&socket, &own] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let memory = shared_memory();
        let mut front = Self {
            socket,
            own,
            memory,
        };
        assert_ne!(front.ask(1, &[]) & TRANSLATED, 0);
        // Without acknowledgement of what has none.
        front.send(16, &(1u64 << 5 | 1 << 9).to_ne_bytes(), None);
        front.send(21, &[], Some(theirs.as_raw_fd()));
        front.send(2, &(1u64 << 30 | 1 << 32 | TRANSLATED).to_ne_bytes(), None);
        // Both regions by files of their own.
        let files: Vec<_> = front
            .memory
            .iter()
            .map(|region| region.file_offset().unwrap().file().as_raw_fd())
            .collect();
        let table = [
            2,
            0,
            0x10_0000,
            THEIRS,
            0,
            0x10_0000,
            0x10_0000,
            THEIRS + 0x10_0000,
            0x10_0000u64,
        ];
        let table = table.map(u64::to_ne_bytes).concat();
        let head = [5u32, 1, table.len() as u32].map(u32::to_ne_bytes).concat();
        front.socket.send_with_fds(&[&head[..1]], &files).unwrap();
        front
            .socket
            .write_all(&[&head[1..], &table[..]].concat())
            .unwrap();
        front
    }

    /// Starts the first queue, of 16.
    pub(super) fn queue(&mut self) -> Queue {
        let state = |queue: u32, value: u32| [queue, value].map(u32::to_ne_bytes).concat();
        let ring = Ring::new(Arc::clone(&self.memory), RING, 16);
        self.send(8, &state(0, 16), None);
        self.send(10, &state(0, 0), None);
        let place = [
            0,
            AWAY + ring.table,
            AWAY + ring.used,
            AWAY + ring.available,
            0,
        ];
        self.send(9, &place.map(u64::to_ne_bytes).concat(), None);
        let [kick, call] = [0; 2].map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        self.send(13, &0u64.to_ne_bytes(), Some(call.as_raw_fd()));
        self.send(12, &0u64.to_ne_bytes(), Some(kick.as_raw_fd()));
        self.send(18, &state(0, 1), None);
        Queue {
            ring,
            kick,
            _call: call,
        }
    }

    pub(super) fn send(&mut self, request: u32, payload: &[u8], file: Option<i32>) {
        let head = [request, 1, payload.len() as u32].map(u32::to_ne_bytes);
        let message = [&head.concat()[..], payload].concat();
        let files: Vec<_> = file.into_iter().collect();
        self.socket.send_with_fds(&[&message[..1]], &files).unwrap();
        self.socket.write_all(&message[1..]).unwrap();
    }

    /// A question and its eight bytes.
    fn ask(&mut self, request: u32, payload: &[u8]) -> u64 {
        self.send(request, payload, None);
        self.hear(request)
    }

    /// The eight bytes of an answer.
    fn hear(&mut self, request: u32) -> u64 {
        let mut answer = [0; 20];
        self.socket.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..12], [request, 5, 8].map(u32::to_ne_bytes).concat());
        u64::from_ne_bytes(answer[12..].try_into().unwrap())
    }

    pub(super) fn translation(&mut self, words: [u64; 4]) -> u64 {
        self.tell(words);
        self.acknowledged()
    }

    /// The same, without waiting for the acknowledgement.
    pub(super) fn tell(&mut self, words: [u64; 4]) {
        self.send(22, &words.map(u64::to_ne_bytes).concat(), None);
    }

    pub(super) fn acknowledged(&mut self) -> u64 {
        self.hear(22)
    }

    /// Whether nothing is acknowledged for a time that is long for a back end that does not wait.
    pub(super) fn is_silent(&mut self) -> bool {
        let short = Some(Duration::from_millis(200));
        self.socket.set_read_timeout(short).unwrap();
        let heard = self.socket.read(&mut [0]);
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        heard.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// What it asks of its own: flags and words.
    pub(super) fn asked(&mut self) -> (u32, [u64; 4]) {
        let mut raw = [0; 12 + 32];
        self.own.read_exact(&mut raw).unwrap();
        let head = |at: usize| u32::from_ne_bytes(raw[at..at + 4].try_into().unwrap());
        assert_eq!((head(0), head(8)), (1, 32));
        (head(4), words(&raw[12..]))
    }

    /// Answers that: 0 is yes.
    pub(super) fn answer(&mut self, code: u64) {
        let head = [1u32, 1 | 4, 8].map(u32::to_ne_bytes).concat();
        let message = [&head[..], &code.to_ne_bytes()].concat();
        self.own.write_all(&message).unwrap();
    }
}
