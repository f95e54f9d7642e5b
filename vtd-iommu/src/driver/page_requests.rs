// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The page request queue: what devices ask for, and the answers.

use hvkit_page_table::{Frames, OwnEntries, Width};

use super::memory::zeroed;
use super::queue::RingMemory;
use super::{Ability, DriverError, Mmio, Registers, Unit};
use crate::spec::invalidation::Descriptor;
use crate::spec::page_request::{
    PAGE_REQUEST_BYTES, PageGroupResponse, PageRequest, PageRequestError,
};
use crate::spec::registers::{
    PQA, PQH, PQT, PRS, PageQueueAddress, PageQueueHead, PageQueueTail, PageRequestStatus,
};

/// The page request queue of a unit, on.
#[derive(Debug)]
pub struct PageRequestQueue<M> {
    memory: M,
    base: u64,
    slots: u32,
    head: u32,
}

/// What one look into the queue found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polled {
    /// A request.
    Request(PageRequest),
    /// Something of another type, which was skipped.
    Unknown(PageRequestError),
    /// Nothing.
    Empty,
    /// Nothing, and since the last time requests found the queue full: units answer those of them that want an
    /// answer themselves, and devices ask again.
    Overflow,
}

/// Where request `slot` is in the queue, in bytes from its base.
const fn bytes_of(slot: u32) -> u64 {
    slot.wrapping_mul(PAGE_REQUEST_BYTES) as u64
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Gives the unit a queue for page requests, in one frame (128 requests) or in `ring`.
    ///
    /// # Errors
    ///
    /// The unit has no page requests, there are no frames, or `ring` cannot be one.
    pub fn enable_page_requests(
        &mut self,
        ring: Option<RingMemory>,
    ) -> Result<PageRequestQueue<M>, DriverError> {
        if !self.ecap.page_requests() {
            return Err(DriverError::Unsupported(Ability::PageRequests));
        }
        let (base, size) = match ring {
            Some(RingMemory { address, size }) if address & 0xfff == 0 && size <= 7 => {
                (address, size)
            }
            Some(RingMemory { address, size }) => {
                return Err(DriverError::BadTable { address, size });
            }
            None => (zeroed(&self.memory, &self.frames)?, 0),
        };
        let address = PageQueueAddress(0).with_queue(base).with_size(size);
        let unit = &self.registers;
        unit.put(PQH, PageQueueHead(0));
        unit.put(PQT, PageQueueTail(0));
        unit.put(PQA, address);
        let both = PageRequestStatus(0).with_pending(true).with_overflow(true);
        unit.put(PRS, both);
        Ok(PageRequestQueue {
            memory: self.memory.clone(),
            base,
            slots: address.bytes() / PAGE_REQUEST_BYTES,
            head: 0,
        })
    }

    /// Takes the next request. It may be of a PASID that was [detached](Self::detach) after the device had asked.
    pub fn poll_page_request(&mut self, queue: &mut PageRequestQueue<M>) -> Polled {
        let unit = &self.registers;
        // Cleared before the tail is read: what comes later sets it again.
        unit.put(PRS, PageRequestStatus(0).with_pending(true));
        let within = queue.slots.wrapping_sub(1);
        let tail = (unit.get(PQT).offset() as u32 / PAGE_REQUEST_BYTES) & within;
        if tail == queue.head {
            if unit.get(PRS).overflow() {
                unit.put(PRS, PageRequestStatus(0).with_overflow(true));
                return Polled::Overflow;
            }
            return Polled::Empty;
        }
        let at = queue.base.wrapping_add(bytes_of(queue.head));
        let words = [0, 8, 16, 24].map(|i| queue.memory.load(at.wrapping_add(i), Width::Eight));
        let decoded = PageRequest::decode(words);
        queue.head = queue.head.wrapping_add(1) & within;
        let offset = bytes_of(queue.head);
        unit.put(PQH, PageQueueHead(0).with_offset(offset));
        match decoded {
            Ok(request) => Polled::Request(request),
            Err(error) => Polled::Unknown(error),
        }
    }

    /// Answers a group of page requests.
    ///
    /// # Errors
    ///
    /// The unit does not pass it on.
    pub fn respond(&mut self, response: PageGroupResponse) -> Result<(), DriverError> {
        self.ask(Descriptor::PageGroupResponse(response))?;
        self.wait()
    }
}
