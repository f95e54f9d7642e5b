// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other machine's VMM, which says anything, and what must hold of what it hears.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use hvkit_virtio_devices::vhost_user::channel::Channel;

/// Header flags: version 1; that it is an answer.
pub(super) const VERSION: u32 = 1;
pub(super) const REPLY: u32 = 1 << 2;

/// The other machine's end of a connection.
pub(super) struct Other {
    pub(super) socket: UnixStream,
    pub(super) channel: Channel,
    pub(super) said: Vec<u8>,
    pub(super) heard: Vec<u8>,
    /// The socket took no more: what would come after is not said.
    pub(super) full: bool,
}

impl Other {
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
