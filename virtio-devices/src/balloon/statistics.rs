// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the guest says of its memory.
//!
//! The driver leaves a buffer with us. It stays the next chain of its queue until somebody asks for new statistics;
//! then it is used, and the driver brings another. So a queue at rest has nothing in flight.
//!
//! "Memory Statistics" (5.5.6.3), "Memory Statistics Tags" (5.5.6.4).

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vm_memory::GuestMemory;

use super::Shared;
use crate::queue::{Chain, Reach};
use crate::serve::{Answer, Handler, Served};

/// Bytes of "struct virtio_balloon_stat".
const ENTRY: usize = 10;
/// Entries that are looked at. The specification has fewer kinds.
const MOST: usize = 64;

/// What a number means. Open: drivers may know more than this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Statistic(pub u16);

impl Statistic {
    /// Bytes swapped in.
    pub const SWAP_IN: Self = Self(0);
    /// Bytes swapped out.
    pub const SWAP_OUT: Self = Self(1);
    /// Major page faults.
    pub const MAJOR_FAULTS: Self = Self(2);
    /// Minor page faults.
    pub const MINOR_FAULTS: Self = Self(3);
    /// Bytes not used for anything.
    pub const FREE: Self = Self(4);
    /// Bytes in all.
    pub const TOTAL: Self = Self(5);
    /// Bytes that can be had without swapping.
    pub const AVAILABLE: Self = Self(6);
    /// Bytes in file caches.
    pub const CACHES: Self = Self(7);
    /// Huge pages that were allocated.
    pub const HUGE_ALLOCATED: Self = Self(8);
    /// Huge pages that could not be allocated.
    pub const HUGE_FAILED: Self = Self(9);

    /// A name in one word, if this crate knows the kind.
    pub fn name(self) -> Option<&'static str> {
        const NAMES: [&str; 10] = [
            "swap_in",
            "swap_out",
            "major_faults",
            "minor_faults",
            "free",
            "total",
            "available",
            "caches",
            "huge_allocated",
            "huge_failed",
        ];
        NAMES.get(usize::from(self.0)).copied()
    }
}

/// A guest's statistics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// By kind, those that the guest told.
    pub values: BTreeMap<Statistic, u64>,
    /// How often the guest has told them since it was reset.
    pub answers: u64,
}

impl Statistics {
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// Reads what the guest tells, and keeps its buffer until it is to tell again.
pub(super) struct Listener {
    shared: Arc<Shared>,
    /// The buffer that is the queue's next chain has been read.
    heard: bool,
}

impl Listener {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let heard = false;
        Self { shared, heard }
    }

    fn hear<M: GuestMemory + ?Sized>(&self, reach: &Reach<'_, M>, chain: &Chain) {
        let mut raw = [0; ENTRY * MOST];
        // A buffer that is not in memory tells nothing.
        let length = chain.readable().read(reach, &mut raw).unwrap_or(0);
        let mut statistics = self.shared.statistics();
        statistics.values.clear();
        let told = raw.get(..length).unwrap_or_default();
        for entry in told.as_chunks::<ENTRY>().0 {
            let [t0, t1, value @ ..] = *entry;
            let tag = Statistic(u16::from_le_bytes([t0, t1]));
            statistics.values.insert(tag, u64::from_le_bytes(value));
        }
        statistics.answers = statistics.answers.wrapping_add(1);
    }
}

impl<A> Handler<A> for Listener {
    fn name(&self) -> String {
        "balloon-stat".to_owned()
    }

    fn source(&self) -> Option<RawFd> {
        Some(self.shared.asked.as_raw_fd())
    }

    fn serve<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>, chain: &Chain) -> Answer {
        if !self.heard {
            self.hear(reach, chain);
            self.heard = true;
        }
        // An error means that nobody has asked.
        if self.shared.asked.read().is_err() {
            return Answer::Later;
        }
        self.heard = false;
        Answer::Done(Served::default())
    }
}
