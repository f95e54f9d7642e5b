// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Translations that a device keeps beside the unit, for any number of threads and without a lock.
//!
//! Each place has a version, odd while someone writes. Who reads it between two equal, even versions has read what was
//! written together; who finds it odd does without.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// Pages that are kept: those of a queue's rings, and of the buffers under way.
const PLACES: usize = 1024;

/// Bits of a kept page below its address: reads are refused, writes are. Refused, so that one AND finds what is needed and
/// not there.
pub(super) const NO_READ: u64 = 1;
pub(super) const NO_WRITE: u64 = 2;

#[derive(Debug, Default)]
#[repr(align(32))]
struct Place {
    version: AtomicU64,
    /// The unit's count of changes when it was translated; 0: nothing here.
    changes: AtomicU64,
    page: AtomicU64,
    /// What page and the one it leads to differ in, with what is refused.
    target: AtomicU64,
}

/// The translations.
#[derive(Debug)]
pub(super) struct Kept(Box<[Place; PLACES]>);

impl Kept {
    pub(super) fn new() -> Self {
        Self(Box::new(core::array::from_fn(|_| Place::default())))
    }

    #[inline(always)]
    fn place(&self, page: u64) -> Option<&Place> {
        self.0.get(page as usize % PLACES)
    }

    /// What was kept for page `page`, if it was since `changes`, and nothing is refused that is `needed`.
    #[inline(always)]
    pub(super) fn get(&self, changes: u64, page: u64, needed: u64) -> Option<u64> {
        let place = self.place(page)?;
        let version = place.version.load(Ordering::Acquire);
        let other = (place.changes.load(Ordering::Relaxed) ^ changes)
            | (place.page.load(Ordering::Relaxed) ^ page);
        let target = place.target.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let torn = (place.version.load(Ordering::Relaxed) ^ version) | (version & 1);
        // One branch for all that can be wrong: almost never is anything.
        (other | torn | (needed & target) == 0).then_some(target)
    }

    /// Keeps `target` for page `page` at `changes`, unless someone else is at it.
    pub(super) fn put(&self, changes: u64, page: u64, target: u64) {
        let Some(place) = self.place(page) else {
            return;
        };
        let version = place.version.load(Ordering::Relaxed);
        let odd = version.wrapping_add(1);
        let mine = version & 1 == 0
            && place
                .version
                .compare_exchange(version, odd, Ordering::Acquire, Ordering::Relaxed)
                .is_ok();
        if mine {
            fence(Ordering::Release);
            place.changes.store(changes, Ordering::Relaxed);
            place.page.store(page, Ordering::Relaxed);
            place.target.store(target, Ordering::Relaxed);
            place.version.store(odd.wrapping_add(1), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_was_kept_before_a_change_is_not_found_after_it() {
        let kept = Kept::new();
        assert_eq!(kept.get(1, 0, 0), None);
        kept.put(1, 5, 0x9000 | NO_WRITE);
        assert_eq!(kept.get(1, 5, NO_READ), Some(0x9000 | NO_WRITE));
        assert_eq!(kept.get(1, 5, NO_WRITE), None);
        assert_eq!(kept.get(1, 6, NO_READ), None);
        assert_eq!(kept.get(2, 5, NO_READ), None);
        // Another page of the same place.
        kept.put(1, 5 + PLACES as u64, 0xa000 | NO_WRITE);
        assert_eq!(kept.get(1, 5, NO_READ), None);
    }

    #[test]
    fn a_place_that_another_is_at_is_left_alone() {
        let kept = Kept::new();
        kept.put(1, 5, 0x9000 | NO_WRITE);
        let place = kept.place(5).unwrap();
        let version = place.version.load(Ordering::Relaxed);
        // The other has begun.
        place.version.store(version + 1, Ordering::Relaxed);
        kept.put(1, 5, 0xa000 | NO_WRITE);
        assert_eq!(kept.get(1, 5, NO_READ), None, "it may be half written");
        assert_eq!(place.version.load(Ordering::Relaxed), version + 1);
        assert_eq!(place.target.load(Ordering::Relaxed), 0x9000 | NO_WRITE);
        place.version.store(version + 2, Ordering::Relaxed);
        assert_eq!(kept.get(1, 5, NO_READ), Some(0x9000 | NO_WRITE));
    }

    /// Writers of pages that share a place: a reader finds a page's own target or nothing.
    #[test]
    fn nobody_reads_halves() {
        let kept = Kept::new();
        thread::scope(|scope| {
            for writer in 0..2u64 {
                let kept = &kept;
                scope.spawn(move || {
                    for i in 0..20_000 {
                        let page = (i * 2 + writer) % 6 * PLACES as u64;
                        kept.put(1 + i % 3, page, page << 12 | (1 + i % 3) << 4 | NO_WRITE);
                    }
                });
            }
            for i in 0..40_000u64 {
                let (page, changes) = (i % 6 * PLACES as u64, 1 + i % 3);
                let found = kept.get(changes, page, NO_READ);
                assert!(found.is_none_or(|found| found == page << 12 | changes << 4 | NO_WRITE));
            }
        });
    }
}
