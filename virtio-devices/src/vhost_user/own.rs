// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of the back end's own: "Back-end message types".

use std::io::{self, ErrorKind};
use std::time::Instant;

use super::channel::Channel;
use super::message::{
    CONFIG_CHANGE, HEADER, Header, LONGEST, NEED_REPLY, REPLY, VERSION, VERSION_MASK,
};

/// Reads a request of the back end's own and answers it, if it wants that: whether the configuration has changed.
pub(super) fn answer(own: &Channel, end: Instant) -> io::Result<bool> {
    let (mut head, mut files) = ([0; HEADER], Vec::new());
    own.receive(&mut head, &mut files, end)?;
    let header = Header::of(head);
    if header.size > LONGEST || header.flags & (VERSION_MASK | REPLY) != VERSION {
        return Err(ErrorKind::InvalidData.into());
    }
    own.receive(&mut vec![0; header.size as usize], &mut files, end)?;
    let changed = header.request == CONFIG_CHANGE;
    if header.flags & NEED_REPLY != 0 {
        let answer = Header {
            flags: VERSION | REPLY,
            size: 8,
            ..header
        };
        let code = u64::from(!changed);
        own.send(
            &[&answer.bytes()[..], &code.to_ne_bytes()].concat(),
            &[],
            end,
        )?;
    }
    Ok(changed)
}
