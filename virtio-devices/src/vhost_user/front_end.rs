// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What we ask a back end, and what we believe of its answers.
//!
//! The first thing that goes wrong ends the connection: after it nobody knows what the other end believes.
//!
//! Ours and not rust-vmm's `vhost`, whose front end waits for an answer as long as it takes: it asks the socket again
//! when a time limit set on it has passed. The tests have that crate at the other end.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::address_space::{Astray, Space};
use super::channel::{Channel, Waiting};
use super::error::BackEndError;
use super::memory::SharedMemory;
use super::message::{
    HEADER, Header, NEED_REPLY, PROTOCOL_FEATURES, Payload, Protocol, REPLY, Request, VERSION,
    VERSION_MASK,
};
use super::own::{self, Outcome, What};
use super::queues::Started;
use crate::features::Features;
use crate::patience::end_of;

/// What a back end can do that we make use of.
const WANTED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIG)
    .union(Protocol::INFLIGHT_SHMFD);

/// What became of a request of the back end's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// The configuration has changed.
    ConfigChanged,
    /// An access leads nowhere.
    Astray(Astray),
    /// It was answered, and that is all.
    Answered,
}

/// How long a back end has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For each answer.
    pub(super) each: Duration,
    /// For all of them, where somebody waits for us meanwhile.
    pub(super) all: Option<Instant>,
}

impl Patience {
    fn end(self) -> Instant {
        let end = end_of(self.each);
        self.all.map_or(end, |all| all.min(end))
    }
}

impl From<Duration> for Patience {
    fn from(each: Duration) -> Self {
        Self { each, all: None }
    }
}

/// A connection to a back end.
#[derive(Debug)]
pub(super) struct FrontEnd {
    channel: Channel,
    /// Our end of the channel for the back end's own requests.
    own: Option<Channel>,
    patience: Patience,
    features: u64,
    protocol: Protocol,
    /// Where the device's addresses lead, where they are translated.
    space: Space,
    started: Started,
    over: bool,
}

impl FrontEnd {
    /// Settles with the back end at `socket` what both can do. It answers within `patience`, or is given up.
    pub(super) fn connect(socket: UnixStream, patience: Patience) -> Result<Self, BackEndError> {
        let first = |source| BackEndError::Host {
            asked: Request::GET_FEATURES,
            source,
        };
        let mut front = Self {
            channel: Channel::new(socket).map_err(first)?,
            own: None,
            patience,
            features: 0,
            protocol: Protocol::empty(),
            space: Space::default(),
            started: Started::default(),
            over: false,
        };
        front.features = front.number(Request::GET_FEATURES)?;
        if front.features & Features::VERSION_1.bits() == 0 {
            let what = "virtio 1 (VIRTIO_F_VERSION_1)";
            return Err(BackEndError::Lacks { what });
        }
        if front.features & PROTOCOL_FEATURES != 0 {
            let offered = front.number(Request::GET_PROTOCOL_FEATURES)?;
            let protocol = Protocol::from_bits_retain(offered) & WANTED;
            let settled = Payload::of(protocol.bits());
            front.tell(Request::SET_PROTOCOL_FEATURES, &settled, &[])?;
            front.protocol = protocol;
        }
        front.tell(Request::SET_OWNER, &Payload::default(), &[])?;
        if front.protocol.contains(Protocol::BACKEND_REQ) {
            front.open_own()?;
        }
        Ok(front)
    }

    fn open_own(&mut self) -> Result<(), BackEndError> {
        let asked = Request::SET_BACKEND_REQ_FD;
        let failed = |source| BackEndError::Host { asked, source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        self.tell(asked, &Payload::default(), &[theirs.as_fd()])?;
        self.own = Some(Channel::new(ours).map_err(failed)?);
        Ok(())
    }

    /// How long it has for an answer.
    pub(super) fn patience(&self) -> Duration {
        self.patience.each
    }

    /// From now on it has so long for an answer.
    pub(super) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience.into();
    }

    /// Whether the connection has ended.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// What was settled of the protocol.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The features that it offers, the protocol's among them.
    pub(super) fn all_features(&self) -> u64 {
        self.features
    }

    /// The virtio features that it offers, without those that are the protocol's.
    pub(super) fn features(&self) -> Features {
        Features::from_bits_retain(self.features & !PROTOCOL_FEATURES)
    }

    /// Whether it can be told where a device's addresses lead.
    pub(super) fn check_translations(&self) -> Result<(), BackEndError> {
        let lacks = |what| Err(BackEndError::Lacks { what });
        if !self.features().contains(Features::ACCESS_PLATFORM) {
            return lacks("translated addresses (VIRTIO_F_ACCESS_PLATFORM)");
        }
        if !self.protocol.contains(Protocol::REPLY_ACK) {
            return lacks(
                "acknowledgement (VHOST_USER_PROTOCOL_F_REPLY_ACK), which translated addresses need",
            );
        }
        if self.own.is_none() {
            return lacks(
                "channel of its own (VHOST_USER_PROTOCOL_F_BACKEND_REQ), which translated addresses need",
            );
        }
        Ok(())
    }

    pub(super) fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }

    pub(super) fn started_mut(&mut self) -> &mut Started {
        &mut self.started
    }

    /// How many queues it has, if it says.
    pub(super) fn queues(&mut self) -> Result<Option<u64>, BackEndError> {
        if !self.protocol.contains(Protocol::MQ) {
            return Ok(None);
        }
        self.number(Request::GET_QUEUE_NUM).map(Some)
    }

    /// The first `length` bytes of its configuration space, if it has that.
    pub(super) fn config(&mut self, length: u32) -> Result<Option<Vec<u8>>, BackEndError> {
        if !self.protocol.contains(Protocol::CONFIG) {
            return Ok(None);
        }
        let about = Payload::default().u32(0).u32(length).u32(0);
        let room = vec![0; length as usize];
        let asked = Request::GET_CONFIG;
        let payload = about.clone().bytes(&room);
        let answer = self.ask(asked, &payload, payload.as_slice().len())?;
        let (head, config) = answer.split_at(about.as_slice().len());
        // Offset and size as they were asked for; what its flags say has no meaning here.
        if head.get(..8) != about.as_slice().get(..8) {
            let (value, what) = (word(head), "offset and size that were asked for");
            return Err(self.end(BackEndError::Value { asked, value, what }));
        }
        Ok(Some(config.to_vec()))
    }

    /// Whether the back end has gone, or says what nobody asked for. To be called between requests.
    pub(super) fn look(&mut self) -> Result<(), BackEndError> {
        if self.over {
            return Err(BackEndError::Gone { asked: None });
        }
        match self.channel.look() {
            Waiting::Nothing => Ok(()),
            Waiting::Something => Err(self.end(BackEndError::Unasked)),
            Waiting::End => Err(self.end(BackEndError::Gone { asked: None })),
        }
    }

    /// Takes the next of the back end's own requests, if there is one.
    pub(super) fn own_request(
        &mut self,
        memory: &SharedMemory,
    ) -> Result<Option<Own>, BackEndError> {
        let heard = match &self.own {
            Some(own) if own.look() == Waiting::Something => own::hear(own, self.patience.end()),
            // It may do without that channel.
            _ => return Ok(None),
        };
        let Ok(asked) = heard else {
            return Err(self.end(BackEndError::Unasked));
        };
        let (outcome, own) = match asked.what {
            What::Config => (Outcome::Done, Own::ConfigChanged),
            What::Miss(message) => match self.missed(message, memory)? {
                None => (Outcome::Done, Own::Answered),
                Some(astray) => (Outcome::Refused, Own::Astray(astray)),
            },
            What::AccessFail(message) => (Outcome::Done, Own::Astray(message.into())),
            What::Other => (Outcome::Refused, Own::Answered),
        };
        let end = self.patience.end();
        let channel = self.own.as_ref();
        match channel.map_or(Ok(()), |channel| asked.answer(channel, outcome, end)) {
            Ok(()) => Ok(Some(own)),
            Err(_) => Err(self.end(BackEndError::Unasked)),
        }
    }

    /// What becomes readable when the back end has gone, and when it has a request of its own.
    pub(super) fn sources(&self) -> (RawFd, Option<RawFd>) {
        let own = self.own.as_ref().map(AsRawFd::as_raw_fd);
        (self.channel.as_raw_fd(), own)
    }

    /// Asks for a number.
    fn number(&mut self, asked: Request) -> Result<u64, BackEndError> {
        Ok(word(&self.ask(asked, &Payload::default(), 8)?))
    }

    /// Asks for an answer of `length` bytes.
    pub(super) fn ask(
        &mut self,
        asked: Request,
        payload: &Payload,
        length: usize,
    ) -> Result<Vec<u8>, BackEndError> {
        Ok(self.ask_for_files(asked, payload, length, 0)?.0)
    }

    pub(super) fn ask_for_files(
        &mut self,
        asked: Request,
        payload: &Payload,
        length: usize,
        expected: usize,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), BackEndError> {
        self.send(asked, payload, VERSION, &[])?;
        let answer = self.receive(asked, length, expected);
        answer.map_err(|error| self.end(error))
    }

    /// Tells something, and waits until it was heard, if the back end says so.
    pub(super) fn tell(
        &mut self,
        asked: Request,
        payload: &Payload,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), BackEndError> {
        if !self.protocol.contains(Protocol::REPLY_ACK) {
            return self.send(asked, payload, VERSION, files);
        }
        self.send(asked, payload, VERSION | NEED_REPLY, files)?;
        let answer = self.receive(asked, 8, 0).map_err(|error| self.end(error))?;
        match word(&answer.0) {
            0 => Ok(()),
            code => Err(self.end(BackEndError::Refused { asked, code })),
        }
    }

    fn send(
        &mut self,
        asked: Request,
        payload: &Payload,
        flags: u32,
        files: &[BorrowedFd<'_>],
    ) -> Result<(), BackEndError> {
        if self.over {
            return Err(BackEndError::Gone { asked: Some(asked) });
        }
        let header = Header {
            request: asked.0,
            flags,
            // No payload is longer than a page.
            size: payload.as_slice().len() as u32,
        };
        let message = [&header.bytes(), payload.as_slice()].concat();
        let end = self.patience.end();
        let sent = self.channel.send(&message, files, end);
        sent.map_err(|source| self.end(self.failed(asked, source)))
    }

    fn receive(
        &self,
        asked: Request,
        length: usize,
        expected: usize,
    ) -> Result<(Vec<u8>, Vec<OwnedFd>), BackEndError> {
        let end = self.patience.end();
        let (mut head, mut files) = ([0; HEADER], Vec::new());
        let fill = |bytes: &mut [u8], files: &mut Vec<OwnedFd>| {
            let received = self.channel.receive(bytes, files, end);
            received.map_err(|source| match source.kind() {
                ErrorKind::InvalidData => BackEndError::Files {
                    asked,
                    files: files.len(),
                    expected,
                },
                _ => self.failed(asked, source),
            })
        };
        fill(&mut head, &mut files)?;
        let header = Header::of(head);
        let flags = header.flags & (VERSION_MASK | REPLY);
        if header.request != asked.0 || flags != VERSION | REPLY {
            return Err(BackEndError::Answer {
                asked,
                message: header.request,
                flags: header.flags,
            });
        }
        if header.size as usize != length {
            return Err(BackEndError::Length {
                asked,
                length: header.size,
                expected: length,
            });
        }
        let mut answer = vec![0; length];
        fill(&mut answer, &mut files)?;
        if files.len() != expected {
            let files = files.len();
            return Err(BackEndError::Files {
                asked,
                files,
                expected,
            });
        }
        Ok((answer, files))
    }

    fn failed(&self, asked: Request, source: io::Error) -> BackEndError {
        match source.kind() {
            ErrorKind::TimedOut => BackEndError::Silent {
                asked,
                patience: self.patience.each,
            },
            ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                BackEndError::Gone { asked: Some(asked) }
            }
            _ => BackEndError::Host { asked, source },
        }
    }

    /// Ends the connection because of `error`.
    pub(super) fn end(&mut self, error: BackEndError) -> BackEndError {
        self.over = true;
        // Ended and not closed: whoever watches them goes on doing that.
        self.channel.end();
        if let Some(own) = &self.own {
            own.end();
        }
        error
    }
}

/// The first eight bytes of an answer that has them.
pub(super) fn word(bytes: &[u8]) -> u64 {
    bytes
        .first_chunk()
        .map_or(0, |first| u64::from_ne_bytes(*first))
}
