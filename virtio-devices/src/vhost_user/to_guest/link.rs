// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A connection to the other machine's VMM: messages in whole, what they mean for us, and what is wrong with them.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::shared::Shared;
use super::table;
use crate::patience::end_of;
use crate::vhost_user::back_end::NO_FILE;
use crate::vhost_user::back_end::rings::event;
use crate::vhost_user::channel::Channel;
use crate::vhost_user::message::{
    HEADER, Header, LONGEST, Protocol, REPLY, Request, VERSION, VERSION_MASK,
};
use vmm_sys_util::eventfd::EventFd;

/// How long an answer may take to be sent. A socket holds far more answers than a VMM waits for.
const PATIENCE: Duration = Duration::from_millis(200);

/// What of the protocol can be carried: what needs no further files.
const CARRIED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG);

/// Bytes of the longest message.
pub(super) const MOST: usize = HEADER + LONGEST as usize;

/// Why a connection to the other machine's VMM has ended.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It hung up.
    #[error("it has hung up")]
    Gone,
    /// The driver in this guest wants no connection any more.
    #[error("the guest's driver gave it up")]
    Driver,
    /// The host.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// Not a message of this protocol.
    #[error("it sent {asked} with flags {flags:#x} and {length} bytes, which is no message")]
    Message {
        /// What it asked.
        asked: Request,
        /// Flags.
        flags: u32,
        /// Bytes of its payload.
        length: u32,
    },
    /// Files where there can be none, or not as many.
    #[error("it sent {asked} with {files} files")]
    Files {
        /// What it asked.
        asked: Request,
        /// How many files.
        files: usize,
    },
    /// A queue that there is not.
    #[error("it sent {asked} for queue {queue} of {queues}")]
    Queue {
        /// What it asked.
        asked: Request,
        /// Which queue.
        queue: u64,
        /// How many there can be.
        queues: u16,
    },
    /// A file that is no event.
    #[error("it sent {asked} with a file that is no event: {source}")]
    Event {
        /// What it asked.
        asked: Request,
        /// Why.
        source: io::Error,
    },
    /// A table of memory that makes no sense.
    #[error("it sent SET_MEM_TABLE with {length} bytes and {files} files")]
    Table {
        /// Bytes.
        length: usize,
        /// Files.
        files: usize,
    },
    /// Memory that cannot be shown.
    #[error("it sent SET_MEM_TABLE with region {index} {why}")]
    Region {
        /// Which one.
        index: usize,
        /// Why.
        why: RegionError,
    },
    /// The program in this guest sent what is no answer.
    #[error("the guest's program sent {length} bytes that are no answer")]
    Answer {
        /// How many.
        length: usize,
    },
}

/// Why a region cannot be shown.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// Empty, or behind the end of all numbers.
    #[error("of {length:#x} bytes from {offset:#x}")]
    Range {
        /// First byte in its file.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Not whole pages.
    #[error("of {length:#x} bytes from {offset:#x}, which are not whole pages")]
    Pages {
        /// First byte in its file.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Not in memory, or it could be made shorter while it is used.
    #[error("in a file that is not in memory or not sealed against shrinking")]
    Unsealed,
    /// Behind the end of its file.
    #[error("that ends at {end:#x} in a file of {size:#x} bytes")]
    Short {
        /// Bytes of the file.
        size: u64,
        /// The region's end in it.
        end: u64,
    },
    /// The window is too small.
    #[error("that does not fit: the window has {memory:#x} bytes (memory=)")]
    NoRoom {
        /// Bytes of the window.
        memory: u64,
    },
    /// The host would not map it.
    #[error("that the host does not map: {0}")]
    Host(io::Error),
}

/// A message without its files.
pub(super) type Message = Vec<u8>;

/// What a message is for us, beside being the driver's.
#[derive(Debug)]
pub(super) enum Meaning {
    /// Nothing.
    Carried,
    /// Queue `index` has this event for notifications from now on, or none.
    Kick { index: u16, event: Option<EventFd> },
}

/// A connection.
#[derive(Debug)]
pub(super) struct Link {
    channel: Channel,
    /// What has come of the next message.
    begun: Message,
    files: Vec<OwnedFd>,
}

impl Link {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        Ok(Self {
            channel: Channel::new(socket)?,
            begun: Vec::new(),
            files: Vec::new(),
        })
    }

    pub(super) fn fd(&self) -> RawFd {
        self.channel.as_raw_fd()
    }

    /// The next message that has come in whole, and its files; nothing if none has.
    pub(super) fn receive(&mut self) -> Result<Option<(Message, Vec<OwnedFd>)>, PeerError> {
        loop {
            let header = self.begun.first_chunk().map(|head| Header::of(*head));
            let whole = match header {
                None => HEADER,
                Some(header) => HEADER.saturating_add(length(&header)?),
            };
            let have = self.begun.len();
            if header.is_some() && have == whole {
                let message = std::mem::take(&mut self.begun);
                return Ok(Some((message, std::mem::take(&mut self.files))));
            }
            // At most `MOST`: the length was checked.
            self.begun.resize(whole, 0);
            let room = self.begun.get_mut(have..).unwrap_or_default();
            let got = self.channel.receive_some(room, &mut self.files);
            let got_bytes = *got.as_ref().unwrap_or(&0);
            self.begun.truncate(have.saturating_add(got_bytes));
            match got {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(PeerError::Gone);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Does what `message` means for us.
    pub(super) fn take(
        message: &[u8],
        mut files: Vec<OwnedFd>,
        shared: &Shared,
    ) -> Result<Meaning, PeerError> {
        let Some((head, payload)) = message.split_first_chunk() else {
            return Ok(Meaning::Carried);
        };
        let asked = Request(Header::of(*head).request);
        match asked {
            Request::SET_MEM_TABLE => {
                let regions = table::parse(payload, files, shared.memory())?;
                shared.set_regions(regions)?;
            }
            Request::SET_VRING_KICK | Request::SET_VRING_CALL | Request::SET_VRING_ERR => {
                let count = files.len();
                let wrong = PeerError::Files {
                    asked,
                    files: count,
                };
                let Ok(value) = payload.try_into().map(u64::from_ne_bytes) else {
                    return Err(wrong);
                };
                let file = match (value & NO_FILE == 0, count) {
                    (true, 1) => files.pop(),
                    (false, 0) => None,
                    _ => return Err(wrong),
                };
                let (queue, queues) = (value & !NO_FILE, shared.queues());
                let index = u16::try_from(queue).ok().filter(|index| *index < queues);
                let index = index.ok_or(PeerError::Queue {
                    asked,
                    queue,
                    queues,
                })?;
                // For errors there is no doorbell.
                let file = file.filter(|_| asked != Request::SET_VRING_ERR);
                let is_event = |file| event(file).ok_or(ErrorKind::InvalidInput.into());
                let event = file.map(is_event).transpose();
                let no_event = |source| PeerError::Event { asked, source };
                let event = event.map_err(no_event)?;
                match asked {
                    Request::SET_VRING_CALL => shared.set_call(index, event).map_err(no_event)?,
                    Request::SET_VRING_KICK => return Ok(Meaning::Kick { index, event }),
                    _ => {}
                }
            }
            _ if files.is_empty() => {}
            _ => {
                return Err(PeerError::Files {
                    asked,
                    files: files.len(),
                });
            }
        }
        Ok(Meaning::Carried)
    }

    /// Sends the program's answer.
    pub(super) fn send(&self, mut answer: Message, queues: u16) -> Result<(), PeerError> {
        limit(&mut answer, queues)?;
        let end = end_of(PATIENCE);
        match self.channel.send(&answer, &[], end) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(PeerError::Gone),
            sent => Ok(sent?),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.channel.end();
    }
}

/// Bytes of the payload that belongs to `header`, which must be a request's.
fn length(header: &Header) -> Result<usize, PeerError> {
    if header.size > LONGEST || header.flags & (VERSION_MASK | REPLY) != VERSION {
        return Err(PeerError::Message {
            asked: Request(header.request),
            flags: header.flags,
            length: header.size,
        });
    }
    Ok(header.size as usize)
}

/// Leaves in an answer only what can be carried: features of the protocol, and queues.
fn limit(answer: &mut [u8], queues: u16) -> Result<(), PeerError> {
    let length = answer.len();
    let senseless = PeerError::Answer { length };
    let Some((head, payload)) = answer.split_first_chunk_mut::<HEADER>() else {
        return Err(senseless);
    };
    let header = Header::of(*head);
    let is_answer = header.flags & (VERSION_MASK | REPLY) == VERSION | REPLY;
    if !is_answer || header.size as usize != payload.len() {
        return Err(senseless);
    }
    let Ok(word) = <&mut [u8; 8]>::try_from(payload) else {
        return Ok(());
    };
    let value = u64::from_ne_bytes(*word);
    let value = match Request(header.request) {
        Request::GET_PROTOCOL_FEATURES => value & CARRIED.bits(),
        Request::GET_QUEUE_NUM => value.min(queues.into()),
        _ => value,
    };
    *word = value.to_ne_bytes();
    Ok(())
}
