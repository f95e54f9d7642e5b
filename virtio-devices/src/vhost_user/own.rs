// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of the back end's own: "Back-end message types".

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::channel::Channel;
use super::message::{
    CONFIG_CHANGE, HEADER, Header, LONGEST, NEED_REPLY, REPLY, VERSION, VERSION_MASK,
};
use super::translation::{BACKEND_IOTLB, Kind, Message};

/// A request that has come.
pub(super) struct Asked {
    header: Header,
    pub(super) what: What,
}

/// What it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The configuration has changed.
    Config,
    /// Nobody knows where an address leads.
    Miss(Message),
    /// An address does not lead where it should.
    AccessFail(Message),
    /// Nothing that we know.
    Other,
}

/// Reads a request.
pub(super) fn hear(own: &Channel, end: Instant) -> io::Result<Asked> {
    let (mut head, mut files) = ([0; HEADER], Vec::new());
    own.receive(&mut head, &mut files, end)?;
    let header = Header::of(head);
    if header.size > LONGEST || header.flags & (VERSION_MASK | REPLY) != VERSION {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; header.size as usize];
    own.receive(&mut payload, &mut files, end)?;
    let what = match header.request {
        CONFIG_CHANGE => What::Config,
        BACKEND_IOTLB => match Message::of(&payload) {
            Some(message) if message.kind == Kind::Miss => What::Miss(message),
            Some(message) if message.kind == Kind::AccessFail => What::AccessFail(message),
            _ => return Err(ErrorKind::InvalidData.into()),
        },
        _ => What::Other,
    };
    Ok(Asked { header, what })
}

/// Whether something was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Refused,
}

impl Asked {
    /// Answers, if that is wanted.
    pub(super) fn answer(&self, own: &Channel, outcome: Outcome, end: Instant) -> io::Result<()> {
        if self.header.flags & NEED_REPLY == 0 {
            return Ok(());
        }
        let answer = Header {
            flags: VERSION | REPLY,
            size: 8,
            ..self.header
        };
        let code: u64 = match outcome {
            Outcome::Done => 0,
            Outcome::Refused => 1,
        };
        let message = [&answer.bytes()[..], &code.to_ne_bytes()].concat();
        own.send(&message, &[], end)
    }
}
