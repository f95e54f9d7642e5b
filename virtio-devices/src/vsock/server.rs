// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The worker of all three queues: what the guest sends decides what it is sent.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;

use super::mux::Mux;
use crate::counters::Counters;
use crate::device::{ActiveQueue, Failure, Interrupts};
use crate::queue::{Chain, Notify, Position};
use crate::worker::{Progress, Worker};

/// Packets in one call, each way.
const BATCH: u32 = 32;
/// Bytes of an event, and the one that there is: VIRTIO_VSOCK_EVENT_TRANSPORT_RESET.
const EVENT: usize = 4;
const TRANSPORT_RESET: [u8; EVENT] = [0; EVENT];

/// The queues, in the specification's order.
pub(super) struct Queues {
    pub(super) receive: ActiveQueue,
    pub(super) transmit: ActiveQueue,
    pub(super) event: Option<ActiveQueue>,
}

/// Connections that outlive the worker that serves them.
pub(super) type SharedMux = Arc<Mutex<Mux>>;

pub(super) fn lock(mux: &SharedMux) -> MutexGuard<'_, Mux> {
    mux.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves them.
pub(super) struct Server<A> {
    pub(super) mux: SharedMux,
    pub(super) memory: A,
    pub(super) queues: Queues,
    pub(super) interrupts: Arc<dyn Interrupts>,
    /// The numbers of the queues, in their order.
    pub(super) counters: [Counters; 3],
    /// The guest is to be told that all its connections are gone.
    pub(super) lost: Arc<AtomicBool>,
    pub(super) chain: Chain,
}

impl<A: GuestAddressSpace> Server<A> {
    fn work(&mut self) -> Result<Progress, Failure> {
        let mux = Arc::clone(&self.mux);
        let mux = &mut *lock(&mux);
        let mut more = !mux.look();
        self.event()?;
        more |= self.take_packets(mux)?;
        more |= self.give_packets(mux)?;
        Ok(if more { Progress::More } else { Progress::Wait })
    }

    /// Takes packets. Whether to go on at once.
    fn take_packets(&mut self, mux: &mut Mux) -> Result<bool, Failure> {
        let memory = self.memory.memory();
        let active = &mut self.queues.transmit;
        let index = active.index;
        let broken = |source| Failure::Queue { index, source };
        let mut queue = active.queue.map(&*memory);
        queue.disable_kicks().map_err(broken)?;
        let (mut drained, mut taken) = (false, Ok(()));
        for _ in 0..BATCH {
            // Then the guest's own turn comes first; see `give_packets`.
            if mux.is_full() {
                break;
            }
            match queue.pop(&mut self.chain) {
                Ok(Some(head)) => {
                    let moved = mux.take(queue.reach(), &self.chain);
                    self.counters[1].served(1, moved);
                    queue.complete(head, 0).map_err(broken)?;
                }
                Ok(None) => {
                    drained = true;
                    break;
                }
                Err(error) => {
                    taken = Err(broken(error));
                    break;
                }
            }
        }
        if queue.publish().map_err(broken)? == Notify::Yes {
            self.counters[1].interrupted();
            self.interrupts.queue(index);
        }
        taken?;
        match drained {
            true => queue.enable_kicks().map_err(broken),
            false => Ok(!mux.is_full()),
        }
    }

    /// Gives packets. Whether to go on at once.
    fn give_packets(&mut self, mux: &mut Mux) -> Result<bool, Failure> {
        let memory = self.memory.memory();
        let active = &mut self.queues.receive;
        let index = active.index;
        let broken = |source| Failure::Queue { index, source };
        let was_full = mux.is_full();
        let mut queue = active.queue.map(&*memory);
        queue.disable_kicks().map_err(broken)?;
        let (mut drained, mut given) = (false, Ok(()));
        for _ in 0..BATCH {
            if !mux.has_something() {
                break;
            }
            let head = match queue.pop(&mut self.chain) {
                Ok(Some(head)) => head,
                Ok(None) => {
                    drained = true;
                    break;
                }
                Err(error) => {
                    given = Err(broken(error));
                    break;
                }
            };
            match mux.give(queue.reach(), &self.chain) {
                Ok(Some((written, moved))) => {
                    self.counters[0].served(1, moved.into());
                    queue.complete(head, written).map_err(broken)?;
                }
                Ok(None) => {
                    queue.put_back(head);
                    break;
                }
                Err(_) => {
                    queue.fail();
                    let head = head.index();
                    given = Err(Failure::Unanswerable { index, head });
                    break;
                }
            }
        }
        if queue.publish().map_err(broken)? == Notify::Yes {
            self.counters[0].interrupted();
            self.interrupts.queue(index);
        }
        given?;
        if drained {
            return queue.enable_kicks().map_err(broken);
        }
        // The guest may have waited for room of ours.
        Ok(mux.has_something() || was_full && !mux.is_full())
    }

    /// Tells the guest that its connections are gone, if they are (5.10.6.7).
    fn event(&mut self) -> Result<(), Failure> {
        let Some(active) = &mut self.queues.event else {
            return Ok(());
        };
        if !self.lost.load(Ordering::SeqCst) {
            return Ok(());
        }
        let memory = self.memory.memory();
        let index = active.index;
        let broken = |source| Failure::Queue { index, source };
        let mut queue = active.queue.map(&*memory);
        let mut head = queue.pop(&mut self.chain).map_err(broken)?;
        // The guest's next buffer is to be a kick, unless it came meanwhile.
        if head.is_none() && queue.enable_kicks().map_err(broken)? {
            head = queue.pop(&mut self.chain).map_err(broken)?;
        }
        let Some(head) = head else {
            return Ok(());
        };
        let room = self.chain.writable();
        let fits = room.len() >= EVENT as u64;
        if !fits || room.write(queue.reach(), &TRANSPORT_RESET).is_err() {
            queue.fail();
            let head = head.index();
            return Err(Failure::Unanswerable { index, head });
        }
        self.lost.store(false, Ordering::SeqCst);
        self.counters[2].served(1, EVENT as u64);
        queue.complete(head, EVENT as u32).map_err(broken)?;
        if queue.publish().map_err(broken)? == Notify::Yes {
            self.counters[2].interrupted();
            self.interrupts.queue(index);
        }
        Ok(())
    }

    fn kicks(&self) -> impl Iterator<Item = &ActiveQueue> {
        let Queues {
            receive,
            transmit,
            event,
        } = &self.queues;
        [receive, transmit].into_iter().chain(event)
    }
}

impl<A: GuestAddressSpace + Send> Worker for Server<A> {
    fn name(&self) -> String {
        "vsock".to_owned()
    }

    fn sources(&self) -> Vec<RawFd> {
        let kicks = self.kicks().map(|active| active.kick.as_raw_fd());
        kicks.chain([lock(&self.mux).source()]).collect()
    }

    fn positions(&self) -> Vec<(u16, Position)> {
        self.kicks().map(ActiveQueue::position).collect()
    }

    fn ready(&mut self, _index: usize) -> Progress {
        for active in self.kicks() {
            // Before looking, so that a kick during the work is not lost. An error means that there was none.
            let _ = active.kick.read();
        }
        if self.kicks().any(|active| active.queue.is_failed()) {
            return Progress::Done;
        }
        self.work().unwrap_or_else(|why| {
            self.interrupts.needs_reset(&why);
            Progress::Done
        })
    }
}
