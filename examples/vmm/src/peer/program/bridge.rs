// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between the device and a back end that expects a socket: messages either way, with the files that the device has in place
//! of those that its VMM kept.

use super::function::{CONFIG_VECTOR, Function, RECEIVE, RECEIVE_VECTOR};
use super::ring::BUFFER;
use super::{ProgramError, watch};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of a message's head: request, flags, size.
const HEADER: usize = 12;
/// Words of a region in SET_MEM_TABLE: the guest's address, length, the VMM's address, offset in its file.
const REGION: usize = 32;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
/// In the payload of SET_VRING_KICK and its like: there is no file.
const NO_FILE: u64 = 1 << 8;
/// Carries what one connection brings.
#[derive(Debug)]
pub struct Bridge {
    function: Function,
    /// To the back end.
    socket: UnixStream,
    /// By queue: written by the back end for a doorbell.
    calls: Vec<Option<EventFd>>,
    /// Written by the back end for nobody: errors have no doorbell.
    errors: EventFd,
    /// Watches the socket, vectors, and calls, which have the numbers of their queues.
    epoll: Epoll,
}

/// What is watched beside calls.
const SOCKET: u64 = 1 << 32;
const VECTOR: u64 = 2 << 32;

impl Bridge {
    /// Between `function` and the back end at the other end of `socket`.
    pub fn new(function: Function, socket: UnixStream) -> Result<Self, ProgramError> {
        let epoll = Epoll::new()?;
        watch(&epoll, &socket, SOCKET)?;
        for vector in [CONFIG_VECTOR, RECEIVE_VECTOR] {
            watch(&epoll, function.vector(vector)?, VECTOR)?;
        }
        Ok(Bridge {
            calls: (0..function.queues()).map(|_| None).collect(),
            function,
            socket,
            errors: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            epoll,
        })
    }

    /// Waits until the other machine has connected.
    pub fn wait(function: &Function) -> Result<(), ProgramError> {
        let changed = function.vector(CONFIG_VECTOR)?;
        let epoll = Epoll::new()?;
        watch(&epoll, changed, VECTOR)?;
        function.want();
        while !function.is_connected() {
            super::wait(&epoll, None)?;
            // Before looking. An error means that there was none.
            let _ = changed.read();
        }
        Ok(())
    }

    /// Carries until either end hangs up, and gives the device back.
    pub fn run(mut self) -> Result<(), ProgramError> {
        let carried = self.carry();
        self.function.leave();
        carried
    }

    fn carry(&mut self) -> Result<(), ProgramError> {
        loop {
            while let Some((index, message)) = self.function.receive.take()? {
                self.tell(message)?;
                self.function.receive.offer(index, &[])?;
                self.function.notify(RECEIVE);
            }
            if !self.function.is_connected() {
                return Ok(());
            }
            for source in super::wait(&self.epoll, None)? {
                match source {
                    SOCKET if !self.answer()? => return Ok(()),
                    SOCKET => {}
                    VECTOR => {
                        // Both: each is looked at again. An error means that it was the other.
                        for vector in [CONFIG_VECTOR, RECEIVE_VECTOR] {
                            let _ = self.function.vector(vector)?.read();
                        }
                    }
                    _ => self.call(source)?,
                }
            }
        }
    }

    /// The back end has served something of queue `index`.
    fn call(&self, index: u64) -> Result<(), ProgramError> {
        let index = u16::try_from(index).unwrap_or(u16::MAX);
        match self.calls.get(usize::from(index)) {
            Some(Some(call)) if call.read().is_ok() => self.function.ring(index),
            _ => Ok(()),
        }
    }

    /// Gives a message to the back end, with files.
    fn tell(&mut self, mut message: Vec<u8>) -> Result<(), ProgramError> {
        let files = self.files(&mut message)?;
        let sent = self.socket.send_with_fds(&[&message[..]], &files);
        let sent = sent.map_err(io::Error::from)?;
        self.socket
            .write_all(message.get(sent..).unwrap_or_default())?;
        Ok(())
    }

    /// The files that belong to a message, which may have to say something else of them.
    fn files(&mut self, message: &mut [u8]) -> Result<Vec<RawFd>, ProgramError> {
        let Some((head, payload)) = message.split_first_chunk_mut::<HEADER>() else {
            return Err(ProgramError::Wrong("brought half a message"));
        };
        let [a, b, c, d, ..] = *head;
        let request = u32::from_ne_bytes([a, b, c, d]);
        match request {
            SET_MEM_TABLE => {
                let regions = place_regions(payload, self.function.memory);
                Ok(vec![self.function.resource.as_raw_fd(); regions])
            }
            SET_VRING_KICK | SET_VRING_CALL | SET_VRING_ERR => {
                let value = <[u8; 8]>::try_from(&*payload).map_or(NO_FILE, u64::from_ne_bytes);
                let index = u16::try_from(value & !NO_FILE).unwrap_or(u16::MAX);
                if value & NO_FILE != 0 {
                    return Ok(Vec::new());
                }
                Ok(vec![match request {
                    SET_VRING_KICK => self.function.notification(index)?.as_raw_fd(),
                    SET_VRING_CALL => {
                        let place = self.calls.get_mut(usize::from(index));
                        let place = place.ok_or(ProgramError::Wrong("has a queue too many"))?;
                        let call = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                        // The back end closes the one before, too, and so it is not watched any more.
                        watch(&self.epoll, &call, index.into())?;
                        place.insert(call).as_raw_fd()
                    }
                    _ => self.errors.as_raw_fd(),
                }])
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Carries an answer to the other machine. Whether there was one, and not the end.
    fn answer(&mut self) -> Result<bool, ProgramError> {
        let mut head = [0; HEADER];
        let [first, rest @ ..] = &mut head;
        if self.socket.read(std::slice::from_mut(first))? == 0 {
            return Ok(false);
        }
        // The back end is in this process, and sends messages in whole.
        self.socket.read_exact(rest)?;
        let [.., s0, s1, s2, s3] = head;
        let size = u32::from_ne_bytes([s0, s1, s2, s3]) as usize;
        let whole = HEADER.saturating_add(size);
        if whole > BUFFER as usize {
            return Err(ProgramError::Wrong("is given an answer that is too long"));
        }
        let mut message = head.to_vec();
        message.resize(whole, 0);
        self.socket
            .read_exact(message.get_mut(HEADER..).unwrap_or_default())?;
        self.function.send(&message)?;
        Ok(true)
    }
}

/// Has a table's regions lie where the device shows them: each behind the one before, with room for what is before it in its
/// own file; `memory` is where the first would begin in ours. Returns how many there are.
fn place_regions(payload: &mut [u8], memory: u64) -> usize {
    let Some((_, regions)) = payload.split_first_chunk_mut::<8>() else {
        return 0;
    };
    let (regions, _) = regions.as_chunks_mut::<REGION>();
    let mut free = memory;
    for region in &mut *regions {
        let (words, _) = region.as_chunks_mut::<8>();
        let [_, length, _, offset] = words else {
            continue;
        };
        let place = free.wrapping_add(u64::from_ne_bytes(*offset));
        free = place.wrapping_add(u64::from_ne_bytes(*length));
        *offset = place.to_ne_bytes();
    }
    regions.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_lie_one_behind_the_other() {
        let words = [
            2u64, 0x10_0000, 0x2000, 0x7000, 0, 0, 0x3000, 0x5000, 0x4000,
        ];
        let mut raw: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(place_regions(&mut raw, 0x20_0000), 2);
        let words = [
            2u64, 0x10_0000, 0x2000, 0x7000, 0x20_0000, 0, 0x3000, 0x5000, 0x20_6000,
        ];
        let expected: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(raw, expected);
        assert_eq!(place_regions(&mut [], 0), 0);
        assert_eq!(place_regions(&mut [0; 39], 0), 0);
    }
}
