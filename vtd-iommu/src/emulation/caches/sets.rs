// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A set-associative cache of one word by one word.
//!
//! ```text
//!  place   0 1 2 3 ... | S S+1 ...  | 2S ...     | 3S ...        S sets; place p, p ^ S, p ^ 2S, p ^ 3S are one
//!          way 0         way 1        way 2        way 3
//!
//!  tag ---hash---> its own place: here, or, if the place is marked, in one of the other three
//! ```
//!
//! Consecutive pages, as many as there is room for, are all in places of their own: one comparison, which goes the same
//! way each time, finds them, and neighbours share lines of this machine's cache.

use alloc::vec;
use alloc::vec::Vec;

/// A place.
#[derive(Clone, Copy, Debug)]
#[repr(align(16))]
struct Place {
    /// [`NOBODYS`]: free.
    tag: u64,
    /// The value, and [`MARK`].
    value: u64,
}

/// No page's tag: its space is one past the last.
const NOBODYS: u64 = u64::MAX;

const FREE: Place = Place {
    tag: NOBODYS,
    value: 0,
};

/// In the value of a place: something whose own place this is may be in another of its set. It stays when the place
/// gets another value, and when it is free.
const MARK: u64 = 1 << 11;

/// What a page's tag consists of: its number, and the number of its address space.
///
/// A space number is never used for two spaces: what makes a whole space forgotten is that nobody has its
/// number any more, whatever number of entries there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u64);

impl Tag {
    /// Bits of a space number; the rest is a page number of 45 bits, which is all of 57-bit addresses.
    const SPACE_BITS: u32 = 19;
    /// One past the highest space number. 0 is no space: nothing is ever kept of it.
    pub(super) const SPACES: u32 = (1 << Self::SPACE_BITS) - 1;

    /// Page `page` of `space`.
    #[inline(always)]
    pub(super) const fn new(space: u32, page: u64) -> Self {
        Self(page << Self::SPACE_BITS | space as u64)
    }

    /// Spreads pages over places in order, and spaces away from each other.
    #[inline(always)]
    const fn hash(self) -> u64 {
        let space = self.0 & Self::SPACES as u64;
        (self.0 >> Self::SPACE_BITS) ^ space.wrapping_mul(0x9e3b)
    }
}

/// The cache. Values must not have bit 11 set.
#[derive(Clone, Debug)]
pub(super) struct Sets {
    places: Vec<Place>,
    /// The number of places, a power of two, less one.
    mask: u64,
}

impl Sets {
    /// Room for `entries`, rounded up to a power of two, 4 at least.
    pub(super) fn new(entries: u32) -> Self {
        let places = (entries as usize).next_power_of_two().max(4);
        Self {
            places: vec![FREE; places],
            mask: (places as u64).wrapping_sub(1),
        }
    }

    #[inline(always)]
    const fn own(&self, tag: Tag) -> usize {
        (tag.hash() & self.mask) as usize
    }

    /// The other places of the set that `place` is in.
    #[inline]
    fn others(&self, place: usize) -> impl Iterator<Item = usize> + use<> {
        let sets = (self.mask as usize).wrapping_add(1) / 4;
        (1..4usize).map(move |way| place ^ way.wrapping_mul(sets))
    }

    /// What `tag` has, if that is in its own place.
    #[inline(always)]
    pub(super) fn get_own(&self, tag: Tag) -> Option<u64> {
        match self.places.get(self.own(tag)) {
            Some(place) if place.tag == tag.0 => Some(place.value),
            _ => None,
        }
    }

    /// Whether `tag`, which is not in its own place, may be in another.
    #[inline(always)]
    pub(super) fn maybe_elsewhere(&self, tag: Tag) -> bool {
        self.places
            .get(self.own(tag))
            .is_some_and(|place| place.value & MARK != 0)
    }

    /// What `tag` has.
    #[inline]
    pub(super) fn get(&self, tag: Tag) -> Option<u64> {
        let place = self.places.get(self.find(tag)?)?;
        Some(place.value & !MARK)
    }

    /// The place of `tag`.
    #[inline]
    fn find(&self, tag: Tag) -> Option<usize> {
        let own = self.own(tag);
        let place = self.places.get(own)?;
        if place.tag == tag.0 {
            Some(own)
        } else if place.value & MARK != 0 {
            self.elsewhere(own, tag)
        } else {
            None
        }
    }

    #[cold]
    fn elsewhere(&self, own: usize, tag: Tag) -> Option<usize> {
        self.others(own).find(|at| self.has(*at, tag.0))
    }

    #[inline]
    fn has(&self, at: usize, tag: u64) -> bool {
        self.places.get(at).is_some_and(|place| place.tag == tag)
    }

    /// Remembers `value`, in place of what `tag` had, or of nothing, or of another in its set.
    #[inline(always)]
    pub(super) fn insert(&mut self, tag: Tag, value: u64) {
        let own = self.own(tag);
        let at = match self.places.get(own) {
            Some(place) if place.tag == NOBODYS && place.value & MARK == 0 => own,
            _ => self.make_room(own, tag),
        };
        if let Some(place) = self.places.get_mut(at) {
            let mark = place.value & MARK;
            *place = Place {
                tag: tag.0,
                value: value | mark,
            };
        }
    }

    /// A place for `tag`: where it is, or its own. Who is there moves to a free one, or falls out.
    #[inline(never)]
    fn make_room(&mut self, own: usize, tag: Tag) -> usize {
        if let Some(at) = self.find(tag) {
            return at;
        }
        let Some(here) = self.places.get(own).copied() else {
            return own;
        };
        let free = self.others(own).find(|at| self.has(*at, NOBODYS));
        if here.tag != NOBODYS
            && let Some(free) = free
        {
            let home = self.own(Tag(here.tag));
            if let Some(place) = self.places.get_mut(home) {
                place.value |= MARK;
            }
            if let Some(place) = self.places.get_mut(free) {
                let mark = place.value & MARK;
                *place = Place {
                    tag: here.tag,
                    value: here.value & !MARK | mark,
                };
            }
        }
        own
    }

    /// Forgets `tag`.
    #[inline(always)]
    pub(super) fn remove(&mut self, tag: Tag) {
        let own = self.own(tag);
        if let Some(place) = self.places.get_mut(own) {
            // A store in any case: whether it is here is anyone's guess.
            let found = place.tag == tag.0;
            place.tag = if found { NOBODYS } else { place.tag };
            if place.value & MARK != 0 {
                self.remove_elsewhere(own, tag);
            }
        }
    }

    #[cold]
    fn remove_elsewhere(&mut self, own: usize, tag: Tag) {
        for at in self.others(own) {
            if let Some(place) = self.places.get_mut(at)
                && place.tag == tag.0
            {
                place.tag = NOBODYS;
            }
        }
        // Nobody whose own place this is left in another: a mark no more.
        let mut others = self.others(own).filter_map(|at| self.places.get(at));
        if !others.any(|place| place.tag != NOBODYS && self.own(Tag(place.tag)) == own)
            && let Some(place) = self.places.get_mut(own)
        {
            place.value &= !MARK;
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.places.fill(FREE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_last_is_there() {
        let mut cache = Sets::new(64);
        for page in 0..64 {
            cache.insert(Tag::new(1, page), page << 12);
        }
        assert!((0..64).all(|page| cache.get_own(Tag::new(1, page)) == Some(page << 12)));
        assert_eq!(cache.get(Tag::new(2, 5)), None);
        cache.insert(Tag::new(1, 5), 7);
        assert_eq!(cache.get(Tag::new(1, 5)), Some(7));
        cache.remove(Tag::new(1, 5));
        assert_eq!(cache.get(Tag::new(1, 5)), None);
        cache.clear();
        assert!((0..64).all(|page| cache.get(Tag::new(1, page)).is_none()));
    }

    /// What is kept of no space is nothing, in a place that was never used and in one that was.
    #[test]
    fn nobody_finds_a_free_place() {
        let mut cache = Sets::new(4);
        for page in 0..4 {
            let of = |space| Tag::new(space, page);
            assert_eq!((cache.get(of(0)), cache.get_own(of(0))), (None, None));
            cache.insert(of(1), 0x9007);
            cache.remove(of(1));
        }
        for page in 0..4 {
            let of = |space| Tag::new(space, page);
            assert_eq!((cache.get(of(0)), cache.get_own(of(0))), (None, None));
        }
        let highest = Tag::new(Tag::SPACES - 1, (1 << 45) - 1);
        assert_eq!((cache.get(highest), cache.get_own(highest)), (None, None));
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
    fn whoever_shares_a_place_moves_over() {
        let mut cache = Sets::new(64);
        let pages = [3, 3 + 64, 3 + 128, 3 + 192];
        for page in pages {
            cache.insert(Tag::new(1, page), page);
        }
        assert!(
            pages
                .iter()
                .all(|page| cache.get(Tag::new(1, *page)) == Some(*page & !MARK))
        );
        for page in pages {
            cache.insert(Tag::new(1, page), page + 1);
            assert_eq!(cache.get(Tag::new(1, page)), Some(page + 1));
            cache.remove(Tag::new(1, page));
            assert_eq!(cache.get(Tag::new(1, page)), None);
        }
        assert!(cache.places.iter().all(|place| place.tag == NOBODYS));
    }

    /// Whatever is done, a page has the value that it was given last, or none; and none after it was removed.
    #[test]
    fn nothing_outlives_its_removal() {
        let mut cache = Sets::new(16);
        let mut model = alloc::collections::BTreeMap::new();
        let mut random = 7u64;
        for value in (0..20_000u64).map(|i| i << 12) {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let tag = Tag::new(1 + (random >> 33) as u32 % 2, random >> 40 & 63);
            if random >> 60 < 6 {
                cache.remove(tag);
                model.remove(&tag.0);
            } else {
                cache.insert(tag, value);
                assert_eq!(cache.get(tag), Some(value));
                model.insert(tag.0, value);
            }
            for tag in (0..64).flat_map(|page| [Tag::new(1, page), Tag::new(2, page)]) {
                let found = cache.get(tag);
                assert!(found.is_none() || found == model.get(&tag.0).copied());
            }
            let tags: Vec<u64> = cache.places.iter().map(|place| place.tag).collect();
            for (i, tag) in tags.iter().enumerate() {
                assert!(
                    *tag == NOBODYS || !tags[..i].contains(tag),
                    "a tag is there twice"
                );
            }
        }
    }
}
