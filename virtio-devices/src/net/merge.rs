// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames that are spread over as many chains as they need: VIRTIO_NET_F_MRG_RXBUF.
//!
//! ```text
//!   small frames expected    one chain, then the spare    a frame that runs into the spare is held until chains have room for it
//!   large frames expected    chains for the largest       nothing is copied
//! ```
//!
//! A frame's length is known only when it was read, and a driver's chains are far smaller than the largest. To gather
//! chains for the largest before every read would cost each acknowledgement of a stream forty chains; so what
//! is expected is what came last.
//!
//! "Setting Up Receive Buffers" (5.1.6.3), "Processing of Incoming Packets" (5.1.6.4).

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::{GuestMemory, GuestMemoryError, Permissions};

use super::filter::{LOOKED_AT, Sieve};
use super::frames::{HEADER, LARGEST, NUM_BUFFERS, Wire, served, with_slices};
use super::link::Cause;
use super::pairs::Line;
use super::stream::Came;
use super::{Link, LinkState};
use crate::queue::{Chain, Reach, Segment};
use crate::serve::{Answer, Handler};
use crate::vectored::{self, MAX_PIECES};

/// A frame above this lets the next one be expected to be large.
const SMALL: usize = 4096;
/// How often in turn a driver without room for a frame is waited for.
const PATIENCE: u32 = 1000;

/// Fills chains with what comes from the wire, a frame in one or more.
pub(super) struct Merger {
    line: Arc<Line>,
    link: Link,
    sieve: Sieve,
    /// The chains of the next frame: their buffers, and the room in each.
    segments: Vec<Segment>,
    rooms: Vec<u64>,
    room: u64,
    /// Whether a large frame is expected.
    large: bool,
    /// Where a frame's end goes for which the chains are too short.
    spare: Vec<u8>,
    /// A frame with its header that has come, and for which there was no room.
    held: Option<Vec<u8>>,
    /// The most room that there was at once.
    most: u64,
    patience: u32,
}

/// Whether there are chains beyond those that were gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// There may be.
    Unknown,
    /// There are none.
    Yes,
}

/// What came from the wire.
enum Taken {
    /// A frame that lies elsewhere still.
    Held(Vec<u8>),
    /// A frame of so many bytes, which lies in the chains.
    Placed(usize),
    /// None.
    Nothing(Answer),
}

impl Merger {
    pub(super) fn new(line: Arc<Line>, link: Link, sieve: Sieve) -> Self {
        Self {
            line,
            link,
            sieve,
            segments: Vec::new(),
            rooms: Vec::new(),
            room: 0,
            large: false,
            spare: vec![0; LARGEST as usize],
            held: None,
            most: 0,
            patience: PATIENCE,
        }
    }

    /// The chains are given back, or used: the next frame has none yet.
    fn begin_anew(&mut self) {
        self.segments.clear();
        self.rooms.clear();
        self.room = 0;
    }

    fn answer<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, last: Last) -> Answer {
        self.most = self.most.max(self.room);
        let answer = self.go_on(reach, last);
        if !matches!(answer, Answer::More) {
            self.begin_anew();
        }
        answer
    }

    /// What to do with the chains so far.
    fn go_on<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, last: Last) -> Answer {
        if !self.line.is_used() {
            // A frame that waits for room does not come any more.
            self.held = None;
            return Answer::Later;
        }
        let frame = match self.held.take() {
            Some(frame) => frame,
            None => {
                let full = self.segments.len() >= MAX_PIECES / 2;
                if self.large && self.room < LARGEST && !full {
                    match last {
                        Last::Unknown => return Answer::More,
                        Last::Yes if self.may_wait_for(LARGEST) => return Answer::Short,
                        Last::Yes => {}
                    }
                }
                match self.take(reach) {
                    Taken::Held(frame) => frame,
                    Taken::Placed(count) => return self.placed(reach, count),
                    Taken::Nothing(answer) => return answer,
                }
            }
        };
        let length = frame.len() as u64;
        if length <= self.room {
            return match write_at(reach, &self.segments, 0, &frame) {
                Ok(()) => self.placed(reach, frame.len()),
                // Lost, with the first of the chains, one of which is not in memory.
                Err(_) => served(0, 0),
            };
        }
        if last == Last::Unknown {
            self.held = Some(frame);
            return Answer::More;
        }
        if self.may_wait_for(length) {
            self.held = Some(frame);
            return Answer::Short;
        }
        // Lost as on any network: the driver has no room for it, all its chains together.
        self.patience = PATIENCE;
        Answer::Retry
    }

    /// Whether it is worth to wait until the driver has so much room: it has had, and was not waited for too often.
    fn may_wait_for(&mut self, room: u64) -> bool {
        let worth = self.patience > 0 && self.most >= room;
        self.patience = self.patience.saturating_sub(1);
        worth
    }

    /// A frame of `count` bytes, its header included, lies in the chains.
    fn placed<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, count: usize) -> Answer {
        self.large = count > SMALL;
        self.patience = PATIENCE;
        let mut left = count as u64;
        let used = self.rooms.iter().take_while(|room| {
            let needed = left > 0;
            left = left.saturating_sub(**room);
            needed
        });
        // At most the queue's size.
        let number = used.count() as u16;
        // The first chain has room for the header. If it is not in memory any more, that is the driver's loss.
        let _ = write_at(reach, &self.segments, NUM_BUFFERS, &number.to_le_bytes());
        served(count, count)
    }

    /// Takes the next frame from the wire.
    fn take<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>) -> Taken {
        let taken = match &self.line.wire {
            Wire::Stream(stream) => match stream.take() {
                Came::Frame(frame) => {
                    let mut whole = vec![0; HEADER as usize];
                    whole.extend(frame);
                    Taken::Held(whole)
                }
                Came::Nothing | Came::Over(None) => Taken::Nothing(Answer::Later),
                Came::Over(Some(error)) => {
                    // The guest is to know that nothing comes any more.
                    self.link.cut(Cause::WIRE);
                    Taken::Nothing(Answer::Gone(error))
                }
            },
            Wire::Tap(_) | Wire::Frames(_) => self.read(reach),
        };
        match taken {
            // It was on the wire, and there was no link.
            Taken::Held(_) | Taken::Placed(_) if self.link.state() == LinkState::Down => {
                Taken::Nothing(Answer::Retry)
            }
            Taken::Held(frame) if !self.wants(&frame) => Taken::Nothing(Answer::Retry),
            Taken::Placed(count) if !self.wants_placed(reach, count) => {
                Taken::Nothing(Answer::Retry)
            }
            taken => taken,
        }
    }

    /// Whether the driver wants a frame that lies elsewhere, behind its header.
    fn wants(&mut self, whole: &[u8]) -> bool {
        let frame = whole.get(HEADER as usize..).unwrap_or_default();
        self.sieve.wants(frame)
    }

    /// Whether it wants one of `count` bytes, its header included, that lies in the chains. Who changes it meanwhile changes what is
    /// its own.
    fn wants_placed<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        count: usize,
    ) -> bool {
        if self.sieve.is_open() {
            return true;
        }
        let mut begin = [0; HEADER as usize + LOOKED_AT];
        let there = count.min(begin.len());
        let begin = begin.get_mut(..there).unwrap_or_default();
        // What is not in memory any more is nobody's frame.
        read_from(reach, &self.segments, begin).is_err() || self.wants(begin)
    }

    /// Reads a frame into the chains, and what they have no room for into the spare.
    fn read<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>) -> Taken {
        let Self {
            line,
            segments,
            spare,
            room,
            ..
        } = self;
        let needed = LARGEST.saturating_sub(*room) as usize;
        let rest = spare.get_mut(..needed).unwrap_or_default();
        let read = with_slices(reach, segments, Permissions::Write, |slices| {
            vectored::read_with(line.wire.as_fd(), slices, rest)
        });
        let count = match read {
            Ok(Ok(count)) if count as u64 > HEADER => count,
            // No frame is that short: the other end is gone.
            Ok(Ok(_)) => return Taken::Nothing(Answer::Later),
            Ok(Err(error)) => {
                return Taken::Nothing(match error.kind() {
                    io::ErrorKind::WouldBlock => Answer::Later,
                    io::ErrorKind::Interrupted => Answer::Retry,
                    // More pieces than a system call takes.
                    io::ErrorKind::InvalidInput => served(0, 0),
                    _ => Answer::Gone(error),
                });
            }
            // A buffer that is not in memory costs itself.
            Err(_) => return Taken::Nothing(served(0, 0)),
        };
        let Some(over) = (count as u64).checked_sub(*room).filter(|over| *over > 0) else {
            return Taken::Placed(count);
        };
        // The chains hold its beginning, of which the driver knows nothing yet.
        let mut frame = vec![0; *room as usize];
        match read_from(reach, segments, &mut frame) {
            Ok(()) => {
                frame.extend(rest.iter().take(over as usize));
                Taken::Held(frame)
            }
            Err(_) => Taken::Nothing(Answer::Retry),
        }
    }
}

impl<A> Handler<A> for Merger {
    fn name(&self) -> String {
        "net-rx".to_owned()
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.line.wire.as_fd().as_raw_fd())
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let length = chain.writable().len();
        if length < HEADER {
            self.begin_anew();
            return Answer::Unanswerable;
        }
        self.segments.extend(chain.writable().pieces());
        self.rooms.push(length);
        self.room = self.room.saturating_add(length);
        self.answer(reach, Last::Unknown)
    }

    fn no_more<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>) -> Answer {
        self.answer(reach, Last::Yes)
    }
}

/// The `length` bytes of `segments` from byte `from` on, none of them empty.
fn pieces(segments: &[Segment], from: u64, length: u64) -> impl Iterator<Item = Segment> {
    let (mut skip, mut left) = (from, length);
    segments.iter().filter_map(move |segment| {
        let whole = u64::from(segment.length);
        let skipped = skip.min(whole);
        skip = skip.saturating_sub(skipped);
        let here = left.min(whole.saturating_sub(skipped));
        left = left.saturating_sub(here);
        // A segment does not wrap, and what is here is at most its length.
        let address = segment.address.wrapping_add(skipped);
        (here > 0).then_some(Segment {
            address,
            length: here as u32,
        })
    })
}

/// Writes `data` at byte `at` of `segments`.
fn write_at<M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    segments: &[Segment],
    at: u64,
    data: &[u8],
) -> Result<(), GuestMemoryError> {
    let mut rest = data;
    for piece in pieces(segments, at, data.len() as u64) {
        let (here, later) = rest
            .split_at_checked(piece.length as usize)
            .unwrap_or((rest, &[]));
        reach.write(here, piece.address)?;
        rest = later;
    }
    Ok(())
}

/// Reads back the first bytes of `segments`, as many as `data` has.
fn read_from<M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    segments: &[Segment],
    data: &mut [u8],
) -> Result<(), GuestMemoryError> {
    let mut rest = &mut *data;
    for piece in pieces(segments, 0, rest.len() as u64) {
        let Some((here, later)) = rest.split_at_mut_checked(piece.length as usize) else {
            break;
        };
        reach.read_back(here, piece.address)?;
        rest = later;
    }
    Ok(())
}
