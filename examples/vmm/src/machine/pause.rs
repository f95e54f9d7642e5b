// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between the main thread and the vCPUs' threads: a vCPU that stands still, tells its state, and goes on.
//!
//! ```text
//!   main                         vCPU's thread
//!   ask, and kick  ----------->  leaves the guest, finishes what its last exit began
//!                  <-----------  Still
//!   Order::Save    ----------->  reads its registers
//!                  <-----------  State
//!   Order::GoOn    ----------->  enters the guest again, or ends if the machine is to stop
//! ```
//!
//! Each attempt has a number, and what is said belongs to one: a vCPU that came too late for one attempt is not taken to
//! stand still in the next.

use crate::snapshot::{Processor, SnapshotError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// What a vCPU that stands still is told to do.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Tell its state, with these model-specific registers.
    Save(Arc<[u32]>),
    /// Run again.
    GoOn,
}

/// What a vCPU says.
#[derive(Debug)]
pub(super) enum Answer {
    /// It stands still.
    Still,
    /// Its state.
    State(Result<Box<Processor>, SnapshotError>),
}

/// The vCPU's side.
#[derive(Debug)]
pub(super) struct Gate {
    vcpu: u32,
    asked: Arc<AtomicU64>,
    orders: Receiver<(u64, Order)>,
    answers: Sender<(u64, u32, Answer)>,
}

/// Of [`Gates`]: nobody wants anything.
const OPEN: u64 = 0;

impl Gate {
    /// The attempt for which the vCPU is to stand still.
    pub(super) fn shut(&self) -> Option<u64> {
        match self.asked.load(Ordering::Acquire) {
            OPEN => None,
            attempt => Some(attempt),
        }
    }

    /// Says something to the main thread.
    pub(super) fn say(&self, attempt: u64, answer: Answer) {
        // It may be gone, and then nobody waits.
        let _ = self.answers.send((attempt, self.vcpu, answer));
    }

    /// Waits for what to do in this attempt; a main thread that is gone wants nothing but an end.
    pub(super) fn next(&self, attempt: u64) -> Order {
        loop {
            match self.orders.recv() {
                // Of one that this vCPU came too late for.
                Ok((older, _)) if older != attempt => {}
                Ok((_, order)) => return order,
                Err(_) => return Order::GoOn,
            }
        }
    }
}

/// The main thread's side of all gates.
#[derive(Debug)]
pub(super) struct Gates {
    asked: Arc<AtomicU64>,
    last: AtomicU64,
    orders: Vec<Sender<(u64, Order)>>,
    answers: Receiver<(u64, u32, Answer)>,
    /// For the gates that are still to be made.
    theirs: Sender<(u64, u32, Answer)>,
}

impl Gates {
    /// None yet, and open.
    pub(super) fn new() -> Self {
        let (theirs, answers) = channel();
        Gates {
            asked: Arc::default(),
            last: AtomicU64::new(OPEN),
            orders: Vec::new(),
            answers,
            theirs,
        }
    }

    /// The gate of one more vCPU.
    pub(super) fn add(&mut self, vcpu: u32) -> Gate {
        let (order, orders) = channel();
        self.orders.push(order);
        Gate {
            vcpu,
            asked: Arc::clone(&self.asked),
            orders,
            answers: self.theirs.clone(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.orders.len()
    }

    /// From now on each vCPU stands still when it next leaves the guest.
    pub(super) fn shut(&self) {
        let attempt = self.last.fetch_add(1, Ordering::AcqRel).wrapping_add(1);
        self.asked.store(attempt, Ordering::Release);
    }

    /// Opens the gates, and tells each vCPU that stands still to go on.
    pub(super) fn open(&self) {
        self.asked.store(OPEN, Ordering::Release);
        self.tell(&Order::GoOn);
    }

    /// Gives all vCPUs the same order.
    pub(super) fn tell(&self, order: &Order) {
        let attempt = self.last.load(Ordering::Acquire);
        for orders in &self.orders {
            // One that ended needs none.
            let _ = orders.send((attempt, order.clone()));
        }
    }

    /// What a vCPU says in this attempt; none if it was in an older one.
    pub(super) fn answer(
        &self,
        patience: Duration,
    ) -> Result<Option<(u32, Answer)>, RecvTimeoutError> {
        let (attempt, vcpu, answer) = self.answers.recv_timeout(patience)?;
        let now = attempt == self.last.load(Ordering::Acquire);
        Ok(now.then_some((vcpu, answer)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn all_stand_still_until_the_gates_open() {
        let mut gates = Gates::new();
        let threads: Vec<_> = (0..3)
            .map(|vcpu| {
                let gate = gates.add(vcpu);
                assert_eq!(gate.shut(), None);
                thread::spawn(move || {
                    let attempt = loop {
                        if let Some(attempt) = gate.shut() {
                            break attempt;
                        }
                        thread::yield_now();
                    };
                    gate.say(attempt, Answer::Still);
                    let mut saves = 0;
                    while let Order::Save(_) = gate.next(attempt) {
                        saves += 1;
                    }
                    (saves, gate.shut())
                })
            })
            .collect();
        gates.shut();
        let answer = || gates.answer(PATIENCE).unwrap().unwrap().0;
        let mut still: Vec<u32> = (0..gates.count()).map(|_| answer()).collect();
        still.sort_unstable();
        assert_eq!(still, [0, 1, 2]);
        gates.tell(&Order::Save([].into()));
        gates.open();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), (1, None));
        }
    }

    #[test]
    fn who_comes_too_late_is_not_taken_to_stand_still() {
        let mut gates = Gates::new();
        let gate = gates.add(0);
        gates.shut();
        let late = gate.shut().unwrap();
        // The main thread gave up, and tries again.
        gates.open();
        gates.shut();
        gate.say(late, Answer::Still);
        assert!(gates.answer(PATIENCE).unwrap().is_none());
        // It is let go at once, and stands still for the next attempt until that is over.
        assert!(matches!(gate.next(late), Order::GoOn));
        let now = gate.shut().unwrap();
        gate.say(now, Answer::Still);
        assert!(matches!(
            gates.answer(PATIENCE),
            Ok(Some((0, Answer::Still)))
        ));
        gates.tell(&Order::Save([].into()));
        assert!(matches!(gate.next(now), Order::Save(_)));
    }

    #[test]
    fn a_vcpu_whose_main_thread_is_gone_goes_on() {
        let mut gates = Gates::new();
        let gate = gates.add(0);
        drop(gates);
        gate.say(1, Answer::Still);
        assert!(matches!(gate.next(1), Order::GoOn));
    }
}
