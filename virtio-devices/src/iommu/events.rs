// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worker of the event queue: tells the driver of accesses that were refused.
//!
//! "Fault reporting" (5.13.6.8).

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::endpoint::{Fault, Faults};
use super::request::MapFlags;
use crate::counters::Counters;
use crate::device::{ActiveQueue, Failure, Interrupts};
use crate::queue::{Chain, Notify, Position};
use crate::worker::{Progress, Worker};

/// Reports in one call: new faults come while we look, and the worker is to see a request to stop.
const BATCH: u32 = 64;
/// Bytes of a report.
const REPORT: usize = 24;
/// The access was a read.
const READ: u32 = 1 << 0;
/// The access was a write.
const WRITE: u32 = 1 << 1;
/// The address is known.
const ADDRESS: u32 = 1 << 8;

/// Reports faults.
pub(super) struct Events<A> {
    faults: Arc<Faults>,
    memory: A,
    active: ActiveQueue,
    interrupts: Arc<dyn Interrupts>,
    counters: Counters,
    chain: Chain,
}

impl<A: GuestAddressSpace> Events<A> {
    pub(super) fn new(
        faults: Arc<Faults>,
        memory: A,
        active: ActiveQueue,
        interrupts: Arc<dyn Interrupts>,
        counters: Counters,
    ) -> Self {
        let chain = Chain::new();
        Self {
            faults,
            memory,
            active,
            interrupts,
            counters,
            chain,
        }
    }

    /// One buffer for each fault; faults wait for buffers, up to a number.
    fn work(&mut self) -> Result<Progress, Failure> {
        let memory = self.memory.memory();
        let index = self.active.index;
        let broken = |source| Failure::Queue { index, source };
        let mut queue = self.active.queue.map(&*memory);
        let mut progress = Progress::More;
        for _ in 0..BATCH {
            let Some(fault) = self.faults.first() else {
                progress = Progress::Wait;
                break;
            };
            let Some(head) = queue.pop(&mut self.chain).map_err(broken)? else {
                // The driver's next buffer is to be a kick, unless it came meanwhile.
                if !queue.enable_kicks().map_err(broken)? {
                    progress = Progress::Wait;
                }
                break;
            };
            let room = self.chain.writable();
            let fits = room.len() >= REPORT as u64;
            if !fits || room.write(queue.reach(), &report(fault)).is_err() {
                queue.fail();
                let head = head.index();
                return Err(Failure::Unanswerable { index, head });
            }
            self.faults.told();
            self.counters.served(1, REPORT as u64);
            queue.complete(head, REPORT as u32).map_err(broken)?;
        }
        if queue.publish().map_err(broken)? == Notify::Yes {
            self.counters.interrupted();
            self.interrupts.queue(index);
        }
        Ok(progress)
    }
}

/// What the driver is told.
fn report(fault: Fault) -> [u8; REPORT] {
    let mut flags = ADDRESS;
    if fault.access.contains(MapFlags::READ) {
        flags |= READ;
    }
    if fault.access.contains(MapFlags::WRITE) {
        flags |= WRITE;
    }
    let mut bytes = [0; REPORT];
    bytes[0] = fault.reason as u8;
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..12].copy_from_slice(&fault.endpoint.to_le_bytes());
    bytes[16..24].copy_from_slice(&fault.address.to_le_bytes());
    bytes
}

impl<A: GuestAddressSpace + Send> Worker for Events<A> {
    fn name(&self) -> String {
        String::from("iommu-events")
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.active.kick.as_raw_fd(), self.faults.kick.as_raw_fd()]
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        vec![self.active.position()]
    }

    fn ready(&mut self, index: usize) -> Progress {
        // Before looking, so that none is lost. An error means that there was none.
        let _ = match index {
            0 => self.active.kick.read(),
            _ => self.faults.kick.read(),
        };
        if self.active.queue.is_failed() {
            return Progress::Done;
        }
        self.work().unwrap_or_else(|why| {
            self.interrupts.needs_reset(&why);
            Progress::Done
        })
    }
}
