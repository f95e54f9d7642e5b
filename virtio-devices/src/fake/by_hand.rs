// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A runner whose workers run when the test says so.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::worker::{Progress, Runner, Running, StartError, Stopped, Worker};

#[derive(Default)]
struct Slot {
    /// Absent while it is called, and once it has been handed back.
    worker: Option<Box<dyn Worker>>,
    /// Asked to stop.
    asked: bool,
}

struct State {
    slots: Vec<Slot>,
    stuck: bool,
    starts_left: usize,
}

/// Runs workers by hand. Clones share their workers: give one to the transport, keep one.
#[derive(Clone)]
pub struct ByHand(Arc<Mutex<State>>);

impl Default for ByHand {
    fn default() -> Self {
        let state = State {
            slots: Vec::new(),
            stuck: false,
            starts_left: usize::MAX,
        };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl std::fmt::Debug for ByHand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByHand")
            .field("running", &self.running())
            .finish()
    }
}

impl ByHand {
    /// How many workers have been started and not asked to stop.
    pub fn running(&self) -> usize {
        let state = self.lock();
        state
            .slots
            .iter()
            .filter(|slot| slot.worker.is_some() && !slot.asked)
            .count()
    }

    /// Calls every running worker for all its sources until all wait, at most `limit` rounds. Returns the
    /// rounds.
    pub fn step(&self, limit: usize) -> usize {
        for round in 1..=limit {
            let mut busy = false;
            let count = self.lock().slots.len();
            for index in 0..count {
                // Called without the lock: what a worker calls may start or stop others.
                let taken = {
                    let slot = &mut self.lock().slots[index];
                    if slot.asked { None } else { slot.worker.take() }
                };
                let Some(mut worker) = taken else { continue };
                for source in 0..worker.sources().len() {
                    busy |= matches!(worker.ready(source), Progress::More | Progress::Yield);
                }
                self.lock().slots[index].worker = Some(worker);
            }
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

    /// After `starts` more, workers cannot be started, as if the host had no threads left.
    pub fn refuse_after(&self, starts: usize) {
        self.lock().starts_left = starts;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Runner for ByHand {
    fn start(&mut self, mut worker: Box<dyn Worker>) -> Result<Box<dyn Running>, StartError> {
        // Without the lock: it may call others.
        worker.started();
        let mut state = self.lock();
        let Some(left) = state.starts_left.checked_sub(1) else {
            let source = std::io::Error::from(std::io::ErrorKind::WouldBlock);
            return Err(StartError {
                name: worker.name(),
                source,
            });
        };
        state.starts_left = left;
        state.slots.push(Slot {
            worker: Some(worker),
            asked: false,
        });
        let slot = state.slots.len() - 1;
        Ok(Box::new(Held {
            all: self.clone(),
            slot,
        }))
    }
}

struct Held {
    all: ByHand,
    slot: usize,
}

impl Running for Held {
    fn request_stop(&mut self) {
        if let Some(slot) = self.all.lock().slots.get_mut(self.slot) {
            slot.asked = true;
        }
    }

    fn stopped(&mut self, _patience: Duration) -> Stopped {
        let taken = {
            let mut state = self.all.lock();
            let stuck = state.stuck;
            match state.slots.get_mut(self.slot) {
                Some(slot) if stuck || !slot.asked => return Stopped::NotYet,
                Some(slot) => slot.worker.take(),
                None => None,
            }
        };
        taken.map_or(Stopped::Gone, |mut worker| {
            worker.stopping();
            Stopped::With(worker)
        })
    }

    fn go_on(&mut self) -> bool {
        let mut state = self.all.lock();
        let slot = state.slots.get_mut(self.slot);
        let slot = slot.filter(|slot| slot.worker.is_some());
        slot.map(|slot| slot.asked = false).is_some()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.request_stop();
    }
}
