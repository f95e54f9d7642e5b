// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One connection: bytes between a guest's socket and a socket of the host, and how much either has room for.
//!
//! ```text
//!   guest --RW--> stream, and what it does not take at once: backlog (at most ROOM, which is what we grant)
//!   guest <--RW-- stream, as much as the guest has granted
//! ```
//!
//! "Buffer Space Management" (5.10.6.3).

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use vm_memory::{GuestMemory, GuestMemoryError, Permissions};

use super::packet::{Header, Operation, Shut};
use crate::queue::{Buffers, Reach, Slice};
use crate::vectored;

/// Bytes that a guest may send on one connection before the host has taken them.
pub(super) const ROOM: u32 = 256 << 10;
/// Bytes in one packet to the guest.
const MOST: u64 = 64 << 10;

bitflags::bitflags! {
    /// Packets without data that the guest is owed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct Owed: u8 {
        const REQUEST = 1;
        const RESPONSE = 2;
        const CREDIT = 4;
        const CREDIT_REQUEST = 8;
        const SHUTDOWN = 16;
    }
}

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The host has asked; the guest has not answered.
    Asked,
    /// Open.
    Open,
}

/// The guest broke a rule of the connection.
#[derive(Debug)]
pub(super) struct Broken;

/// What a connection has for the guest.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A packet without data.
    Bare(Operation, Shut),
    /// This many bytes of data, which are in the guest's buffer.
    Data(u32),
    /// Nothing now.
    Nothing,
    /// The chain has no room for any data.
    NoRoom,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) stage: Stage,
    pub(super) owed: Owed,
    /// In the list of those that have something for the guest.
    pub(super) listed: bool,
    /// There may be something to read from the stream.
    pub(super) readable: bool,
    /// What the guest has sent and the stream has not taken.
    backlog: VecDeque<u8>,
    /// Bytes that the stream has taken, of all that the guest ever sent: "fwd_cnt". Wraps.
    forwarded: u32,
    /// What of it the guest was told last.
    told: u32,
    /// What the guest will not do any more.
    guest_shut: Shut,
    /// What the host will not do any more.
    host_shut: Shut,
    /// Bytes that the guest has room for beyond `peer_forwarded`: "buf_alloc".
    peer_room: u32,
    peer_forwarded: u32,
    /// Bytes ever sent to the guest. Wraps.
    sent: u32,
    /// The guest was asked for credit and has not given any.
    asked: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, stage: Stage) -> Self {
        Self {
            stream,
            stage,
            owed: match stage {
                Stage::Asked => Owed::REQUEST,
                Stage::Open => Owed::RESPONSE,
            },
            listed: false,
            readable: true,
            backlog: VecDeque::new(),
            forwarded: 0,
            told: 0,
            guest_shut: Shut::empty(),
            host_shut: Shut::empty(),
            peer_room: 0,
            peer_forwarded: 0,
            sent: 0,
            asked: false,
        }
    }

    /// Takes note of the guest's room, which is in every packet.
    pub(super) fn credit(&mut self, header: &Header) {
        self.peer_room = header.room;
        self.peer_forwarded = header.forwarded;
        self.asked &= self.peer_free() == 0;
    }

    /// Bytes that may be sent. A guest that contradicts itself gets none.
    fn peer_free(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_room.saturating_sub(under_way)
    }

    /// "fwd_cnt" for the next packet, which tells it.
    pub(super) fn tell(&mut self) -> u32 {
        self.told = self.forwarded;
        self.forwarded
    }

    /// Whether there may be something for the guest.
    pub(super) fn has_something(&self) -> bool {
        !self.owed.is_empty() || self.can_read()
    }

    fn can_read(&self) -> bool {
        let open = self.stage == Stage::Open && !self.host_shut.contains(Shut::SEND);
        open && self.readable && (self.peer_free() > 0 || !self.asked)
    }

    /// The guest sends `data`.
    pub(super) fn receive<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        data: Buffers<'_>,
    ) -> Result<(), Broken> {
        let left = u64::from(ROOM).saturating_sub(self.backlog.len() as u64);
        // More than it was granted, or after it said that there would be no more.
        if data.len() > left || self.guest_shut.contains(Shut::SEND) {
            return Err(Broken);
        }
        let mut rest = data;
        if self.backlog.is_empty() {
            let sent = with_slices(reach, data, Permissions::Read, |slices| {
                vectored::send(self.stream.as_fd(), slices)
            });
            match sent.map_err(|_| Broken)? {
                Ok(count) => {
                    self.took(count);
                    rest = rest.split_at(count as u64).1;
                }
                Err(error) => self.excuse(&error),
            }
        }
        if self.host_shut.contains(Shut::RECEIVE) {
            // Lost, as on any connection whose other end is gone.
            self.took(rest.len() as usize);
        } else if !rest.is_empty() {
            let mut bytes = vec![0; rest.len() as usize];
            rest.read(reach, &mut bytes).map_err(|_| Broken)?;
            self.backlog.extend(bytes);
        }
        Ok(())
    }

    /// The stream may take more.
    pub(super) fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            match self.stream.write(front) {
                Ok(count) => {
                    self.backlog.drain(..count);
                    self.took(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.excuse(&error);
                    return;
                }
            }
        }
        if self.guest_shut.contains(Shut::SEND) {
            // Fails only if the other end is gone, which is told by itself.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Counts bytes that the stream has taken. The guest is told before it runs out of room.
    fn took(&mut self, count: usize) {
        // At most ROOM.
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        if self.forwarded.wrapping_sub(self.told) >= ROOM / 4 {
            self.owed |= Owed::CREDIT;
        }
    }

    /// A stream that is full takes more later; any other error is the end of it.
    fn excuse(&mut self, error: &io::Error) {
        if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
            self.deaf();
        }
    }

    /// The host's end takes nothing any more. What it has sent may still be read.
    pub(super) fn deaf(&mut self) {
        if !self.host_shut.contains(Shut::RECEIVE) {
            self.host_shut |= Shut::RECEIVE;
            self.owed |= Owed::SHUTDOWN;
        }
        self.took(self.backlog.len());
        self.backlog.clear();
    }

    /// The guest has said what it will not do any more.
    pub(super) fn shut(&mut self, shut: Shut) {
        self.guest_shut |= shut;
        self.flush();
    }

    /// Whether the guest is done with it, and everything has been passed on.
    pub(super) fn is_over(&self) -> bool {
        self.guest_shut.is_all() && self.backlog.is_empty()
    }

    /// The host's end is gone in both directions.
    pub(super) fn hung_up(&self) -> bool {
        self.host_shut.is_all()
    }

    /// Has the next packet, with data in `room`.
    pub(super) fn next<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        room: Buffers<'_>,
    ) -> Outgoing {
        for (owed, operation) in [
            (Owed::REQUEST, Operation::REQUEST),
            (Owed::RESPONSE, Operation::RESPONSE),
        ] {
            if self.owed.contains(owed) {
                self.owed.remove(owed);
                return Outgoing::Bare(operation, Shut::empty());
            }
        }
        if self.can_read() && !self.owed.contains(Owed::CREDIT_REQUEST) {
            match self.read(reach, room) {
                Outgoing::Nothing => {}
                something => return something,
            }
        }
        for (owed, operation) in [
            (Owed::SHUTDOWN, Operation::SHUTDOWN),
            (Owed::CREDIT_REQUEST, Operation::CREDIT_REQUEST),
            (Owed::CREDIT, Operation::CREDIT_UPDATE),
        ] {
            if self.owed.contains(owed) {
                self.owed.remove(owed);
                let shut = match operation {
                    Operation::SHUTDOWN => self.host_shut,
                    _ => Shut::empty(),
                };
                return Outgoing::Bare(operation, shut);
            }
        }
        Outgoing::Nothing
    }

    fn read<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        room: Buffers<'_>,
    ) -> Outgoing {
        let free = self.peer_free();
        if free == 0 {
            self.asked = true;
            self.owed |= Owed::CREDIT_REQUEST;
            return Outgoing::Nothing;
        }
        let room = room.split_at(MOST.min(free.into())).0;
        if room.is_empty() {
            return Outgoing::NoRoom;
        }
        let read = with_slices(reach, room, Permissions::Write, |slices| {
            vectored::read(self.stream.as_fd(), slices)
        });
        match read {
            Ok(Ok(count)) if count > 0 => {
                if self.guest_shut.contains(Shut::RECEIVE) {
                    // Nobody there wants it.
                    return Outgoing::Nothing;
                }
                // At most MOST.
                let count = count as u32;
                self.sent = self.sent.wrapping_add(count);
                Outgoing::Data(count)
            }
            Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Outgoing::Nothing
            }
            Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => Outgoing::Nothing,
            // The end, or an error, after which nothing comes either; or no memory to read to.
            _ => {
                self.readable = false;
                self.host_shut |= Shut::SEND;
                self.owed |= Owed::SHUTDOWN;
                Outgoing::Nothing
            }
        }
    }
}

/// Runs `call` with the host's pieces of `buffers`.
fn with_slices<M: GuestMemory + ?Sized, R>(
    reach: &Reach<'_, M>,
    buffers: Buffers<'_>,
    access: Permissions,
    call: impl FnOnce(&[Slice<'_, M>]) -> R,
) -> Result<R, GuestMemoryError> {
    let mut slices = Vec::new();
    for piece in buffers.pieces().take(vectored::MAX_PIECES) {
        reach.for_each::<GuestMemoryError>(piece, access, |slice| {
            if slices.len() < vectored::MAX_PIECES {
                slices.push(slice);
            }
            Ok(())
        })?;
    }
    Ok(call(&slices))
}
