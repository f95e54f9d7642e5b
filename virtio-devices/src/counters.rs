// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a queue has done, in numbers.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a queue has done since the device was made, over all resets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Chains served.
    pub chains: u64,
    /// Bytes of data moved, either way.
    pub bytes: u64,
    /// Interrupts asked for.
    pub interrupts: u64,
    /// Requests that failed because of the host.
    pub errors: u64,
    /// Times that the queue waited for its rate limiter.
    pub limited: u64,
}

/// A queue's numbers, shared by its worker and whoever reads them.
#[derive(Clone, Debug, Default)]
pub struct Counters(Arc<Cells>);

#[derive(Debug, Default)]
struct Cells {
    chains: AtomicU64,
    bytes: AtomicU64,
    interrupts: AtomicU64,
    errors: AtomicU64,
    limited: AtomicU64,
}

impl Counters {
    /// Numbers for each of `count` queues: a clone would be the same queue's.
    pub(crate) fn each(count: usize) -> Vec<Self> {
        std::iter::repeat_with(Self::default).take(count).collect()
    }

    /// The numbers now. Each is right by itself.
    pub fn read(&self) -> Counts {
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Counts {
            chains: get(&self.0.chains),
            bytes: get(&self.0.bytes),
            interrupts: get(&self.0.interrupts),
            errors: get(&self.0.errors),
            limited: get(&self.0.limited),
        }
    }

    pub(crate) fn served(&self, chains: u64, bytes: u64) {
        self.0.chains.fetch_add(chains, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn interrupted(&self) {
        self.0.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an error and returns how many there were.
    pub(crate) fn failed(&self) -> u64 {
        let before = self.0.errors.fetch_add(1, Ordering::Relaxed);
        before.wrapping_add(1)
    }

    pub(crate) fn waited(&self) {
        self.0.limited.fetch_add(1, Ordering::Relaxed);
    }
}
