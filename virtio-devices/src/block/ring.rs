// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An io_uring over one file: reads, writes and flushes that are under way, by buffers of its own.
//!
//! ```text
//!   prepare --> fill --> start ... submit: one system call for all that was started
//!      ^                                     |
//!   release <-- bytes <-- finished <---------'   the eventfd says when
//! ```
//!
//! What is under way is between our buffers and the file, never guest memory: a driver that is reset, or that unmaps
//! a page, takes nothing away from under the kernel. No system call filter sees what a ring does, so the ring itself is
//! limited, before it can be used, to these three operations on this file.
#![expect(
    unsafe_code,
    reason = "the kernel is told where a buffer is, and uses it after the call has returned"
)]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bounce::Aligned;

/// Requests that can be under way at once.
pub(super) const ENTRIES: u32 = 64;
/// Bytes of the largest buffer: a ring holds at most 16 MiB.
pub(super) const LARGEST: usize = 256 << 10;

/// The only file: its place among those that are registered.
const FILE: Fixed = Fixed(0);

/// How often, and each time how long, a ring that is dropped waits for what is under way.
const LOOKS: u32 = 10;
const PATIENCE: Duration = Duration::from_millis(100);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Fill the buffer from the file.
    Read,
    /// Write the buffer to the file.
    Write,
    /// Put what was written on stable storage.
    Sync,
}

/// A buffer of the ring's, and what it is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u16);

impl Ticket {
    /// A small number, below [`ENTRIES`].
    pub(super) fn number(self) -> usize {
        self.0.into()
    }
}

#[derive(Debug)]
struct Place {
    buffer: Aligned,
    /// The kernel has its address.
    under_way: bool,
}

/// A ring.
pub(super) struct Ring {
    ring: IoUring,
    done: EventFd,
    places: Vec<Place>,
    free: Vec<Ticket>,
    under_way: usize,
    /// Started, and the kernel does not know, the first first.
    unsubmitted: VecDeque<Ticket>,
    /// The kernel takes nothing any more, and is told nothing: what it was not told of stays undone.
    broken: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("under_way", &self.under_way)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// A ring of `entries` over `file`.
    ///
    /// # Errors
    ///
    /// The host has no rings, has none that can be limited, or lets nobody have one.
    pub(super) fn new(file: &File, entries: u32) -> io::Result<Self> {
        let done = EventFd::new(EFD_NONBLOCK)?;
        let ring = IoUring::builder().setup_r_disabled().build(entries)?;
        if !ring.params().is_feature_ext_arg() {
            // It could not be waited for with patience.
            return Err(io::ErrorKind::Unsupported.into());
        }
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_eventfd(done.as_raw_fd())?;
        let registered = Flags::FIXED_FILE.bits();
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_allowed(registered),
            Restriction::sqe_flags_required(registered),
        ])?;
        submitter.register_enable_rings()?;
        let count = u16::try_from(entries).unwrap_or(u16::MAX);
        Ok(Self {
            ring,
            done,
            places: (0..count)
                .map(|_| Place {
                    buffer: Aligned::new(0),
                    under_way: false,
                })
                .collect(),
            free: (0..count).rev().map(Ticket).collect(),
            under_way: 0,
            unsubmitted: VecDeque::new(),
            broken: false,
        })
    }

    /// Readable after something has finished.
    pub(super) fn source(&self) -> RawFd {
        self.done.as_raw_fd()
    }

    /// How many are under way.
    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    /// A buffer of at least `length` bytes, at most [`LARGEST`]; `None` if all are taken, or none is so large.
    pub(super) fn prepare(&mut self, length: usize) -> Option<Ticket> {
        if length > LARGEST {
            return None;
        }
        let ticket = self.free.pop()?;
        if let Some(place) = self.places.get_mut(ticket.number())
            && place.buffer.bytes().len() < length
        {
            place.buffer = Aligned::new(length.next_power_of_two());
        }
        Some(ticket)
    }

    /// Gives a buffer back, unless the kernel has it.
    pub(super) fn release(&mut self, ticket: Ticket) {
        let idle = |place: &Place| !place.under_way;
        if self.places.get(ticket.number()).is_some_and(idle) && !self.free.contains(&ticket) {
            self.free.push(ticket);
        }
    }

    /// The first `length` bytes of a buffer; none while the kernel has it.
    pub(super) fn bytes(&mut self, ticket: Ticket, length: usize) -> &mut [u8] {
        match self.places.get_mut(ticket.number()) {
            Some(place) if !place.under_way => {
                place.buffer.bytes().get_mut(..length).unwrap_or_default()
            }
            _ => &mut [],
        }
    }

    /// Starts `operation` on the bytes `from..to` of a buffer, at `offset` of the file, once [`submit`](Self::submit)
    /// is called.
    ///
    /// # Errors
    ///
    /// The bytes are not there, or the kernel has the buffer, or the ring is full or broken.
    pub(super) fn start(
        &mut self,
        ticket: Ticket,
        operation: Operation,
        offset: u64,
        from: usize,
        to: usize,
    ) -> io::Result<()> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let bytes = self.bytes(ticket, to).get_mut(from..);
        let bytes = bytes.ok_or(io::ErrorKind::InvalidInput)?;
        let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let address = bytes.as_mut_ptr();
        let entry: Entry = match operation {
            Operation::Read => opcode::Read::new(FILE, address, length)
                .offset(offset)
                .build(),
            Operation::Write => opcode::Write::new(FILE, address, length)
                .offset(offset)
                .build(),
            Operation::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        };
        let entry = entry.user_data(ticket.0.into());
        let place = self.places.get_mut(ticket.number());
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: 1. The entry names `length` bytes from `address`, which are bytes of the place's buffer, or none. 2. That
        // buffer stays allocated and where it is until the operation has finished: it is replaced (`prepare`) only when
        // its ticket is free, which `release` makes it only when it is not under way; and who drops the ring waits for it,
        // or leaks it. 3. Nobody refers to it meanwhile: `bytes` gives it to nobody while it is under way.
        unsafe { self.ring.submission().push(&entry) }.map_err(|_| io::ErrorKind::ResourceBusy)?;
        place.under_way = true;
        // At most one for each place.
        self.under_way = self.under_way.wrapping_add(1);
        self.unsubmitted.push_back(ticket);
        Ok(())
    }

    /// Tells the kernel of all that was started: one system call, or none. `false`: it has no room now, and is to be told
    /// again.
    ///
    /// # Errors
    ///
    /// The host's, other than for now. What it was not told of is given up, and no more can be started.
    pub(super) fn submit(&mut self) -> io::Result<bool> {
        if self.unsubmitted.is_empty() {
            return Ok(true);
        }
        let said = self.ring.submit();
        self.told(said)?;
        Ok(self.unsubmitted.is_empty())
    }

    /// After a call that told the kernel of what was started: whether it did as it was asked, or not now.
    fn told(&mut self, said: io::Result<usize>) -> io::Result<bool> {
        let left = self.ring.submission().len();
        let taken = self.unsubmitted.len().saturating_sub(left);
        self.unsubmitted.drain(..taken);
        let Err(error) = said else { return Ok(true) };
        if error.raw_os_error() == Some(libc::ETIME) {
            return Ok(true);
        }
        match error.kind() {
            io::ErrorKind::Interrupted
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::ResourceBusy => Ok(false),
            _ => {
                self.give_up();
                Err(error)
            }
        }
    }

    /// Nobody calls the kernel again, so it never comes to know of what it does not know yet, and nothing uses those buffers.
    fn give_up(&mut self) {
        self.broken = true;
        for ticket in std::mem::take(&mut self.unsubmitted) {
            if let Some(place) = self.places.get_mut(ticket.number()) {
                place.under_way = false;
                self.under_way = self.under_way.saturating_sub(1);
            }
            self.release(ticket);
        }
    }

    /// The next that has finished, and how many bytes it moved.
    pub(super) fn finished(&mut self) -> Option<(Ticket, io::Result<usize>)> {
        loop {
            let entry = self.ring.completion().next()?;
            let Ok(ticket) = u16::try_from(entry.user_data()).map(Ticket) else {
                continue;
            };
            let Some(place) = self.places.get_mut(ticket.number()) else {
                continue;
            };
            if !std::mem::take(&mut place.under_way) {
                continue;
            }
            self.under_way = self.under_way.saturating_sub(1);
            let result = usize::try_from(entry.result())
                .map_err(|_| io::Error::from_raw_os_error(entry.result().wrapping_neg()));
            return Some((ticket, result));
        }
    }

    /// Tells the kernel of all that was started, and waits until something has finished, or for `patience`.
    ///
    /// # Errors
    ///
    /// As those of [`submit`](Self::submit), and from then on each time: what the kernel knows of is finished without a call, and
    /// whoever waits for that has to end it.
    pub(super) fn wait(&mut self, patience: Duration) -> io::Result<()> {
        if self.broken {
            std::thread::sleep(patience);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let time = Timespec::from(patience);
        let wait = SubmitArgs::new().timespec(&time);
        let said = self.ring.submitter().submit_with_args(1, &wait);
        if !self.told(said)? {
            std::thread::sleep(patience);
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for _ in 0..LOOKS {
            while self.finished().is_some() {}
            if self.under_way == 0 {
                break;
            }
            // Not by the ring: whoever drops it may be confined, and what the kernel was not told of it never does.
            std::thread::sleep(PATIENCE);
        }
        if self.under_way > 0 {
            // The kernel may still write there.
            std::mem::forget(std::mem::take(&mut self.places));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use super::*;

    /// A ring, if this host has any, which that of CI must.
    pub(in crate::block) fn ring(file: &File, size: u32) -> Option<Ring> {
        let ring = Ring::new(file, size).ok();
        let may_lack = std::env::var_os("CI").is_none();
        assert!(ring.is_some() || may_lack, "this host has no rings");
        if ring.is_none() {
            eprintln!("not tried: this host has no rings");
        }
        ring
    }

    /// The kernel's own refusal: more entries than it gives anybody.
    #[test]
    fn a_host_that_refuses_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        assert!(Ring::new(&file, 1 << 20).is_err());
    }

    /// What is asked of a ring beside its three operations, its file, and its registrations: all refused by the kernel.
    #[test]
    fn a_ring_can_do_nothing_else() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 512]).unwrap();
        let Some(mut ring) = ring(&file, 4) else {
            return;
        };
        let other = tempfile::tempfile().unwrap();
        let byte = 0u8;
        let other = io_uring::types::Fd(other.as_raw_fd());
        let entries = [
            opcode::Nop::new().build(),
            opcode::Write::new(other, &raw const byte, 1).build(),
            opcode::Fsync::new(other).build(),
            opcode::Close::new(other).build(),
        ];
        for entry in entries {
            // SAFETY: `byte` outlives the operation, which is refused, and waited for below.
            unsafe { ring.ring.submission().push(&entry) }.unwrap();
            ring.ring.submit_and_wait(1).unwrap();
            let refused = ring.ring.completion().next().unwrap();
            assert_eq!(refused.result(), -libc::EACCES, "{entry:?}");
        }
        let registered = ring.ring.submitter().register_files_update(0, &[other.0]);
        assert_eq!(registered.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }

    #[test]
    fn a_buffer_is_nobody_s_while_the_kernel_has_it() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 512]).unwrap();
        let Some(mut ring) = ring(&file, 1) else {
            return;
        };
        assert_eq!(ring.prepare(LARGEST + 1), None);
        let ticket = ring.prepare(512).unwrap();
        assert_eq!(ring.prepare(1), None);
        assert!(ring.start(ticket, Operation::Read, 0, 1, 0).is_err());
        ring.start(ticket, Operation::Read, 0, 0, 512).unwrap();
        assert!(ring.bytes(ticket, 512).is_empty());
        assert!(ring.start(ticket, Operation::Read, 0, 0, 512).is_err());
        ring.release(ticket);
        assert_eq!(ring.prepare(1), None);
        let mut finished = ring.finished();
        for _ in 0..LOOKS {
            ring.wait(PATIENCE).unwrap();
            finished = finished.or_else(|| ring.finished());
        }
        let (_, moved) = finished.unwrap();
        assert_eq!(moved.unwrap(), 512);
        assert_eq!(ring.bytes(ticket, 512), [1; 512]);
        ring.release(ticket);
        ring.release(ticket);
        assert!(ring.prepare(1).is_some() && ring.prepare(1).is_none());
    }

    /// A ring whose descriptor leads elsewhere: the kernel refuses each call on it, for good.
    fn refused(ring: &Ring) {
        let other = File::open("/dev/null").unwrap();
        // SAFETY: both are open, and the ring has the second still: it only leads to another file.
        let moved = unsafe { libc::dup2(other.as_raw_fd(), ring.ring.as_raw_fd()) };
        assert!(moved >= 0);
    }

    #[test]
    fn what_the_kernel_was_not_told_of_is_given_up() {
        type Call = fn(&mut Ring) -> bool;
        let calls: [Call; 2] = [
            |ring| ring.submit().is_err(),
            |ring| ring.wait(PATIENCE).is_err(),
        ];
        for is_refused in calls {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[1; 512]).unwrap();
            let Some(mut ring) = ring(&file, 2) else {
                return;
            };
            let tickets = [0; 2].map(|_| {
                let ticket = ring.prepare(512).unwrap();
                ring.start(ticket, Operation::Read, 0, 0, 512).unwrap();
                ticket
            });
            assert_eq!(ring.under_way(), 2);
            refused(&ring);
            assert!(is_refused(&mut ring));
            assert_eq!(ring.under_way(), 0);
            assert!(ring.finished().is_none());
            for ticket in tickets {
                assert_eq!(ring.bytes(ticket, 512).len(), 512);
            }
            // Nothing more is begun. Who waits is told each time, so that nobody waits without end.
            let ticket = ring.prepare(512).unwrap();
            assert!(ring.start(ticket, Operation::Read, 0, 0, 512).is_err());
            assert!(ring.submit().unwrap());
            let begun = std::time::Instant::now();
            assert!(ring.wait(PATIENCE).is_err());
            assert!(begun.elapsed() >= PATIENCE, "it spins");
        }
    }
}
