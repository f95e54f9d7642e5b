// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How often something was to be forgotten, for who keeps translations outside of the unit.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

/// A count that one unit moves and any thread reads. What was translated at another count than now may be stale.
///
/// It moves before the descriptor after the one that moved it: whoever sees an invalidation wait done sees it moved.
#[derive(Debug)]
pub(in super::super) struct Changes(Arc<AtomicU64>);

impl Changes {
    /// Nothing to be forgotten yet. Never 0.
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1)))
    }

    /// One more. The unit is borrowed mutably, so nobody else moves it: a load and a store do.
    #[inline(always)]
    pub(super) fn add(&self) {
        let next = self.0.load(Ordering::Relaxed).wrapping_add(1);
        self.0.store(next, Ordering::Release);
    }

    /// The count, to be read by others.
    #[cfg(feature = "vm-memory")]
    pub(in super::super) fn share(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0)
    }

    /// Counts on in `shared`, if another unit did so before: all that was translated by that one is stale.
    #[cfg(feature = "vm-memory")]
    pub(in super::super) fn go_on_in(&mut self, shared: &Arc<AtomicU64>) {
        if !Arc::ptr_eq(&self.0, shared) {
            self.0 = Arc::clone(shared);
            self.add();
        }
    }
}

impl Clone for Changes {
    /// A count of its own: two units would lose each other's changes.
    fn clone(&self) -> Self {
        Self::new()
    }
}
