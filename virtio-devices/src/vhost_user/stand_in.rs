// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who answers a driver when the process is gone that did: each request with an error.

use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::kind::Kind;
use crate::device::{Failure, Interrupts};
use crate::queue::{Begun, Chain, Notify, Position, Queue, QueueError};
use crate::worker::Progress;

/// Chains that are answered in one call.
const BATCH: u64 = 64;

/// Serves one queue.
#[derive(Debug)]
pub(super) struct StandIn {
    index: u16,
    queue: Queue,
    kick: EventFd,
    /// Begun by the back end and not finished, the last one first.
    begun: Vec<Begun>,
    chain: Chain,
}

impl StandIn {
    /// One for queue `index`, which goes on where its used ring does, after `begun`.
    pub(super) fn new(index: u16, queue: Queue, kick: EventFd, mut begun: Vec<Begun>) -> Self {
        begun.reverse();
        Self {
            index,
            queue,
            kick,
            begun,
            chain: Chain::new(),
        }
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn position(&self) -> Position {
        self.queue.position()
    }

    /// Whether something is still to be answered that the queue's position does not say.
    pub(super) fn has_begun(&self) -> bool {
        !self.begun.is_empty() && !self.queue.is_failed()
    }

    /// Answers what was begun, a bounded number of chains, and nothing else; says how many that were.
    pub(super) fn answer_begun<A: GuestAddressSpace>(
        &mut self,
        kind: &Kind,
        memory: &A,
        interrupts: &Arc<dyn Interrupts>,
    ) -> Result<u64, Box<QueueError>> {
        let memory = memory.memory();
        let mut queue = self.queue.map(&*memory);
        let mut count = 0u64;
        while let Some(begun) = self.begun.pop() {
            let head = queue.retake(&begun, &mut self.chain)?;
            let written = kind.refuse(queue.reach(), &self.chain);
            queue.complete(head, written)?;
            count = count.saturating_add(1);
        }
        if queue.publish()? == Notify::Yes {
            interrupts.queue(self.index);
        }
        Ok(count)
    }

    /// Refuses what there is, a bounded part of it; returns how many chains that were.
    pub(super) fn work<A: GuestAddressSpace>(
        &mut self,
        kind: &Kind,
        memory: &A,
        interrupts: &Arc<dyn Interrupts>,
    ) -> (u64, Progress) {
        // Before looking, so that none is lost. An error means that there was none.
        let _ = self.kick.read();
        if self.queue.is_failed() {
            return (0, Progress::Done);
        }
        match self.batch(kind, &*memory.memory(), &**interrupts) {
            Ok(worked) => worked,
            Err(source) => {
                let index = self.index;
                interrupts.needs_reset(&Failure::Queue { index, source });
                (0, Progress::Done)
            }
        }
    }

    fn batch<M: GuestMemory + ?Sized>(
        &mut self,
        kind: &Kind,
        memory: &M,
        interrupts: &dyn Interrupts,
    ) -> Result<(u64, Progress), Box<QueueError>> {
        let mut queue = self.queue.map(memory);
        let mut count = 0;
        let mut rest = Progress::More;
        for served in 1..=BATCH {
            let head = match self.begun.pop() {
                Some(begun) => Some(queue.retake(&begun, &mut self.chain)?),
                None => queue.pop(&mut self.chain)?,
            };
            let Some(head) = head else {
                rest = Progress::Wait;
                break;
            };
            let written = kind.refuse(queue.reach(), &self.chain);
            queue.complete(head, written)?;
            count = served;
        }
        if queue.publish()? == Notify::Yes {
            interrupts.queue(self.index);
        }
        if rest == Progress::Wait && queue.enable_kicks()? {
            rest = Progress::More;
        }
        Ok((count, rest))
    }
}
