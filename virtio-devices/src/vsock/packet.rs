// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A packet's header: "struct virtio_vsock_hdr".
//!
//! "Device Operation" (5.10.6).

use crate::bytes::{put_at, read_at};

/// Bytes of a header.
pub(super) const HEADER: usize = 44;
/// VIRTIO_VSOCK_TYPE_STREAM.
pub(super) const STREAM: u16 = 1;

/// What a packet is for. Open: what we do not know is answered with [`RST`](Self::RST).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation(pub(super) u16);

impl Operation {
    /// Opens a connection.
    pub(super) const REQUEST: Self = Self(1);
    /// Accepts it.
    pub(super) const RESPONSE: Self = Self(2);
    /// Ends it, or says that there is none.
    pub(super) const RST: Self = Self(3);
    /// The sender will not receive, or not send, any more: see [`Shut`].
    pub(super) const SHUTDOWN: Self = Self(4);
    /// Data.
    pub(super) const RW: Self = Self(5);
    /// Says how much room the sender has.
    pub(super) const CREDIT_UPDATE: Self = Self(6);
    /// Asks for it.
    pub(super) const CREDIT_REQUEST: Self = Self(7);
}

bitflags::bitflags! {
    /// What the sender of SHUTDOWN will not do any more.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Shut: u32 {
        /// VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE.
        const RECEIVE = 1;
        /// VIRTIO_VSOCK_SHUTDOWN_F_SEND.
        const SEND = 2;
    }
}

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// A header, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) operation: Operation,
    pub(super) flags: u32,
    /// Bytes that the sender has room for, of all that it was ever sent ...
    pub(super) room: u32,
    /// ... beyond so many, which it is done with.
    pub(super) forwarded: u32,
}

impl Header {
    pub(super) fn decode(raw: &[u8; HEADER]) -> Self {
        let long = |at: u64| {
            let mut bytes = [0; 8];
            read_at(raw, at, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let word = |at| long(at) as u32;
        let half = |at| long(at) as u16;
        Self {
            source_cid: long(0),
            destination_cid: long(8),
            source_port: word(16),
            destination_port: word(20),
            length: word(24),
            kind: half(28),
            operation: Operation(half(30)),
            flags: word(32),
            room: word(36),
            forwarded: word(40),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        let mut put = |at: usize, field: &[u8]| put_at(&mut raw, at, field);
        put(0, &self.source_cid.to_le_bytes());
        put(8, &self.destination_cid.to_le_bytes());
        put(16, &self.source_port.to_le_bytes());
        put(20, &self.destination_port.to_le_bytes());
        put(24, &self.length.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &self.operation.0.to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.room.to_le_bytes());
        put(40, &self.forwarded.to_le_bytes());
        raw
    }
}
