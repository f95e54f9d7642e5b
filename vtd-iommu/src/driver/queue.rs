// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The invalidation queue: descriptors in a ring, a wait that says when they are done, and errors.
//!
//! ```text
//!   base                head (hardware)        tail (we)
//!    | done . done . done | asked . asked . wait |  free ...  |     one slot stays free
//!                                          '--> status = n         n counts the waits
//! ```
//!
//! A refused descriptor stops the queue at it. It is then replaced by a wait that does nothing, the error is
//! cleared, the queue goes on, and whoever asked is told that it was not done.

use hvkit_page_table::{Frames, OwnEntries, Width};

use super::command::{self, Switch};
use super::memory::zeroed;
use super::{DriverError, Mmio, Registers, Waiting};
use crate::spec::RequesterId;
use crate::spec::invalidation::{Descriptor, RawDescriptor, StatusWrite, Wait};
use crate::spec::registers::{FSTS, FaultStatus, IQA, IQERCD, IQH, IQT, QueueAddress, QueueTail};

/// How wide descriptors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DescriptorWidth {
    /// 128 bits: legacy mode.
    Narrow,
    /// 256 bits: scalable mode.
    Wide,
}

impl DescriptorWidth {
    const fn bytes(self) -> u32 {
        match self {
            Self::Narrow => 16,
            Self::Wide => 32,
        }
    }
}

/// Memory for a ring that is larger than a frame, physically contiguous, 4-KiB aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingMemory {
    /// Its first byte.
    pub address: u64,
    /// It has 2^size pages of 4 KiB; at most 7.
    pub size: u8,
}

/// The invalidation queue of a unit, on.
#[derive(Debug)]
pub struct InvalidationQueue<M> {
    memory: M,
    base: u64,
    /// Frame that [`release`](Self::release) gives back; `None` if the caller owns the ring.
    own: Option<u64>,
    status: u64,
    slots: u32,
    width: DescriptorWidth,
    tail: u32,
    /// Slots that hardware was seen to have left, counted from the tail: at least so many are free.
    free: u32,
    sequence: u32,
    /// A device did not answer last time. The unit may have said so again since, of the same invalidation.
    silence: bool,
}

impl<M: OwnEntries> InvalidationQueue<M> {
    /// Turns queued invalidation on, with a ring in one frame of `frames` or in `ring`.
    ///
    /// # Errors
    ///
    /// No frames, a ring that cannot be one, or a unit that does not turn it on.
    pub fn enable<R: Mmio>(
        unit: &R,
        memory: M,
        frames: &impl Frames,
        width: DescriptorWidth,
        ring: Option<RingMemory>,
    ) -> Result<Self, DriverError> {
        let status = zeroed(&memory, frames)?;
        let (base, size, own) = match ring {
            Some(RingMemory { address, size }) if address & 0xfff == 0 && size <= 7 => {
                (address, size, None)
            }
            Some(RingMemory { address, size }) => {
                frames.free(status);
                return Err(DriverError::BadTable { address, size });
            }
            None => match zeroed(&memory, frames) {
                Ok(frame) => (frame, 0, Some(frame)),
                Err(error) => {
                    frames.free(status);
                    return Err(error);
                }
            },
        };
        let address = QueueAddress(0)
            .with_queue(base)
            .with_size(size)
            .with_wide(width == DescriptorWidth::Wide);
        // Both are powers of two.
        let slots = address.bytes().checked_div(width.bytes()).unwrap_or(0);
        let queue = Self {
            memory,
            base,
            own,
            status,
            slots,
            width,
            tail: 0,
            free: slots.saturating_sub(1),
            sequence: 0,
            silence: false,
        };
        let on = Self::turn_on(unit, address);
        if let Err(error) = on {
            queue.release(frames);
            return Err(error);
        }
        Ok(queue)
    }

    fn turn_on<R: Mmio>(unit: &R, address: QueueAddress) -> Result<(), DriverError> {
        command::queued_invalidation(unit, Switch::Off)?;
        unit.put(IQT, QueueTail(0));
        unit.put(IQA, address);
        command::queued_invalidation(unit, Switch::On)
    }

    /// Gives the frames back. Queued invalidation must be off.
    pub fn release(self, frames: &impl Frames) {
        frames.free(self.status);
        if let Some(frame) = self.own {
            frames.free(frame);
        }
    }

    /// How many descriptors the ring has room for at once: one less than its slots.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.slots.saturating_sub(1)
    }

    /// Does everything that `descriptors` ask for, and returns when it is done: one wait for all, unless they
    /// are more than the ring holds.
    ///
    /// # Errors
    ///
    /// A refused descriptor, a device that did not answer, or a unit that does not go on. Some of what was asked
    /// may be undone then; asking again is right.
    pub fn run<R: Mmio>(
        &mut self,
        unit: &R,
        descriptors: impl IntoIterator<Item = Descriptor>,
    ) -> Result<(), DriverError> {
        let mut any = false;
        for descriptor in descriptors {
            self.push(unit, descriptor.encode())?;
            any = true;
        }
        if any { self.wait(unit) } else { Ok(()) }
    }

    /// Puts words into the ring as they are: for a unit's extensions, and for tests of what a unit refuses.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn run_raw<R: Mmio>(&mut self, unit: &R, raw: RawDescriptor) -> Result<(), DriverError> {
        self.push(unit, raw)?;
        self.wait(unit)
    }

    /// Puts a descriptor into the ring, without telling hardware unless the ring is full.
    pub(super) fn push<R: Mmio>(
        &mut self,
        unit: &R,
        raw: RawDescriptor,
    ) -> Result<(), DriverError> {
        if self.free == 0 {
            self.make_room(unit)?;
        }
        self.store(self.tail, raw);
        self.tail = self.within(self.tail.wrapping_add(1));
        self.free = self.free.saturating_sub(1);
        Ok(())
    }

    fn store(&self, slot: u32, raw: RawDescriptor) {
        let at = self.place(slot);
        let words = raw.wide();
        let used = match self.width {
            DescriptorWidth::Narrow => 2,
            DescriptorWidth::Wide => 4,
        };
        for (i, word) in (0..used).zip(words) {
            self.memory
                .write(at.wrapping_add(i << 3), Width::Eight, word);
        }
    }

    /// `slot` as a place in the ring: its slots are a power of two.
    const fn within(&self, slot: u32) -> u32 {
        slot & self.slots.wrapping_sub(1)
    }

    fn bytes_of(&self, slot: u32) -> u64 {
        slot.wrapping_mul(self.width.bytes()).into()
    }

    fn place(&self, slot: u32) -> u64 {
        self.base.wrapping_add(self.bytes_of(slot))
    }

    /// Tells hardware of everything pushed so far.
    ///
    /// An error that the unit repeated since of an invalidation that was given up is cleared before: what it says from
    /// here on is about what is asked for now.
    fn ring<R: Mmio>(&mut self, unit: &R) {
        if core::mem::take(&mut self.silence) {
            unit.put(FSTS, FaultStatus(0).with_time_out_error(true));
        }
        let offset = self.bytes_of(self.tail);
        unit.put(IQT, QueueTail(0).with_offset(offset));
    }

    /// The slot that hardware fetches next.
    fn head<R: Mmio>(&self, unit: &R) -> u32 {
        let offset = unit.get(IQH).offset() as u32;
        self.within(offset.checked_div(self.width.bytes()).unwrap_or(0))
    }

    fn make_room<R: Mmio>(&mut self, unit: &R) -> Result<(), DriverError> {
        self.ring(unit);
        let mut asked = 0u32;
        loop {
            let head = self.head(unit);
            self.free = self.within(head.wrapping_sub(self.tail).wrapping_sub(1));
            // Also when there is room: the queue may have gone on behind what was not done.
            self.check(unit)?;
            if self.free > 0 {
                return Ok(());
            }
            asked = asked.saturating_add(1);
            if !unit.keep_waiting(asked) {
                return Err(DriverError::TimedOut(Waiting::QueueSpace));
            }
        }
    }

    /// Pushes a wait, tells hardware, and waits.
    pub(super) fn wait<R: Mmio>(&mut self, unit: &R) -> Result<(), DriverError> {
        self.wait_by(unit, Wait::default())
    }

    /// The same, until page requests that the unit has received are in their queue, too (PD).
    pub(super) fn wait_drained<R: Mmio>(&mut self, unit: &R) -> Result<(), DriverError> {
        self.wait_by(
            unit,
            Wait {
                page_drain: true,
                ..Wait::default()
            },
        )
    }

    fn wait_by<R: Mmio>(&mut self, unit: &R, wait: Wait) -> Result<(), DriverError> {
        self.sequence = self.sequence.wrapping_add(1);
        let wait = Wait {
            status: Some(StatusWrite {
                address: self.status,
                data: self.sequence,
            }),
            fence: true,
            ..wait
        };
        self.push(unit, Descriptor::Wait(wait).encode())?;
        self.ring(unit);
        let mut asked = 0u32;
        // A refused descriptor does not end the wait: the queue goes on behind it.
        let mut outcome = Ok(());
        loop {
            // An earlier wait that timed out may write late, but never this number.
            if self.memory.load(self.status, Width::Four) as u32 == self.sequence {
                // Everything up to the wait has left the ring.
                self.free = self.capacity();
                return outcome;
            }
            match self.check(unit) {
                Ok(()) => {}
                Err(error @ DriverError::Queue { .. }) if outcome.is_ok() => outcome = Err(error),
                Err(DriverError::Queue { .. }) => {}
                // Waits that were pending are aborted with the device-TLB invalidation: no status will come.
                Err(error) => return Err(error),
            }
            asked = asked.saturating_add(1);
            if !unit.keep_waiting(asked) {
                return Err(DriverError::TimedOut(Waiting::InvalidationWait));
            }
        }
    }

    /// A descriptor that does nothing anybody looks at. A wait without status and interrupt would say it best, but
    /// there are units that refuse one.
    const fn nothing(&self) -> Descriptor {
        Descriptor::Wait(Wait {
            status: Some(StatusWrite {
                address: self.status.wrapping_add(8),
                data: 0,
            }),
            interrupt: false,
            fence: false,
            page_drain: false,
        })
    }

    /// Looks for queue errors, and lets the queue go on after one.
    fn check<R: Mmio>(&mut self, unit: &R) -> Result<(), DriverError> {
        let status = unit.get(FSTS);
        if status.queue_error() {
            let error = unit.get(IQERCD).error();
            let head = self.head(unit);
            let first = self.memory.load(self.place(head), Width::Eight);
            self.store(head, self.nothing().encode());
            unit.put(FSTS, FaultStatus(0).with_queue_error(true));
            // A unit may look at the queue again only when the tail moves.
            self.ring(unit);
            return Err(DriverError::Queue { error, first });
        }
        if status.time_out_error() {
            let source_id = RequesterId(unit.get(IQERCD).time_out_source());
            unit.put(FSTS, FaultStatus(0).with_time_out_error(true));
            self.silence = true;
            return Err(DriverError::DeviceTlbTimedOut { source_id });
        }
        if status.completion_error() {
            let source_id = RequesterId(unit.get(IQERCD).completion_source());
            unit.put(FSTS, FaultStatus(0).with_completion_error(true));
            return Err(DriverError::DeviceTlbUnasked { source_id });
        }
        Ok(())
    }

    /// Turns the queue off and on again, empty: after a time-out that nothing else cures.
    ///
    /// # Errors
    ///
    /// The unit does not turn it on.
    pub fn reset<R: Mmio>(&mut self, unit: &R) -> Result<(), DriverError> {
        let errors = FaultStatus(0)
            .with_queue_error(true)
            .with_time_out_error(true)
            .with_completion_error(true);
        let address = unit.get(IQA);
        command::queued_invalidation(unit, Switch::Off)?;
        unit.put(FSTS, errors);
        self.tail = 0;
        self.free = self.capacity();
        unit.put(IQT, QueueTail(0));
        unit.put(IQA, address);
        command::queued_invalidation(unit, Switch::On)
    }
}
