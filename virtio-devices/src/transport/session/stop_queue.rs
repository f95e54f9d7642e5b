// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue that the driver of a live device stops: nobody serves it from then on, until a reset.
//!
//! ```text
//!   QueueReady = 0 --> all workers stop --> those of the queue stay so, the others go on
//!                      QueueReady is 1      QueueReady is 0
//! ```
//!
//! A worker that serves other queues as well stops with them: which it can do without, only the device knows, and few can.
//!
//! "QueueReady" in "MMIO Device Register Layout" (4.2.2).

use std::sync::Arc;
use std::time::Duration;

use vm_memory::GuestAddressSpace;

use super::{Holds, Session};
use crate::device::Interrupts;
use crate::transport::Status;

impl<A: GuestAddressSpace> Session<A> {
    /// The driver stops queue `index`. Nothing happens while the device is not live, when registers can be written, or if the
    /// queue is not served.
    pub(in crate::transport) fn stop_queue(
        &mut self,
        index: u16,
        interrupts: &Arc<dyn Interrupts>,
    ) {
        let live = !self.resetting && self.status.get().contains(Status::DRIVER_OK);
        let ready = self.queue(index).is_some_and(|queue| queue.is_enabled());
        if !live || !ready || self.stopping.contains(&index) {
            return;
        }
        self.stopping.push(index);
        self.hold(Holds::QUEUE, interrupts);
        self.finish_stopping(interrupts);
    }

    /// Completes what [`stop_queue`](Self::stop_queue) has begun, if all workers have stopped by now.
    pub(in crate::transport) fn finish_stopping(&mut self, interrupts: &Arc<dyn Interrupts>) {
        if self.stopping.is_empty() || self.resetting {
            return;
        }
        let gone = self.collect(Duration::ZERO);
        self.tell_gone(gone, interrupts);
        if !self.workers.is_empty() {
            return;
        }
        for index in std::mem::take(&mut self.stopping) {
            // One that does not say what it serves may serve it.
            let serves = |positions: Vec<(u16, _)>| {
                positions.is_empty() || positions.iter().any(|(queue, _)| *queue == index)
            };
            let theirs = self
                .held
                .extract_if(.., |worker| serves(worker.positions()));
            self.stopped.extend(theirs);
            if let Some(queue) = self.queues.get_mut(usize::from(index)) {
                queue.disable();
            }
        }
        self.release(Holds::QUEUE, interrupts);
    }
}
