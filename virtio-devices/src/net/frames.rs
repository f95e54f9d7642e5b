// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames between chains and a wire, without a copy of our own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use vm_memory::{GuestMemory, GuestMemoryError, Permissions};

use super::filter::{LOOKED_AT, Sieve};
use super::link::Cause;
use super::pairs::{Attached, Line};
use super::stream::{Came, FrameStream};
use super::{Link, LinkState, Tap};
use crate::bytes::put_at;
use crate::features::Features;
use crate::queue::{Buffers, Chain, Reach, Segment};
use crate::serve::{Answer, Handler, Served};
use crate::vectored::{self, Pieces};

/// Bytes of "struct virtio_net_hdr", `num_buffers` included.
pub(super) const HEADER: u64 = 12;
/// Where `num_buffers` is.
pub(super) const NUM_BUFFERS: u64 = 10;
/// The largest frame with its header: 64 KiB of IP, an Ethernet header with tag.
pub(super) const LARGEST: u64 = HEADER + 18 + (1 << 16);

/// Where frames go to and come from. Each read and write is one frame behind a header of 12 bytes, and neither
/// waits.
#[derive(Debug)]
pub enum Wire {
    /// A tap interface of the host.
    Tap(Tap),
    /// A datagram socket, say, at whose other end is somebody who understands the header. No offloads.
    Frames(OwnedFd),
    /// A stream socket, at whose other end is passt, say. No offloads.
    Stream(FrameStream),
}

impl Wire {
    pub(super) fn features(&self) -> Features {
        match self {
            Self::Tap(_) => Tap::FEATURES,
            Self::Frames(_) | Self::Stream(_) => Features::empty(),
        }
    }

    /// Frames come from it from now on, or none do.
    pub(super) fn attach(&self, attached: Attached) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.attach(attached),
            Self::Frames(_) | Self::Stream(_) => Ok(()),
        }
    }

    /// Tells the wire what the driver can take.
    pub(super) fn negotiated(&self, features: Features) -> io::Result<()> {
        match self {
            Self::Tap(tap) => tap.set_offloads(features),
            Self::Frames(_) | Self::Stream(_) => Ok(()),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap) => tap.as_fd(),
            Self::Frames(fd) => fd.as_fd(),
            Self::Stream(stream) => stream.socket.as_fd(),
        }
    }
}

/// Why a chain moved no frame.
pub(super) enum Refused {
    /// A buffer is not in memory.
    Memory,
    /// More pieces than a system call takes.
    Pieces,
}

impl From<GuestMemoryError> for Refused {
    fn from(_: GuestMemoryError) -> Self {
        Self::Memory
    }
}

/// Runs `call` with the host's pieces of `segments`.
pub(super) fn with_slices<M: GuestMemory + ?Sized, R>(
    reach: &Reach<'_, M>,
    segments: &[Segment],
    access: Permissions,
    call: impl FnOnce(&[crate::queue::Slice<'_, M>]) -> R,
) -> Result<R, Refused> {
    let mut slices = Pieces::new();
    for segment in segments {
        reach.for_each(*segment, access, |slice| {
            if slices.len() == vectored::MAX_PIECES {
                return Err(Refused::Pieces);
            }
            slices.push(slice);
            Ok(())
        })?;
    }
    Ok(call(&slices))
}

/// Bytes of a frame for the used ring; the host moved no more than 2^16 and some.
pub(super) fn served(written: usize, moved: usize) -> Answer {
    Answer::Done(Served {
        written: u32::try_from(written).unwrap_or(u32::MAX),
        moved: moved as u64,
        trouble: None,
    })
}

/// Fills chains with what comes from the wire.
pub(super) struct Receiver {
    pub(super) line: Arc<Line>,
    pub(super) link: Link,
    pub(super) sieve: Sieve,
}

impl<A> Handler<A> for Receiver {
    fn name(&self) -> String {
        "net-rx".to_owned()
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.line.wire.as_fd().as_raw_fd())
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let room = chain.writable();
        if room.len() <= HEADER {
            return Answer::Unanswerable;
        }
        if !self.line.is_used() {
            return Answer::Later;
        }
        if let Wire::Stream(stream) = &self.line.wire {
            let came = stream.take();
            return self.receive(came, reach, room);
        }
        let segments = chain.writable_segments();
        let read = with_slices(reach, segments, Permissions::Write, |slices| {
            vectored::read(self.line.wire.as_fd(), slices)
        });
        match read {
            Ok(Ok(count)) if count as u64 > HEADER => {
                if self.link.state() == LinkState::Down {
                    // It was on the wire, and there was no link: the chain waits for another.
                    return Answer::Retry;
                }
                if !self.sieve.is_open() {
                    // Who changes it meanwhile changes what is its own.
                    let mut begin = [0; LOOKED_AT];
                    let frame = room.split_at(HEADER).1;
                    let there = frame.read_back(reach, &mut begin).unwrap_or(0);
                    let there = there.min(count.saturating_sub(HEADER as usize));
                    if !self.sieve.wants(begin.get(..there).unwrap_or_default()) {
                        return Answer::Retry;
                    }
                }
                // One chain a frame: no driver that asked for more was answered so (5.1.6.4).
                let number = room.split_at(NUM_BUFFERS).1;
                let _ = number.write(reach, &1u16.to_le_bytes());
                served(count, count)
            }
            // No frame is that short: the other end is gone.
            Ok(Ok(_)) => Answer::Later,
            Ok(Err(error)) => match error.kind() {
                io::ErrorKind::WouldBlock => Answer::Later,
                io::ErrorKind::Interrupted => Answer::Retry,
                _ => Answer::Gone(error),
            },
            Err(Refused::Memory | Refused::Pieces) => served(0, 0),
        }
    }
}

impl Receiver {
    /// The same with what came from a stream, whose frames have no header.
    fn receive<M: GuestMemory + ?Sized>(
        &mut self,
        came: Came,
        reach: &Reach<'_, M>,
        room: Buffers<'_>,
    ) -> Answer {
        let frame = match came {
            Came::Frame(frame) => frame,
            Came::Nothing | Came::Over(None) => return Answer::Later,
            Came::Over(Some(error)) => {
                // The guest is to know that nothing comes any more.
                self.link.cut(Cause::WIRE);
                return Answer::Gone(error);
            }
        };
        if self.link.state() == LinkState::Down || !self.sieve.wants(&frame) {
            return Answer::Retry;
        }
        let mut header = [0; HEADER as usize];
        // One chain a frame.
        put_at(&mut header, NUM_BUFFERS as usize, &[1]);
        let (head, body) = room.split_at(HEADER);
        let written = head
            .write(reach, &header)
            .and_then(|count| Ok(count.saturating_add(body.write(reach, &frame)?)));
        let whole = header.len().saturating_add(frame.len());
        // A frame that the driver has no room or no memory for is lost as on any network.
        match written {
            Ok(count) if count == whole => served(count, count),
            _ => served(0, 0),
        }
    }
}

/// Puts what chains hold on the wire.
pub(super) struct Sender {
    pub(super) line: Arc<Line>,
    pub(super) link: Link,
}

impl<A> Handler<A> for Sender {
    fn name(&self) -> String {
        "net-tx".to_owned()
    }

    /// What is sent is followed by more: the rest of a window, acknowledgements.
    fn is_stream(&self) -> bool {
        true
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let length = chain.readable().len();
        // What is no frame, and what nobody can take, is lost as on any network.
        if length <= HEADER || length > LARGEST || self.link.state() == LinkState::Down {
            return served(0, 0);
        }
        if let Wire::Stream(stream) = &self.line.wire {
            let frame = chain.readable().split_at(HEADER).1;
            // At most LARGEST.
            let mut bytes = vec![0; frame.len() as usize];
            let sent = match frame.read(reach, &mut bytes) {
                Ok(_) => stream.send(&bytes).map(|()| bytes.len()),
                Err(_) => Ok(0),
            };
            return match sent {
                Ok(count) => served(0, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => served(0, 0),
                Err(error) => Answer::Done(Served {
                    trouble: Some(error),
                    ..Served::default()
                }),
            };
        }
        let segments = chain.readable_segments();
        let sent = with_slices(reach, segments, Permissions::Read, |slices| {
            vectored::write(self.line.wire.as_fd(), slices)
        });
        match sent {
            Ok(Ok(count)) => served(0, count),
            Ok(Err(error)) => match error.kind() {
                io::ErrorKind::Interrupted => Answer::Retry,
                // The wire is full, or the header asks for what cannot be done.
                io::ErrorKind::WouldBlock | io::ErrorKind::InvalidInput => served(0, 0),
                _ => Answer::Done(Served {
                    trouble: Some(error),
                    ..Served::default()
                }),
            },
            Err(Refused::Memory | Refused::Pieces) => served(0, 0),
        }
    }
}
