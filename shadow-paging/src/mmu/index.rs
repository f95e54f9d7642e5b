// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A hash index of numbered things that are kept elsewhere. Growing it may fail; using it cannot.

use alloc::vec::Vec;

use super::error::OutOfMemory;
use super::pages::bytes_of;

/// Numbers by hash: open addressing, linear probing, at most half full. Things of equal hash may be
/// many; whoever asks tells them apart.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// A number plus one, or 0.
    slots: Vec<u32>,
    used: usize,
}

/// Spreads a key over all bits of a hash.
pub(crate) const fn mix(key: u64) -> u64 {
    let x = (key ^ key >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ x >> 29
}

impl Index {
    /// An index of nothing.
    pub(crate) const EMPTY: Self = Self {
        slots: Vec::new(),
        used: 0,
    };

    /// An index with room for `count` numbers.
    pub(crate) fn with_room(count: usize) -> Result<Self, OutOfMemory> {
        let size = count
            .checked_mul(2)
            .and_then(usize::checked_next_power_of_two)
            .ok_or(OutOfMemory)?
            .max(8);
        let mut slots = Vec::new();
        slots.try_reserve_exact(size).map_err(|_| OutOfMemory)?;
        slots.resize(size, 0);
        Ok(Self { slots, used: 0 })
    }

    /// Makes room for one more number. `hash_of` gives the hash of each number that is in it.
    pub(crate) fn reserve(&mut self, hash_of: impl Fn(u32) -> u64) -> Result<(), OutOfMemory> {
        if self.used < self.slots.len() / 2 {
            return Ok(());
        }
        let mut larger = Self::with_room(self.used.max(4).saturating_mul(2))?;
        for number in self.slots.iter().filter_map(|slot| slot.checked_sub(1)) {
            larger.insert(hash_of(number), number);
        }
        *self = larger;
        Ok(())
    }

    /// Where a number with `hash` is if it is alone. There is a power of two of slots, or none.
    fn home(&self, hash: u64) -> usize {
        hash as usize & self.last()
    }

    fn last(&self) -> usize {
        self.slots.len().wrapping_sub(1)
    }

    /// The number in a slot; `None` if there is none, or no such slot.
    #[inline]
    fn at(&self, slot: usize) -> Option<u32> {
        self.slots.get(slot)?.checked_sub(1)
    }

    /// Every number that may have `hash`, and some that have not.
    pub(crate) fn near(&self, hash: u64) -> impl Iterator<Item = u32> {
        let start = if self.slots.is_empty() {
            0
        } else {
            self.home(hash)
        };
        let (before, from) = self.slots.split_at(start);
        from.iter()
            .chain(before)
            .map_while(|slot| slot.checked_sub(1))
    }

    /// The first number that may have `hash` and is what is looked for.
    #[inline]
    pub(crate) fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = self.home(hash);
        // Half of them are 0.
        loop {
            let number = self.at(at)?;
            if is(number) {
                return Some(number);
            }
            at = at.wrapping_add(1) & self.last();
        }
    }

    /// Adds `number`, for which there is room.
    pub(crate) fn insert(&mut self, hash: u64, number: u32) {
        debug_assert!(self.used < self.slots.len() / 2, "room was made");
        let mut at = self.home(hash);
        while self.at(at).is_some() {
            at = at.wrapping_add(1) & self.last();
        }
        self.put(at, Some(number));
        self.used = self.used.saturating_add(1);
    }

    /// Slot `at`, which is there, gets `number`, or becomes empty.
    fn put(&mut self, at: usize, number: Option<u32>) {
        match self.slots.get_mut(at) {
            Some(slot) => *slot = number.map_or(0, |number| number.wrapping_add(1)),
            None => debug_assert!(false, "no room was made"),
        }
    }

    /// Takes `number` out and closes the gap.
    pub(crate) fn remove(&mut self, hash: u64, number: u32, hash_of: impl Fn(u32) -> u64) {
        let last = self.last();
        let mut gap = self.home(hash);
        loop {
            match self.at(gap) {
                Some(there) if there == number => break,
                Some(_) => gap = gap.wrapping_add(1) & last,
                None => {
                    debug_assert!(false, "{number} is not in the index");
                    return;
                }
            }
        }
        self.used = self.used.saturating_sub(1);
        let mut at = gap;
        loop {
            at = at.wrapping_add(1) & last;
            let Some(moved) = self.at(at) else {
                break;
            };
            // It may move to the gap unless its home lies cyclically after the gap.
            let home = self.home(hash_of(moved));
            if (at.wrapping_sub(home) & last) >= (at.wrapping_sub(gap) & last) {
                self.put(gap, Some(moved));
                gap = at;
            }
        }
        self.put(gap, None);
    }

    /// Bytes of memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        bytes_of(&self.slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    /// Few hashes, so that everything collides.
    fn hash(number: u32) -> u64 {
        u64::from(number % 5)
    }

    #[test]
    fn holds_exactly_what_was_put_in_and_not_taken_out() {
        let mut index = Index::default();
        let mut held = BTreeSet::new();
        let mut seed = 1u32;
        for _ in 0..4000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let number = seed >> 16 & 63;
            if held.remove(&number) {
                index.remove(hash(number), number, hash);
            } else {
                index.reserve(hash).unwrap();
                index.insert(hash(number), number);
                held.insert(number);
            }
            for number in 0..64 {
                let found = index.near(hash(number)).any(|n| n == number);
                assert_eq!(found, held.contains(&number), "{number}");
                assert_eq!(index.find(hash(number), |n| n == number).is_some(), found);
            }
        }
        assert_eq!(index.used, held.len());
    }

    #[test]
    fn nothing_is_in_an_empty_one() {
        assert_eq!(Index::default().near(7).count(), 0);
        assert_eq!(Index::default().find(7, |_| true), None);
        assert_eq!(Index::with_room(3).unwrap().near(7).count(), 0);
    }
}
