// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A runner whose workers run when the test says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::worker::{Progress, Runner, Running, StartError, Stopped, Worker};

#[derive(Default)]
struct State {
    slots: Vec<Option<Box<dyn Worker>>>,
    stuck: bool,
    refuse: bool,
}

/// Runs workers by hand. Clones share their workers: give one to the transport, keep one.
#[derive(Clone, Default)]
pub struct ByHand(Arc<Mutex<State>>);

impl std::fmt::Debug for ByHand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByHand")
            .field("running", &self.running())
            .finish()
    }
}

impl ByHand {
    /// How many workers have been started and not stopped.
    pub fn running(&self) -> usize {
        self.lock().slots.iter().flatten().count()
    }

    /// Calls every worker for all its sources until all wait, at most `limit` rounds. Returns the rounds.
    pub fn step(&self, limit: usize) -> usize {
        for round in 1..=limit {
            // Workers are called without the lock: what they call may start or stop others.
            let slots = std::mem::take(&mut self.lock().slots);
            let mut busy = false;
            let slots: Vec<_> = slots
                .into_iter()
                .map(|mut slot| {
                    if let Some(worker) = &mut slot {
                        for index in 0..worker.sources().len() {
                            busy |= worker.ready(index) == Progress::More;
                        }
                    }
                    slot
                })
                .collect();
            self.lock().slots = slots;
            if !busy {
                return round;
            }
        }
        limit
    }

    /// From now on workers do not stop when asked, as if in a call that does not return; or they do again.
    pub fn set_stuck(&self, stuck: bool) {
        self.lock().stuck = stuck;
    }

    /// From now on workers cannot be started, as if the host had no threads left.
    pub fn refuse(&self) {
        self.lock().refuse = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runner for ByHand {
    fn start(&mut self, worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError> {
        let mut state = self.lock();
        if state.refuse {
            let source = std::io::Error::from(std::io::ErrorKind::WouldBlock);
            return Err(StartError {
                name: worker.name(),
                source,
            });
        }
        state.slots.push(Some(worker));
        let slot = state.slots.len() - 1;
        Ok(Box::new(Held {
            all: self.clone(),
            slot,
            asked: false,
        }))
    }
}

struct Held {
    all: ByHand,
    slot: usize,
    asked: bool,
}

impl Running for Held {
    fn request_stop(&mut self) {
        self.asked = true;
    }

    fn stopped(&mut self, _patience: Duration) -> Stopped {
        let mut state = self.all.lock();
        if state.stuck || !self.asked {
            return Stopped::NotYet;
        }
        match state.slots.get_mut(self.slot).and_then(Option::take) {
            Some(worker) => Stopped::With(worker),
            None => Stopped::Gone,
        }
    }
}
