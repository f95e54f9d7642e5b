// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames on a stream socket, each behind its length: what passt and QEMU's `-netdev stream` speak.
//!
//! ```text
//!   length:32, big-endian    frame    length:32    frame ...
//! ```
//!
//! With passt at the other end, a guest has a network that needs no privilege.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a length.
const LENGTH: usize = 4;
/// The largest frame: 64 KiB of IP, an Ethernet header with tag.
const LARGEST: usize = (1 << 16) + 18;
/// Bytes that are read at once.
const PART: usize = 64 << 10;
/// How long the rest of a frame may take that has begun to be sent.
const PATIENCE: Duration = Duration::from_millis(100);

/// A connected socket.
#[derive(Debug)]
pub struct FrameStream {
    pub(super) socket: UnixStream,
    incoming: Mutex<Incoming>,
    /// What is left of a frame whose beginning was sent.
    outgoing: Mutex<VecDeque<u8>>,
}

#[derive(Debug, Default)]
struct Incoming {
    bytes: VecDeque<u8>,
    /// The other end is gone, or speaks something else.
    over: bool,
}

/// What came from a stream.
#[derive(Debug)]
pub(super) enum Came {
    /// A frame.
    Frame(Vec<u8>),
    /// No whole one yet.
    Nothing,
    /// Nothing any more, and why, the first time.
    Over(Option<io::Error>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FrameStream {
    /// Frames on `socket`, which is connected.
    ///
    /// # Errors
    ///
    /// The host's, if the socket cannot be told not to wait.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            incoming: Mutex::default(),
            outgoing: Mutex::default(),
        })
    }

    /// The next frame.
    pub(super) fn take(&self) -> Came {
        let mut incoming = lock(&self.incoming);
        loop {
            if incoming.over {
                return Came::Over(None);
            }
            match incoming.frame() {
                Ok(Some(frame)) => return Came::Frame(frame),
                Ok(None) => {}
                Err(error) => return self.end(&mut incoming, error),
            }
            let mut part = vec![0; PART];
            match (&self.socket).read(&mut part) {
                Ok(0) => return self.end(&mut incoming, ErrorKind::UnexpectedEof.into()),
                Ok(count) => incoming.bytes.extend(part.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Came::Nothing,
                Err(error) => return self.end(&mut incoming, error),
            }
        }
    }

    fn end(&self, incoming: &mut Incoming, error: io::Error) -> Came {
        incoming.over = true;
        // What cannot be understood is not listened to; if it is gone already, that is as well.
        let _ = self.socket.shutdown(Shutdown::Both);
        Came::Over(Some(error))
    }

    /// Sends a frame whole, or not at all: `WouldBlock` if there is no room.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut rest = lock(&self.outgoing);
        self.flush(&mut rest)?;
        if !rest.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        // The caller has checked that it is no larger than a frame can be.
        rest.extend((frame.len() as u32).to_be_bytes());
        rest.extend(frame);
        let whole = rest.len();
        self.flush(&mut rest)?;
        if rest.len() == whole {
            rest.clear();
            return Err(ErrorKind::WouldBlock.into());
        }
        // Begun, it has to be ended, or the next would be taken for the rest of it. What is left after that waits for
        // the next frame.
        let begun = Instant::now();
        while !rest.is_empty() && begun.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
            self.flush(&mut rest)?;
        }
        Ok(())
    }

    fn flush(&self, rest: &mut VecDeque<u8>) -> io::Result<()> {
        while !rest.is_empty() {
            match (&self.socket).write(rest.make_contiguous()) {
                Ok(count) => drop(rest.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Incoming {
    /// Takes the first frame, if all of it is there.
    fn frame(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut length = [0; LENGTH];
        if self.bytes.len() < LENGTH {
            return Ok(None);
        }
        for (byte, place) in self.bytes.iter().zip(&mut length) {
            *place = *byte;
        }
        let length = u32::from_be_bytes(length) as usize;
        if !(1..=LARGEST).contains(&length) {
            let text = format!("a frame of {length} bytes");
            return Err(io::Error::new(ErrorKind::InvalidData, text));
        }
        if self.bytes.len() < length.saturating_add(LENGTH) {
            return Ok(None);
        }
        self.bytes.drain(..LENGTH);
        Ok(Some(self.bytes.drain(..length).collect()))
    }
}
