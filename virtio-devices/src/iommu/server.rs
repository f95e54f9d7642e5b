// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worker of the request queue.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use vm_memory::{GuestAddressSpace, GuestMemory};

use super::device::{PROBE_SIZE, PROPERTY, lock};
use super::domain::{Domains, Offered};
use super::endpoint::Reserved;
use super::request::{LONGEST, Malformed, Request, Status, TAIL};
use crate::bytes::put_at;
use crate::counters::Counters;
use crate::device::{ActiveQueue, Failure, Interrupts};
use crate::queue::{Chain, Mapped, Notify, Position, Reach};
use crate::worker::{Progress, Worker};

/// Requests in one call: the worker is to see a request to stop.
const BATCH: u32 = 32;

/// Serves requests.
pub(super) struct Server<A> {
    domains: Arc<Mutex<Domains>>,
    bypass_domains: Offered,
    memory: A,
    active: ActiveQueue,
    interrupts: Arc<dyn Interrupts>,
    counters: Counters,
    chain: Chain,
}

impl<A: GuestAddressSpace> Server<A> {
    pub(super) fn new(
        domains: Arc<Mutex<Domains>>,
        bypass_domains: Offered,
        memory: A,
        active: ActiveQueue,
        interrupts: Arc<dyn Interrupts>,
        counters: Counters,
    ) -> Self {
        let chain = Chain::new();
        Self {
            domains,
            bypass_domains,
            memory,
            active,
            interrupts,
            counters,
            chain,
        }
    }

    fn work(&mut self) -> Result<Progress, Failure> {
        let memory = self.memory.memory();
        let index = self.active.index;
        let broken = |source| Failure::Queue { index, source };
        let mut queue = self.active.queue.map(&*memory);
        queue.disable_kicks().map_err(broken)?;
        let requests = Requests {
            domains: &self.domains,
            bypass_domains: self.bypass_domains,
            counters: &self.counters,
        };
        let drained = requests.serve_some(&mut queue, &mut self.chain, index);
        if queue.publish().map_err(broken)? == Notify::Yes {
            self.counters.interrupted();
            self.interrupts.queue(index);
        }
        let more = match drained? {
            Drained::No => true,
            Drained::Yes => queue.enable_kicks().map_err(broken)?,
        };
        Ok(if more { Progress::More } else { Progress::Wait })
    }
}

/// Whether the queue is empty.
enum Drained {
    Yes,
    No,
}

/// What requests are about.
struct Requests<'a> {
    domains: &'a Mutex<Domains>,
    bypass_domains: Offered,
    counters: &'a Counters,
}

impl Requests<'_> {
    fn serve_some<M: GuestMemory + ?Sized>(
        &self,
        queue: &mut Mapped<'_, M>,
        chain: &mut Chain,
        index: u16,
    ) -> Result<Drained, Failure> {
        let broken = |source| Failure::Queue { index, source };
        for _ in 0..BATCH {
            let Some(head) = queue.pop(chain).map_err(broken)? else {
                return Ok(Drained::Yes);
            };
            // "[...] it returns the buffers without writing to them" (5.13.6).
            let written = self.serve(queue.reach(), chain).unwrap_or(0);
            let read = chain.readable_bytes();
            self.counters.served(1, read.saturating_add(written.into()));
            queue.complete(head, written).map_err(broken)?;
        }
        Ok(Drained::No)
    }

    /// Serves one request. Returns how much was written; `None` if nothing may be: there is no room for a status, or the
    /// type is unknown.
    fn serve<M: GuestMemory + ?Sized>(&self, reach: &Reach<'_, M>, chain: &Chain) -> Option<u32> {
        let writable = chain.writable();
        let before = writable.len().checked_sub(TAIL)?;
        let (properties, tail) = writable.split_at(before);
        let mut raw = [0; LONGEST];
        let request = match chain.readable().read(reach, &mut raw) {
            Ok(length) => Request::decode(raw.get(..length).unwrap_or_default()),
            Err(_) => Err(Malformed::Invalid),
        };
        if request == Err(Malformed::UnknownType) {
            return None;
        }
        let mut filled = 0;
        let mut domains = lock(self.domains);
        let status = match request {
            Ok(request) => domains.serve(request, self.bypass_domains),
            Err(_) => Status::INVALID,
        };
        let status = match request {
            Ok(Request::Probe { endpoint }) if status == Status::OK => {
                let known = domains
                    .endpoint(endpoint)
                    .map_or(&[][..], |endpoint| endpoint.reserved());
                let room = properties.len();
                let answer = describe(known);
                // "The size of the buffer is at least probe_size" (5.13.6.7).
                if room >= u64::from(PROBE_SIZE) && properties.write(reach, &answer).is_ok() {
                    filled = PROBE_SIZE;
                    status
                } else {
                    Status::INVALID
                }
            }
            _ => status,
        };
        drop(domains);
        // If the driver gave an address at which there is no memory, nothing can be said.
        let said = tail.write(reach, &[status.0, 0, 0, 0]).is_ok();
        let whole = u64::from(filled) == before;
        Some(if said && whole {
            filled.saturating_add(TAIL as u32)
        } else {
            filled
        })
    }
}

/// The properties of an endpoint: what it must not map (5.13.6.7.1), then zeroes, which end the list.
fn describe(reserved: &[Reserved]) -> [u8; PROBE_SIZE as usize] {
    /// VIRTIO_IOMMU_PROBE_T_RESV_MEM.
    const RESERVED_MEMORY: u16 = 1;
    /// Does not count the head.
    const LENGTH: u16 = PROPERTY as u16 - 4;
    let mut bytes = [0; PROBE_SIZE as usize];
    for (room, range) in bytes.chunks_exact_mut(PROPERTY).zip(reserved) {
        let kind = match range {
            Reserved::Region(_) => 0,
            Reserved::Messages(_) => 1,
        };
        put_at(room, 0, &RESERVED_MEMORY.to_le_bytes());
        put_at(room, 2, &LENGTH.to_le_bytes());
        put_at(room, 4, &[kind]);
        put_at(room, 8, &range.span().first.to_le_bytes());
        put_at(room, 16, &range.span().last.to_le_bytes());
    }
    bytes
}

impl<A: GuestAddressSpace + Send> Worker for Server<A> {
    fn name(&self) -> String {
        String::from("iommu-requests")
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.active.kick.as_raw_fd()]
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        vec![self.active.position()]
    }

    fn ready(&mut self, _index: usize) -> Progress {
        // Before looking, so that a kick during the work is not lost. An error means that there was none.
        let _ = self.active.kick.read();
        if self.active.queue.is_failed() {
            return Progress::Done;
        }
        self.work().unwrap_or_else(|why| {
            self.interrupts.needs_reset(&why);
            Progress::Done
        })
    }
}
