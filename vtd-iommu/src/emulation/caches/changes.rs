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

#[cfg(all(test, feature = "vm-memory", feature = "fake"))]
mod tests {
    use super::*;
    use crate::emulation::fake::{NoMemory, Ram};
    use crate::emulation::{Memory, Nobody, Options, Unit};
    use crate::spec::registers::{GCMD, IQA, IQT};
    use core::cell::Cell;
    use hvkit_page_table::{ReadEntry, UpdateEntry, Width};

    const STATUS: u64 = 0x3000;

    /// Memory that notes the count when a wait's status is written.
    struct Witness {
        ram: Ram,
        count: Arc<AtomicU64>,
        seen: Cell<u64>,
    }

    impl ReadEntry for Witness {
        type Error = NoMemory;

        fn read(&self, at: u64, width: Width) -> Result<u64, NoMemory> {
            self.ram.read(at, width)
        }
    }

    impl UpdateEntry for Witness {
        fn compare_exchange(
            &self,
            at: u64,
            width: Width,
            current: u64,
            new: u64,
        ) -> Result<u64, NoMemory> {
            self.ram.compare_exchange(at, width, current, new)
        }
    }

    impl Memory for Witness {
        fn write(&self, at: u64, width: Width, value: u64) -> Result<(), NoMemory> {
            if at == STATUS {
                self.seen.set(self.count.load(Ordering::Acquire));
            }
            self.ram.write(at, width, value)
        }
    }

    /// Whoever sees that an invalidation is done must find that what was kept before it is stale.
    #[test]
    fn the_count_has_moved_when_a_wait_says_so() {
        for invalidation in [
            [0x7_0032, 0x1040],
            [0x7_0032, 0x1000 | 18],
            [0x7_0022, 0],
            [0x12, 0],
            [0x11, 0],
            [0x7_0021, 0],
            [0x18_0007_0031, 0],
            // A domain-id that nobody uses.
            [0xffff_0032, 0x1000],
        ] {
            let mut unit = Unit::new(Options::new(48)).unwrap();
            let memory = Witness {
                ram: Ram::new(0x1_0000),
                count: unit.caches.changes.share(),
                seen: Cell::new(0),
            };
            let before = memory.count.load(Ordering::Relaxed);
            memory.ram.set_all(0x1000, &invalidation);
            memory.ram.set_all(0x1010, &[0x1_0000_0025, STATUS]);
            unit.write64(&memory, &mut Nobody, IQA.offset(), 0x1000);
            unit.write32(&memory, &mut Nobody, GCMD.offset(), 1 << 26);
            unit.write64(&memory, &mut Nobody, IQT.offset(), 0x20);
            assert!(memory.seen.get() > before, "{invalidation:x?}");
        }
    }

    #[test]
    fn a_clone_counts_for_itself() {
        let one = Changes::new();
        let other = one.clone();
        let (count, others) = (one.share(), other.share());
        one.add();
        assert_eq!(count.load(Ordering::Relaxed), 2);
        assert_eq!(others.load(Ordering::Relaxed), 1);
    }
}
