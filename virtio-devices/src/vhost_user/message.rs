// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of the protocol.
//!
//! ```text
//!   request:32   flags:32 (version 1, REPLY, NEED_REPLY)   size:32   payload of that size     files beside it
//! ```
//!
//! All of it in the host's byte order. "Message Specification", "Front-end message types", "Protocol features".

use std::fmt;

/// Bytes of a header.
pub(super) const HEADER: usize = 12;
/// The protocol's version, in a header's flags.
pub(super) const VERSION: u32 = 1;
/// Bits of the version.
pub(super) const VERSION_MASK: u32 = 3;
/// This is an answer.
pub(super) const REPLY: u32 = 1 << 2;
/// An answer is wanted where there would be none.
pub(super) const NEED_REPLY: u32 = 1 << 3;

/// Regions of a memory table.
pub(super) const MOST_REGIONS: usize = 8;
/// Bytes of the longest payload that we read and drop.
pub(super) const LONGEST: u32 = 4096;

/// VHOST_USER_F_PROTOCOL_FEATURES, among the virtio feature bits.
pub(super) const PROTOCOL_FEATURES: u64 = 1 << 30;

bitflags::bitflags! {
    /// What both ends of a connection can do. A bit without a name is kept as it is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Protocol: u64 {
        /// Several queues.
        const MQ = 1 << 0;
        /// Any request is answered, if that is asked for.
        const REPLY_ACK = 1 << 3;
        /// The back end has requests of its own.
        const BACKEND_REQ = 1 << 5;
        /// The back end has the configuration space.
        const CONFIG = 1 << 9;
        /// What is in flight is noted in shared memory.
        const INFLIGHT_SHMFD = 1 << 12;
        const _ = !0;
    }
}

/// A request, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request(pub u32);

impl Request {
    /// The virtio features of the back end.
    pub const GET_FEATURES: Self = Self(1);
    /// Those that were settled.
    pub const SET_FEATURES: Self = Self(2);
    /// The session begins.
    pub const SET_OWNER: Self = Self(3);
    /// Where guest memory is.
    pub const SET_MEM_TABLE: Self = Self(5);
    /// Descriptors of a queue.
    pub const SET_VRING_NUM: Self = Self(8);
    /// Where a queue is.
    pub const SET_VRING_ADDR: Self = Self(9);
    /// Where a queue goes on.
    pub const SET_VRING_BASE: Self = Self(10);
    /// Stops a queue, and asks where it would go on.
    pub const GET_VRING_BASE: Self = Self(11);
    /// The driver's notifications. The queue starts.
    pub const SET_VRING_KICK: Self = Self(12);
    /// The device's notifications.
    pub const SET_VRING_CALL: Self = Self(13);
    /// The device's errors.
    pub const SET_VRING_ERR: Self = Self(14);
    /// What the back end can do of the protocol.
    pub const GET_PROTOCOL_FEATURES: Self = Self(15);
    /// What of it is used.
    pub const SET_PROTOCOL_FEATURES: Self = Self(16);
    /// How many queues there are.
    pub const GET_QUEUE_NUM: Self = Self(17);
    /// Switches a queue on or off.
    pub const SET_VRING_ENABLE: Self = Self(18);
    /// The channel for the back end's own requests.
    pub const SET_BACKEND_REQ_FD: Self = Self(21);
    /// Where a device's addresses lead, behind an IOMMU.
    pub const IOTLB_MSG: Self = Self(22);
    /// Reads configuration space.
    pub const GET_CONFIG: Self = Self(24);
    /// Memory to note in what is in flight.
    pub const GET_INFLIGHT_FD: Self = Self(31);
    /// The memory in which that is noted.
    pub const SET_INFLIGHT_FD: Self = Self(32);

    fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::GET_FEATURES => "GET_FEATURES",
            Self::SET_FEATURES => "SET_FEATURES",
            Self::SET_OWNER => "SET_OWNER",
            Self::SET_MEM_TABLE => "SET_MEM_TABLE",
            Self::SET_VRING_NUM => "SET_VRING_NUM",
            Self::SET_VRING_ADDR => "SET_VRING_ADDR",
            Self::SET_VRING_BASE => "SET_VRING_BASE",
            Self::GET_VRING_BASE => "GET_VRING_BASE",
            Self::SET_VRING_KICK => "SET_VRING_KICK",
            Self::SET_VRING_CALL => "SET_VRING_CALL",
            Self::SET_VRING_ERR => "SET_VRING_ERR",
            Self::GET_PROTOCOL_FEATURES => "GET_PROTOCOL_FEATURES",
            Self::SET_PROTOCOL_FEATURES => "SET_PROTOCOL_FEATURES",
            Self::GET_QUEUE_NUM => "GET_QUEUE_NUM",
            Self::SET_VRING_ENABLE => "SET_VRING_ENABLE",
            Self::SET_BACKEND_REQ_FD => "SET_BACKEND_REQ_FD",
            Self::IOTLB_MSG => "IOTLB_MSG",
            Self::GET_CONFIG => "GET_CONFIG",
            Self::GET_INFLIGHT_FD => "GET_INFLIGHT_FD",
            Self::SET_INFLIGHT_FD => "SET_INFLIGHT_FD",
            _ => return None,
        })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "request {}", self.0),
        }
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG, a request of the back end's own.
pub(super) const CONFIG_CHANGE: u32 = 2;

/// The two words that lie in eight bytes.
pub(super) fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_ne_bytes();
    (
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
    )
}

/// What stands before a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) size: u32,
}

impl Header {
    pub(super) fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        put(&mut bytes, &[self.request, self.flags, self.size]);
        bytes
    }

    pub(super) fn of(bytes: [u8; HEADER]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }
}

fn put(bytes: &mut [u8], words: &[u32]) {
    for (place, word) in bytes.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
}

/// A payload being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Payload(Vec<u8>);

impl Payload {
    pub(super) fn of(word: u64) -> Self {
        Self::default().u64(word)
    }

    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_three_words() {
        let header = Header {
            request: 0x0102_0304,
            flags: VERSION | NEED_REPLY,
            size: 8,
        };
        let mut raw = 0x0102_0304u32.to_ne_bytes().to_vec();
        raw.extend(9u32.to_ne_bytes());
        raw.extend(8u32.to_ne_bytes());
        assert_eq!(header.bytes().to_vec(), raw);
        assert_eq!(Header::of(header.bytes()), header);
    }

    #[test]
    fn a_request_without_a_name_has_its_number() {
        assert_eq!(Request::GET_CONFIG.to_string(), "GET_CONFIG");
        assert_eq!(Request(99).to_string(), "request 99");
    }
}
