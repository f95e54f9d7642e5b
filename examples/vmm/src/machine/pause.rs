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

use crate::snapshot::{Processor, SnapshotError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

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
    vcpu: u8,
    asked: Arc<AtomicBool>,
    orders: Receiver<Order>,
    answers: Sender<(u8, Answer)>,
}

impl Gate {
    /// Whether the vCPU is to stand still.
    pub(super) fn is_shut(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Says something to the main thread.
    pub(super) fn say(&self, answer: Answer) {
        // It may be gone, and then nobody waits.
        let _ = self.answers.send((self.vcpu, answer));
    }

    /// Waits for what to do; a main thread that is gone wants nothing but an end.
    pub(super) fn next(&self) -> Order {
        self.orders.recv().unwrap_or(Order::GoOn)
    }
}

/// The main thread's side of all gates.
#[derive(Debug)]
pub(super) struct Gates {
    asked: Arc<AtomicBool>,
    orders: Vec<(u8, Sender<Order>)>,
    answers: Receiver<(u8, Answer)>,
    /// For the gates that are still to be made.
    theirs: Sender<(u8, Answer)>,
}

impl Gates {
    /// None yet, and open.
    pub(super) fn new() -> Self {
        let (theirs, answers) = channel();
        Gates {
            asked: Arc::default(),
            orders: Vec::new(),
            answers,
            theirs,
        }
    }

    /// The gate of one more vCPU.
    pub(super) fn add(&mut self, vcpu: u8) -> Gate {
        let (order, orders) = channel();
        self.orders.push((vcpu, order));
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
        self.asked.store(true, Ordering::Release);
    }

    /// Opens the gates, and tells each vCPU that stands still to go on.
    pub(super) fn open(&self) {
        self.asked.store(false, Ordering::Release);
        self.tell(&Order::GoOn);
    }

    /// Gives all vCPUs the same order.
    pub(super) fn tell(&self, order: &Order) {
        for (_, orders) in &self.orders {
            // One that ended needs none.
            let _ = orders.send(order.clone());
        }
    }

    /// What vCPUs said.
    pub(super) fn answers(&self) -> &Receiver<(u8, Answer)> {
        &self.answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn all_stand_still_until_the_gates_open() {
        let mut gates = Gates::new();
        let threads: Vec<_> = (0..3)
            .map(|vcpu| {
                let gate = gates.add(vcpu);
                assert!(!gate.is_shut());
                thread::spawn(move || {
                    while !gate.is_shut() {
                        thread::yield_now();
                    }
                    gate.say(Answer::Still);
                    let mut saves = 0;
                    while let Order::Save(_) = gate.next() {
                        saves += 1;
                    }
                    (saves, gate.is_shut())
                })
            })
            .collect();
        gates.shut();
        let mut still: Vec<u8> = (0..gates.count())
            .map(|_| gates.answers().recv_timeout(PATIENCE).unwrap().0)
            .collect();
        still.sort_unstable();
        assert_eq!(still, [0, 1, 2]);
        gates.tell(&Order::Save([].into()));
        gates.open();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), (1, false));
        }
    }

    #[test]
    fn a_vcpu_whose_main_thread_is_gone_goes_on() {
        let mut gates = Gates::new();
        let gate = gates.add(0);
        drop(gates);
        gate.say(Answer::Still);
        assert!(matches!(gate.next(), Order::GoOn));
    }
}
