// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What goes over the socket: a header of 16 bytes, then what belongs to the command, all in the host's byte order.
//!
//! ```text
//!   header     identifier:16   command:16   size:32, with the header   flags:32   error:32
//!   flags      3:0 command (0) or reply (1)     4 no reply is wanted     5 `error` is an error number
//! ```
//!
//! "vfio-user Protocol Specification", "Message Format".

use hvkit_virtio_devices::vhost_user::channel::Channel;
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::time::Instant;

/// Bytes of a header.
pub(super) const HEADER: usize = 16;
/// Bytes that one message of ours moves at most, and one that we take: what `max_data_xfer_size` says.
pub(super) const MOST_DATA: u32 = 64 << 10;
/// Bytes that follow a header at most: data, and where it goes or comes from.
pub(super) const MOST_PAYLOAD: usize = MOST_DATA as usize + 64;

const TYPE: u32 = 0xf;
const REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command(pub u16);

impl Command {
    /// VFIO_USER_VERSION: the client's, then the server's.
    pub const VERSION: Self = Self(1);
    /// VFIO_USER_DMA_MAP: memory that the server may use.
    pub const DMA_MAP: Self = Self(2);
    /// VFIO_USER_DMA_UNMAP: not any more.
    pub const DMA_UNMAP: Self = Self(3);
    /// VFIO_USER_DEVICE_GET_INFO.
    pub const GET_INFO: Self = Self(4);
    /// VFIO_USER_DEVICE_GET_REGION_INFO.
    pub const GET_REGION_INFO: Self = Self(5);
    /// VFIO_USER_DEVICE_GET_IRQ_INFO.
    pub const GET_IRQ_INFO: Self = Self(7);
    /// VFIO_USER_DEVICE_SET_IRQS.
    pub const SET_IRQS: Self = Self(8);
    /// VFIO_USER_REGION_READ.
    pub const REGION_READ: Self = Self(9);
    /// VFIO_USER_REGION_WRITE.
    pub const REGION_WRITE: Self = Self(10);
    /// VFIO_USER_DMA_READ: the server asks for memory that it has no file of.
    pub const DMA_READ: Self = Self(11);
    /// VFIO_USER_DMA_WRITE.
    pub const DMA_WRITE: Self = Self(12);
    /// VFIO_USER_DEVICE_RESET.
    pub const RESET: Self = Self(13);
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Command::VERSION => "VERSION",
            Command::DMA_MAP => "DMA_MAP",
            Command::DMA_UNMAP => "DMA_UNMAP",
            Command::GET_INFO => "DEVICE_GET_INFO",
            Command::GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            Command::GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            Command::SET_IRQS => "DEVICE_SET_IRQS",
            Command::REGION_READ => "REGION_READ",
            Command::REGION_WRITE => "REGION_WRITE",
            Command::DMA_READ => "DMA_READ",
            Command::DMA_WRITE => "DMA_WRITE",
            Command::RESET => "DEVICE_RESET",
            Command(number) => return write!(f, "command {number}"),
        };
        f.write_str(name)
    }
}

/// The beginning of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) id: u16,
    pub(super) command: Command,
    /// Bytes, the header's among them.
    size: u32,
    flags: u32,
    error: u32,
}

impl Header {
    pub(super) fn of(bytes: [u8; HEADER]) -> Self {
        let [
            i0,
            i1,
            c0,
            c1,
            s0,
            s1,
            s2,
            s3,
            f0,
            f1,
            f2,
            f3,
            e0,
            e1,
            e2,
            e3,
        ] = bytes;
        Self {
            id: u16::from_ne_bytes([i0, i1]),
            command: Command(u16::from_ne_bytes([c0, c1])),
            size: u32::from_ne_bytes([s0, s1, s2, s3]),
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            error: u32::from_ne_bytes([e0, e1, e2, e3]),
        }
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(self.id.to_ne_bytes());
        bytes.extend(self.command.0.to_ne_bytes());
        for word in [self.size, self.flags, self.error] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes
    }

    pub(super) fn is_reply(self) -> bool {
        self.flags & TYPE == REPLY
    }

    pub(super) fn wants_reply(self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// The error number that the other end answers with.
    pub(super) fn refusal(self) -> Option<i32> {
        (self.flags & ERROR != 0).then(|| i32::try_from(self.error).unwrap_or(libc::EIO))
    }
}

/// Whether an answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Reply,
    Nothing,
}

/// A message that asks for something.
pub(super) fn command(id: u16, command: Command, payload: &[u8], wanted: Wanted) -> Vec<u8> {
    let flags = match wanted {
        Wanted::Reply => 0,
        Wanted::Nothing => NO_REPLY,
    };
    message(id, command, payload, flags, 0)
}

/// The answer to what came with `header`.
pub(super) fn reply(header: Header, payload: &[u8]) -> Vec<u8> {
    message(header.id, header.command, payload, REPLY, 0)
}

/// The answer that it will not be.
pub(super) fn refusal(header: Header, error: i32) -> Vec<u8> {
    let error = u32::try_from(error).unwrap_or(0);
    message(header.id, header.command, &[], REPLY | ERROR, error)
}

fn message(id: u16, command: Command, payload: &[u8], flags: u32, error: u32) -> Vec<u8> {
    let header = Header {
        id,
        command,
        // Nobody here sends more than `MOST_PAYLOAD`.
        size: HEADER.saturating_add(payload.len()) as u32,
        flags,
        error,
    };
    let mut bytes = header.bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// The next message, which has begun to come; it is here before `end`.
///
/// # Errors
///
/// The socket's, and `InvalidData` for a message of a size that none has.
pub(super) fn receive(
    channel: &Channel,
    end: Instant,
) -> io::Result<(Header, Vec<u8>, Vec<OwnedFd>)> {
    let (mut head, mut files) = ([0; HEADER], Vec::new());
    channel.receive(&mut head, &mut files, end)?;
    let header = Header::of(head);
    let length = (header.size as usize).checked_sub(HEADER);
    let length = length.filter(|&length| length <= MOST_PAYLOAD);
    let mut payload = vec![0; length.ok_or(ErrorKind::InvalidData)?];
    channel.receive(&mut payload, &mut files, end)?;
    Ok((header, payload, files))
}

/// What follows a header, taken from the front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a>(pub(super) &'a [u8]);

impl Words<'_> {
    pub(super) fn half(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    pub(super) fn word(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    pub(super) fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, later) = self.0.split_first_chunk()?;
        self.0 = later;
        Some(*now)
    }
}

/// Words in a row.
pub(super) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `argsz`, which says how long it and what follows is, and then `flags` and longer words: the body of DMA_MAP and its
/// like.
pub(super) fn sized(flags: u32, longs: &[u64]) -> Vec<u8> {
    let size = size_of_val(longs).saturating_add(8);
    let mut bytes = words(&[size as u32, flags]);
    bytes.extend(longs.iter().flat_map(|long| long.to_ne_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn messages_are_as_the_specification_draws_them() {
        // Identifier 2 bytes, command 2, size 4, flags 4, error 4.
        let raw = command(0x1234, Command::REGION_READ, &[0xaa; 3], Wanted::Reply);
        let head = [0x34, 0x12, 9, 0, 19, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(raw, [&head[..], &[0xaa; 3]].concat());
        let posted = command(1, Command::REGION_WRITE, &[], Wanted::Nothing);
        assert_eq!(posted[8..], [0x10, 0, 0, 0, 0, 0, 0, 0]);
        let header = Header::of(posted.try_into().unwrap());
        assert!(!header.wants_reply() && !header.is_reply());
        assert_eq!(reply(header, &[])[8..], [1, 0, 0, 0, 0, 0, 0, 0]);
        let refused = refusal(header, 22);
        assert_eq!(refused[8..], [0x21, 0, 0, 0, 22, 0, 0, 0]);
        let header = Header::of(refused.try_into().unwrap());
        assert_eq!(header.refusal(), Some(22));
        assert!(header.is_reply());
        // Of DMA_MAP, 32 bytes: argsz, flags, offset, address, size.
        let body = sized(3, &[0, 0x1000, 0x2000]);
        assert_eq!(body.len(), 32);
        assert_eq!(body[..8], [32, 0, 0, 0, 3, 0, 0, 0]);
    }

    #[test]
    fn sizes_that_no_message_has() {
        for size in [0u32, 15, (HEADER + MOST_PAYLOAD + 1) as u32, u32::MAX] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut raw = command(1, Command::RESET, &[], Wanted::Reply);
            raw[4..8].copy_from_slice(&size.to_ne_bytes());
            io::Write::write_all(&mut &theirs, &raw).unwrap();
            let channel = Channel::new(ours).unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            let error = receive(&channel, end).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{size}");
        }
    }
}
