// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One port: bytes to the guest, bytes from the guest.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemory;

use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, Served};

/// Bytes that one chain gets at most.
const MOST_IN: u64 = 4096;
/// Bytes of one chain that are let out. No driver sends more at once; what is beyond is lost.
const MOST_OUT: u64 = 1 << 20;

/// Bytes for the guest: a file that does not wait, and says when there is more.
pub trait Input: Read + AsRawFd + Send {}

impl<T: Read + AsRawFd + Send> Input for T {}

/// A port and what is behind it on the host.
pub struct Port {
    name: String,
    input: Option<Box<dyn Input>>,
    output: Box<dyn Write + Send>,
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Port {
    /// A port that the guest knows by `name`: what the guest writes goes to `output`, which must not wait for long;
    /// what it cannot take (`WouldBlock`) is lost.
    pub fn new(name: impl Into<String>, output: impl Write + Send + 'static) -> Self {
        Self {
            name: name.into(),
            input: None,
            output: Box::new(output),
        }
    }

    /// Gives the guest what `input` has.
    #[must_use]
    pub fn with_input(mut self, input: impl Input + 'static) -> Self {
        self.input = Some(Box::new(input));
        self
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Takes a byte outside of any queue (5.3.6.1). Nobody can be told if it is lost.
    pub(super) fn emergency(&mut self, byte: u8) {
        let _ = self.output.write_all(&[byte]);
        let _ = self.output.flush();
    }

    /// Reads into `data`: nothing if there is nothing now or ever again.
    fn take(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let Some(input) = &mut self.input else {
            return Ok(0);
        };
        loop {
            match input.read(data) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                result => return result,
            }
        }
    }
}

/// A panic of the output's own left nothing half done here.
pub(super) fn lock(port: &Mutex<Port>) -> MutexGuard<'_, Port> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fills chains with input.
pub(super) struct ToGuest {
    number: usize,
    port: Arc<Mutex<Port>>,
}

impl ToGuest {
    pub(super) fn new(number: usize, port: Arc<Mutex<Port>>) -> Self {
        Self { number, port }
    }
}

impl<A> Handler<A> for ToGuest {
    fn name(&self) -> String {
        format!("con-in{}", self.number)
    }

    fn source(&self) -> Option<RawFd> {
        lock(&self.port)
            .input
            .as_ref()
            .map(|input| input.as_raw_fd())
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let mut data = [0; MOST_IN as usize];
        let room = chain.writable().split_at(MOST_IN).0;
        if room.is_empty() {
            return Answer::Done(Served::default());
        }
        let data = data.get_mut(..room.len() as usize).unwrap_or_default();
        match lock(&self.port).take(data) {
            Ok(0) => Answer::Later,
            Ok(count) => {
                // A buffer that is not in memory loses what came; the driver is told what it got.
                let came = data.get(..count).unwrap_or_default();
                let written = room.write(reach, came).unwrap_or(0);
                Answer::Done(Served {
                    written: written as u32,
                    moved: count as u64,
                    trouble: None,
                })
            }
            Err(error) => Answer::Gone(error),
        }
    }
}

/// Lets out what chains hold.
pub(super) struct FromGuest {
    number: usize,
    port: Arc<Mutex<Port>>,
}

impl FromGuest {
    pub(super) fn new(number: usize, port: Arc<Mutex<Port>>) -> Self {
        Self { number, port }
    }
}

impl<A> Handler<A> for FromGuest {
    fn name(&self) -> String {
        format!("con-out{}", self.number)
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        let mut port = lock(&self.port);
        let mut rest = chain.readable().split_at(MOST_OUT).0;
        let mut served = Served::default();
        let mut data = [0; 4096];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(data.len() as u64);
            let data = data.get_mut(..now.len() as usize).unwrap_or_default();
            if now.read(reach, data).is_err() {
                break;
            }
            match port.output.write_all(data) {
                Ok(()) => served.moved = served.moved.saturating_add(data.len() as u64),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    served.trouble = Some(error);
                    break;
                }
            }
            rest = later;
        }
        match port.output.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                served.trouble.get_or_insert(error);
            }
            _ => {}
        }
        Answer::Done(served)
    }
}
