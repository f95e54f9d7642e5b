// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worker of one queue.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemory};

use super::SERIAL;
use super::image::Image;
use super::request::{Caching, Disk, Unanswerable};
use crate::device::{ActiveQueue, Failure, Interrupts};
use crate::queue::{Chain, Mapped, Notify};
use crate::worker::{Progress, Worker};

/// Requests after which what is done is published, and the worker looks whether it is to stop.
const BATCH_REQUESTS: u32 = 32;
/// Bytes of data after which the same happens.
const BATCH_BYTES: u64 = 8 << 20;

/// Serves one queue from an image.
pub(super) struct Server<A> {
    image: Arc<Image>,
    serial: [u8; SERIAL],
    caching: Caching,
    memory: A,
    active: ActiveQueue,
    interrupts: Arc<dyn Interrupts>,
    chain: Chain,
}

impl<A: GuestAddressSpace> Server<A> {
    pub(super) fn new(
        image: Arc<Image>,
        serial: [u8; SERIAL],
        caching: Caching,
        memory: A,
        active: ActiveQueue,
        interrupts: Arc<dyn Interrupts>,
    ) -> Self {
        Self {
            image,
            serial,
            caching,
            memory,
            active,
            interrupts,
            chain: Chain::new(),
        }
    }

    fn work(&mut self) -> Result<Progress, Failure> {
        let memory = self.memory.memory();
        let index = self.active.index;
        let broken = |source| Failure::Queue { index, source };
        let mut queue = self.active.queue.map(&*memory);
        let disk = Disk {
            image: &self.image,
            serial: &self.serial,
            caching: self.caching,
        };
        queue.disable_kicks().map_err(broken)?;
        let batch = batch(&mut queue, &disk, &mut self.chain, index);
        // What was done before something went wrong is done, and the driver is to know.
        let notify = queue.publish().map_err(broken)?;
        if notify == Notify::Yes {
            self.interrupts.queue(index);
        }
        // One batch a call, also if a quick driver has made more available: a request to stop comes between.
        let more = match batch? {
            Batch::Full => true,
            Batch::Drained => queue.enable_kicks().map_err(broken)?,
        };
        Ok(if more { Progress::More } else { Progress::Wait })
    }
}

/// Serves requests until none is left or it is time to publish.
fn batch<M: GuestMemory + ?Sized>(
    queue: &mut Mapped<'_, M>,
    disk: &Disk<'_>,
    chain: &mut Chain,
    index: u16,
) -> Result<Batch, Failure> {
    let broken = |source| Failure::Queue { index, source };
    let mut bytes = 0;
    for _ in 0..BATCH_REQUESTS {
        let Some(head) = queue.pop(chain).map_err(broken)? else {
            return Ok(Batch::Drained);
        };
        let served = match disk.serve(queue.reach(), chain) {
            Ok(served) => served,
            Err(Unanswerable) => {
                queue.fail();
                let head = head.index();
                return Err(Failure::Unanswerable { index, head });
            }
        };
        queue.complete(head, served.written).map_err(broken)?;
        bytes += served.moved;
        if bytes >= BATCH_BYTES {
            break;
        }
    }
    Ok(Batch::Full)
}

/// Why a batch ended.
enum Batch {
    /// Nothing more is available.
    Drained,
    /// It was time.
    Full,
}

impl<A: GuestAddressSpace + Send> Worker for Server<A> {
    fn name(&self) -> String {
        format!("blk-q{}", self.active.index)
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.active.kick.as_raw_fd()]
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
