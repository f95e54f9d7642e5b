// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A back end that is to stop, and to have finished what it has begun.

use std::time::{Duration, Instant};

use vm_memory::GuestAddressSpace;

use super::Relay;
use crate::patience::end_of;
use crate::queue::Layout;
use crate::vhost_user::error::BackEndError;
use crate::vhost_user::in_flight::{InFlight, used_index};

/// Between two looks at a used ring that is about to be complete.
const INTERVAL: Duration = Duration::from_millis(1);

impl<A: GuestAddressSpace> Relay<A> {
    /// Has the back end stop, and finds where each queue goes on.
    pub(super) fn stop(&mut self, in_flight: Option<&InFlight>) -> Result<(), BackEndError> {
        for at in 0..self.queues.len() {
            let Some(queue) = self.queues.get(at) else {
                break;
            };
            let (index, layout) = (queue.active.index, queue.layout);
            let config = *queue.active.queue.config();
            let said = self.shared.front().stop(index, layout, config.size)?;
            let base = said.available;
            let end = end_of(self.shared.patience());
            // A back end may answer before the last requests that it has begun are done.
            loop {
                let memory = self.memory.memory();
                let used = match layout {
                    Layout::Split => used_index(&*memory, config.device_area).unwrap_or(base),
                    // The ring itself does not tell, but the back end and its notes do.
                    Layout::Packed => in_flight
                        .and_then(|notes| notes.left(index, &config, &*memory, said.used))
                        .map_or(said.used, |left| left.used),
                };
                if used == base {
                    break;
                }
                if Instant::now() >= end {
                    let why = BackEndError::Unfinished { index, base, used };
                    return Err(self.shared.front().end(why));
                }
                std::thread::sleep(INTERVAL);
            }
            if let Some(queue) = self.queues.get_mut(at) {
                queue.base = base;
            }
            self.pass_on(at);
            if let Some(queue) = self.queues.get_mut(at) {
                queue.ledger = None;
            }
        }
        Ok(())
    }
}
