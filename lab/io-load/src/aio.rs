// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux's asynchronous file input and output, as far as it is needed: many requests in flight from one thread.
#![expect(
    unsafe_code,
    reason = "system calls that the standard library does not have"
)]

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::ptr::null_mut;

/// The bytes of one request: as long as the longest, and at a page.
#[repr(align(4096))]
pub(crate) struct Buffer(pub(crate) [u8; Buffer::LENGTH]);

impl Buffer {
    pub(crate) const LENGTH: usize = 8192;
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) write: bool,
    pub(crate) offset: u64,
    /// At most [`Buffer::LENGTH`].
    pub(crate) length: usize,
}

/// The kernel's control block (`struct iocb`, little endian).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Control {
    data: u64,
    key: u32,
    flags: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    more_flags: u32,
    event: u32,
}

const _: () = assert!(size_of::<Control>() == 64);

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    second: i64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;

/// Requests to one file, each in a slot with a buffer of its own.
pub(crate) struct Slots {
    context: libc::c_ulong,
    file: File,
    buffers: Vec<Buffer>,
    controls: Vec<Control>,
    asked: Vec<Request>,
    events: Vec<Event>,
    in_flight: usize,
}

impl Slots {
    /// Room for `depth` requests to `file`, which was opened with O_DIRECT: else the kernel serves them while it takes them.
    pub(crate) fn new(file: File, depth: usize) -> Result<Self> {
        let mut context = 0;
        let count = libc::c_long::try_from(depth).map_err(Error::other)?;
        // SAFETY: a count, and a place for what the kernel returns.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, count, &raw mut context) };
        if made != 0 {
            return Err(Error::last_os_error());
        }
        let nothing = Request {
            write: false,
            offset: 0,
            length: 0,
        };
        Ok(Self {
            context,
            file,
            buffers: (0..depth).map(|slot| Buffer([slot as u8; _])).collect(),
            controls: vec![Control::default(); depth],
            asked: vec![nothing; depth],
            events: vec![Event::default(); depth],
            in_flight: 0,
        })
    }

    /// How many requests are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Asks for `requests`, each in a slot that has none in flight.
    pub(crate) fn submit(&mut self, requests: &[(usize, Request)]) -> Result<()> {
        let mut list = Vec::with_capacity(requests.len());
        for &(slot, request) in requests {
            let buffer = &mut self.buffers[slot].0[..request.length];
            self.asked[slot] = request;
            self.controls[slot] = Control {
                data: slot as u64,
                opcode: if request.write { WRITE } else { READ },
                file: self.file.as_raw_fd() as u32,
                buffer: buffer.as_mut_ptr() as u64,
                length: request.length as u64,
                offset: i64::try_from(request.offset).map_err(Error::other)?,
                ..Control::default()
            };
            list.push(&raw mut self.controls[slot]);
        }
        let mut rest = list.as_mut_slice();
        while !rest.is_empty() {
            // SAFETY: `rest` points at control blocks, which name an open file and buffers that live, and are not touched,
            // until their event has come: they are ours, their slots are in use, and `drop` waits.
            let taken = unsafe {
                let count = rest.len() as libc::c_long;
                libc::syscall(libc::SYS_io_submit, self.context, count, rest.as_mut_ptr())
            };
            let taken = usize::try_from(taken).map_err(|_| Error::last_os_error())?;
            if taken == 0 {
                return Err(Error::other("the kernel took no request"));
            }
            self.in_flight += taken;
            rest = &mut rest[taken..];
        }
        Ok(())
    }

    /// Waits until at least one request is done, and puts the slots of those that are into `done`.
    pub(crate) fn wait(&mut self, done: &mut Vec<usize>) -> Result<()> {
        done.clear();
        // SAFETY: room for as many events as are asked for; no time-out.
        let count = unsafe {
            let most = self.events.len() as libc::c_long;
            let events = self.events.as_mut_ptr();
            let never = null_mut::<libc::timespec>();
            libc::syscall(libc::SYS_io_getevents, self.context, 1, most, events, never)
        };
        let count = usize::try_from(count).map_err(|_| Error::last_os_error())?;
        for event in &self.events[..count] {
            self.in_flight -= 1;
            let slot = event.data as usize;
            let asked = self.asked[slot];
            if event.result != asked.length as i64 {
                let result = event.result;
                return Err(Error::other(format!("{asked:?} came to {result}")));
            }
            done.push(slot);
        }
        Ok(())
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: our context; the call waits for what is in flight.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}
