// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A set-associative cache of one word by one word.

use alloc::vec;
use alloc::vec::Vec;

/// Places of a set.
const WAYS: usize = 4;

/// A set: one cache line of this machine's.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Set {
    tags: [u64; WAYS],
    values: [u64; WAYS],
}

const EMPTY: Set = Set {
    tags: [0; WAYS],
    values: [0; WAYS],
};

/// What a page's tag consists of: its number, and the number of its address space.
///
/// A space number is never used for two spaces: what makes a whole space forgotten is that nobody has its
/// number any more, whatever number of entries there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

impl Tag {
    /// Bits of a space number; the rest is a page number of 45 bits, which is all of 57-bit addresses.
    const SPACE_BITS: u32 = 19;
    /// One past the highest space number. 0 is no space.
    pub(super) const SPACES: u32 = 1 << Self::SPACE_BITS;

    /// Page `page` of `space`.
    #[inline(always)]
    pub(super) const fn new(space: u32, page: u64) -> Self {
        Self(page << Self::SPACE_BITS | space as u64)
    }

    /// Spreads pages over sets in order, and spaces away from each other.
    #[inline(always)]
    const fn hash(self) -> u64 {
        let space = self.0 & (Self::SPACES as u64 - 1);
        (self.0 >> Self::SPACE_BITS) ^ space.wrapping_mul(0x9e3b)
    }
}

/// The cache.
///
/// A page has a set, and in it a way that is its own as far as possible: consecutive pages, as many as there is room
/// for, are all in theirs, and one comparison, which goes the same way each time, finds them.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    sets: Vec<Set>,
    mask: u64,
    /// log2 of the number of sets.
    bits: u32,
}

impl Sets {
    /// Room for `entries`, rounded up to a power of two of sets.
    pub(super) fn new(entries: u32) -> Self {
        let sets = (entries as usize).div_ceil(WAYS).next_power_of_two();
        Self {
            sets: vec![EMPTY; sets],
            mask: sets as u64 - 1,
            bits: sets.trailing_zeros(),
        }
    }

    /// Which set, and which way of it first.
    #[inline(always)]
    const fn place(&self, tag: Tag) -> (usize, usize) {
        let hash = tag.hash();
        let way = hash.wrapping_shr(self.bits) as usize % WAYS;
        ((hash & self.mask) as usize, way)
    }

    #[inline(always)]
    pub(super) fn get(&self, tag: Tag) -> Option<u64> {
        let (set, own) = self.place(tag);
        let Set { tags, values } = self.sets.get(set)?;
        if tags[own] == tag.0 {
            return Some(values[own]);
        }
        Self::elsewhere(tags, tag).map(|way| values[way])
    }

    /// The way of `tag`.
    #[inline]
    fn elsewhere(tags: &[u64; WAYS], tag: Tag) -> Option<usize> {
        tags.iter().position(|at| *at == tag.0)
    }

    /// Remembers `value`, in place of what `tag` had, or of nothing, or of another in its set.
    #[inline]
    pub(super) fn insert(&mut self, tag: Tag, value: u64) {
        let (set, own) = self.place(tag);
        let Some(Set { tags, values }) = self.sets.get_mut(set) else {
            return;
        };
        let found = Self::elsewhere(tags, tag);
        let way = match found {
            Some(way) => way,
            None if tags[own] == 0 => own,
            None => {
                // Who is here moves to a free way, or to the next, whose owner falls out.
                let free = tags.iter().position(|at| *at == 0);
                let to = free.unwrap_or((own + 1) % WAYS);
                (tags[to], values[to]) = (tags[own], values[own]);
                own
            }
        };
        (tags[way], values[way]) = (tag.0, value);
    }

    /// Forgets `tag`.
    #[inline]
    pub(super) fn remove(&mut self, tag: Tag) {
        let (set, _) = self.place(tag);
        if let Some(Set { tags, .. }) = self.sets.get_mut(set) {
            for at in tags {
                // A store in any case: whether it is here is anyone's guess.
                *at = if *at == tag.0 { 0 } else { *at };
            }
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.sets.fill(EMPTY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_last_is_there() {
        let mut cache = Sets::new(64);
        for page in 0..64 {
            cache.insert(Tag::new(1, page), page + 100);
        }
        assert!((0..64).all(|page| cache.get(Tag::new(1, page)) == Some(page + 100)));
        assert_eq!(cache.get(Tag::new(2, 5)), None);
        cache.insert(Tag::new(1, 5), 7);
        assert_eq!(cache.get(Tag::new(1, 5)), Some(7));
        cache.remove(Tag::new(1, 5));
        assert_eq!(cache.get(Tag::new(1, 5)), None);
        cache.clear();
        assert!((0..64).all(|page| cache.get(Tag::new(1, page)).is_none()));
    }

    #[test]
    fn a_full_set_loses_one_for_another() {
        let mut cache = Sets::new(4);
        for page in 0..5 {
            cache.insert(Tag::new(1, page), page);
        }
        let kept = |page| cache.get(Tag::new(1, page));
        assert_eq!((0..5).filter(|page| kept(*page) == Some(*page)).count(), 4);
        assert_eq!(kept(4), Some(4));
    }

    #[test]
    fn whoever_shares_a_way_moves_over() {
        let mut cache = Sets::new(64);
        // All of one set, and one way of it.
        let pages = [3, 3 + 64, 3 + 128, 3 + 192];
        for page in pages {
            cache.insert(Tag::new(1, page), page);
        }
        assert!(pages.iter().all(|page| cache.get(Tag::new(1, *page)) == Some(*page)));
        for page in pages {
            cache.insert(Tag::new(1, page), page + 1);
            assert_eq!(cache.get(Tag::new(1, page)), Some(page + 1));
            cache.remove(Tag::new(1, page));
            assert_eq!(cache.get(Tag::new(1, page)), None);
        }
    }
}
