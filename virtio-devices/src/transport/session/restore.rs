// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A session that is paused as plain data, and a new one that goes on with it.

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::{Holds, Session};
use crate::device::{ActivateError, Activation, ActiveQueue, Interrupts};
use crate::features::Features;
use crate::queue::{Layout, Queue};
use crate::transport::Status;
use crate::transport::state::{QueueState, RestoreError, SaveError, SessionState};

impl<A: GuestAddressSpace> Session<A> {
    /// What the driver has settled and where the queues go on, while the device is paused.
    pub(in crate::transport) fn save(&self) -> Result<SessionState, SaveError> {
        let still = self.holds.contains(Holds::PAUSED) && self.workers.is_empty();
        if !still || self.resetting {
            return Err(SaveError::Running);
        }
        let positions: Vec<_> = self
            .held
            .iter()
            .chain(&self.stopped)
            .flat_map(|worker| worker.positions())
            .collect();
        let queues = self.queues.iter().zip(0..).map(|(registers, index)| {
            let position = positions.iter().find(|(number, _)| *number == index);
            QueueState {
                config: *registers.config(),
                enabled: registers.is_enabled(),
                position: position.map(|(_, position)| *position),
            }
        });
        Ok(SessionState {
            device_type: self.device.device_type().0,
            accepted: self.accepted.bits(),
            status: self.status.get().bits(),
            queues: queues.collect(),
            device: self.device.save()?,
        })
    }

    /// Makes this new device, which is paused, one that was saved.
    pub(in crate::transport) fn restore(
        &mut self,
        state: &SessionState,
        interrupts: &Arc<dyn Interrupts>,
    ) -> Result<(), RestoreError> {
        let status = Status::from_bits_retain(state.status);
        let accepted = Features::from_bits_retain(state.accepted);
        self.check(state, status, accepted)?;
        // One that has failed waits for a reset.
        let live =
            status.contains(Status::DRIVER_OK) && !status.contains(Status::DEVICE_NEEDS_RESET);
        let mut queues = Vec::new();
        if live {
            let memory = self.memory.memory();
            for ((saved, kick), index) in state.queues.iter().zip(&self.kicks).zip(0..) {
                if saved.enabled {
                    let made = match saved.position {
                        Some(position) => {
                            Queue::restored(&saved.config, accepted, &*memory, position)
                        }
                        None => Queue::new(&saved.config, accepted, &*memory),
                    };
                    let queue = made.map_err(|source| RestoreError::Queue { index, source })?;
                    let kick = kick.try_clone().map_err(ActivateError::Host)?;
                    queues.push(ActiveQueue { index, queue, kick });
                }
            }
        }
        if status.contains(Status::FEATURES_OK) {
            self.device.negotiated(accepted);
        }
        let restored = self.device.restore(&state.device);
        restored.inspect_err(|_| self.device.reset())?;
        if live {
            let activated = self.device.activate(Activation {
                memory: self.memory.clone(),
                features: accepted,
                queues,
                interrupts: Arc::clone(interrupts),
            });
            self.held = match activated {
                // The driver has stopped a queue of a live device, without which there is nothing to serve until it resets it.
                Err(ActivateError::QueueMissing { .. }) => Vec::new(),
                activated => activated.inspect_err(|_| self.device.reset())?,
            };
        }
        self.accepted = accepted;
        self.status.add(status);
        for ((registers, saved), kick) in self.queues.iter_mut().zip(&state.queues).zip(&self.kicks)
        {
            registers.restore(saved.config, saved.enabled);
            // A notification that the old one did not see any more. Fails only if the counter is full.
            let _ = kick.write(1);
        }
        Ok(())
    }

    /// What can be said of a state without touching anything.
    fn check(
        &self,
        state: &SessionState,
        status: Status,
        accepted: Features,
    ) -> Result<(), RestoreError> {
        let fresh = self.status.get().is_empty() && self.workers.is_empty() && !self.resetting;
        if !fresh || !self.held.is_empty() || !self.holds.contains(Holds::PAUSED) {
            return Err(RestoreError::InUse);
        }
        let ours = self.device.device_type().0;
        if state.device_type != ours {
            let saved = state.device_type;
            return Err(RestoreError::DeviceType { saved, ours });
        }
        if state.queues.len() != self.queues.len() {
            return Err(RestoreError::Count {
                what: "queues",
                saved: state.queues.len(),
                ours: self.queues.len(),
            });
        }
        let settled = status.contains(Status::FEATURES_OK);
        if settled && !self.can_work_with(accepted) {
            return Err(RestoreError::Features {
                saved: accepted,
                ours: self.offered,
            });
        }
        let known = Status::all().contains(status);
        if !known || status.contains(Status::DRIVER_OK) && !settled {
            return Err(RestoreError::Status {
                status: state.status,
            });
        }
        let layout = Layout::of(accepted);
        for ((registers, saved), index) in self.queues.iter().zip(&state.queues).zip(0..) {
            if !registers.could_be(&saved.config, layout) {
                let size = saved.config.size;
                return Err(RestoreError::QueueSize { index, size });
            }
        }
        Ok(())
    }
}
