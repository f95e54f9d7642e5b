// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which numbers are taken: domain-ids, interrupt-remapping entries.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

/// Numbers below a limit, each free or taken.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    taken: Vec<u64>,
    count: u32,
    /// Where to look first: numbers are used again as late as possible.
    next: u32,
}

impl Ids {
    /// The numbers below `count` (at most 65,536), all free.
    pub(super) fn new(count: u32) -> Self {
        let count = count.min(1 << 16);
        Self {
            taken: vec![0; count.div_ceil(64) as usize],
            count,
            next: 0,
        }
    }

    /// Whether `id` is taken, or no number that there is.
    pub(super) fn is_taken(&self, id: u16) -> bool {
        let word = self.taken.get(usize::from(id >> 6)).copied();
        u32::from(id) >= self.count || word.unwrap_or(!0) >> (id & 63) & 1 != 0
    }

    /// Whether `id` was allocated.
    pub(super) fn holds(&self, id: u16) -> bool {
        u32::from(id) < self.count && self.is_taken(id)
    }

    /// How many numbers there are.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }

    /// The numbers that are taken.
    pub(super) fn all_taken(&self) -> impl Iterator<Item = u16> {
        (0..self.count)
            .map(|id| id as u16)
            .filter(|id| self.is_taken(*id))
    }

    fn set(&mut self, id: u32, to: bool) {
        if let Some(word) = self.taken.get_mut((id >> 6) as usize) {
            let bit = 1 << (id & 63);
            *word = if to { *word | bit } else { *word & !bit };
        }
    }

    /// Takes `id`, whether it was free or not.
    pub(super) fn take(&mut self, id: u16) {
        self.set(id.into(), true);
    }

    /// The first of `length` (a power of two) free numbers aligned to it, taken now.
    pub(super) fn allocate(&mut self, length: u32) -> Option<u16> {
        if !length.is_power_of_two() || length > self.count {
            return None;
        }
        // No multiple of `length` is above 2^17: neither sum is more than it says.
        let block = |start: u32| start..start.saturating_add(length);
        let later = self.next.checked_next_multiple_of(length)?;
        let starts = |among: Range<u32>| among.step_by(length as usize);
        let start = starts(later..self.count)
            .chain(starts(0..later.min(self.count)))
            .find(|&start| block(start).all(|id| !self.is_taken(id as u16)))?;
        block(start).for_each(|id| self.set(id, true));
        let behind = block(start).end;
        self.next = if behind < self.count { behind } else { 0 };
        Some(start as u16)
    }

    /// Frees `length` numbers from `start`.
    pub(super) fn free(&mut self, start: u16, length: u32) {
        let start = u32::from(start);
        (start..start.saturating_add(length).min(self.count)).for_each(|id| self.set(id, false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_apart() {
        let mut ids = Ids::new(16);
        ids.take(0);
        assert_eq!(ids.allocate(1), Some(1));
        assert_eq!(ids.allocate(4), Some(4));
        assert_eq!(ids.allocate(8), Some(8));
        assert_eq!(ids.allocate(2), Some(2));
        assert_eq!(ids.allocate(1), None);
        ids.free(8, 8);
        assert!(!ids.is_taken(8) && ids.is_taken(7) && ids.is_taken(16));
        assert!(ids.all_taken().eq([0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(ids.allocate(3), None);
        assert_eq!(ids.allocate(16), None);
        assert_eq!(ids.allocate(8), Some(8));
    }

    #[test]
    fn a_number_is_used_again_as_late_as_possible() {
        let mut ids = Ids::new(4);
        assert_eq!(ids.allocate(1), Some(0));
        ids.free(0, 1);
        assert_eq!(ids.allocate(1), Some(1));
        assert_eq!(Ids::new(1 << 20).count(), 1 << 16);
    }
}
