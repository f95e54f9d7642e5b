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
#[derive(Clone, Debug)]
pub(super) struct Sets {
    sets: Vec<Set>,
    mask: u64,
}

impl Sets {
    /// Room for `entries`, rounded up to a power of two of sets.
    pub(super) fn new(entries: u32) -> Self {
        let sets = (entries as usize).div_ceil(WAYS).next_power_of_two();
        Self {
            sets: vec![EMPTY; sets],
            mask: sets as u64 - 1,
        }
    }

    #[inline(always)]
    pub(super) fn get(&self, tag: Tag) -> Option<u64> {
        let set = self.sets.get((tag.hash() & self.mask) as usize)?;
        let [a, b, c, d] = set.tags;
        let [w, x, y, z] = set.values;
        if a == tag.0 {
            Some(w)
        } else if b == tag.0 {
            Some(x)
        } else if c == tag.0 {
            Some(y)
        } else if d == tag.0 {
            Some(z)
        } else {
            None
        }
    }

    /// Remembers `value`, in place of what `tag` had, of nothing, or of the oldest in its set.
    #[inline]
    pub(super) fn insert(&mut self, tag: Tag, value: u64) {
        let Some(set) = self.sets.get_mut((tag.hash() & self.mask) as usize) else {
            return;
        };
        let [a, b, c, d] = &mut set.tags;
        let [w, x, y, z] = &mut set.values;
        let free = |at: &u64| *at == tag.0;
        if free(a) {
            *w = value;
        } else if free(b) {
            *x = value;
        } else if free(c) {
            *y = value;
        } else if free(d) {
            *z = value;
        } else {
            // The first that is free takes it; if none is, all move up and the oldest falls out.
            if *a != 0 {
                if *b != 0 {
                    if *c != 0 {
                        (*d, *z) = (*c, *y);
                    }
                    (*c, *y) = (*b, *x);
                }
                (*b, *x) = (*a, *w);
            }
            (*a, *w) = (tag.0, value);
        }
    }

    /// Forgets `tag`.
    #[inline]
    pub(super) fn remove(&mut self, tag: Tag) {
        if let Some(set) = self.sets.get_mut((tag.hash() & self.mask) as usize) {
            for at in &mut set.tags {
                if *at == tag.0 {
                    *at = 0;
                }
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
    fn a_full_set_loses_its_oldest() {
        let mut cache = Sets::new(4);
        for page in 0..5 {
            cache.insert(Tag::new(1, page), page);
        }
        assert_eq!(cache.get(Tag::new(1, 0)), None);
        assert!((1..5).all(|page| cache.get(Tag::new(1, page)) == Some(page)));
    }
}
