// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists of links to entries, most of which have one element: four bytes for each link, whether it is
//! alone or among many.

use alloc::vec::Vec;

use super::error::OutOfMemory;
use super::pages::bytes_of;
use super::slab::{CLASSES, Slab};

/// Which entry of which shadow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link(u32);

/// Index bits of a shadow table: at most 512 entries.
const INDEX_BITS: u32 = 9;

impl Link {
    /// The most shadow tables that links can tell apart.
    pub(crate) const MOST_PAGES: u32 = 1 << (31 - INDEX_BITS);

    pub(crate) const fn new(page: u32, index: usize) -> Self {
        Self(page << INDEX_BITS | index as u32)
    }

    /// As a word that is not 0: [`MOST_PAGES`](Self::MOST_PAGES) leaves the highest bit free.
    const fn word(self) -> u32 {
        self.0.wrapping_add(1)
    }

    /// Of a [word](Self::word), not 0.
    const fn from_word(word: u32) -> Self {
        Self(word.wrapping_sub(1))
    }

    pub(crate) const fn page(self) -> u32 {
        self.0 >> INDEX_BITS
    }

    pub(crate) const fn index(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize
    }
}

/// A list's first word: nothing, one link, or the number of a longer list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Head(u32);

enum Kind {
    None,
    One(Link),
    /// In a block of a slab.
    Few {
        class: usize,
        block: u32,
    },
    /// A vector of its own.
    Many(usize),
}

const MORE: u32 = 1 << 31;
const MANY: u32 = 1 << 30;
const CLASS_SHIFT: u32 = 25;

/// Links that a vector has room for at first: twice as many as the largest block.
const FIRST_ROOM: usize = {
    let [.., largest] = CLASSES;
    largest * 2
};

impl Head {
    pub(crate) const EMPTY: Self = Self(0);

    const fn one(link: Link) -> Self {
        Self(link.word())
    }

    const fn few(class: usize, block: u32) -> Self {
        Self(MORE | (class as u32) << CLASS_SHIFT | block)
    }

    const fn many(list: u32) -> Self {
        Self(MORE | MANY | list)
    }

    const fn kind(self) -> Kind {
        match self.0 {
            0 => Kind::None,
            word if word & MORE == 0 => Kind::One(Link::from_word(word)),
            word if word & MANY != 0 => Kind::Many((word & !(MORE | MANY)) as usize),
            word => Kind::Few {
                class: (word >> CLASS_SHIFT & 0x1f) as usize,
                block: word & ((1 << CLASS_SHIFT) - 1),
            },
        }
    }
}

/// The lists with more than one link: four bytes for each, and a tenth more.
#[derive(Debug)]
pub(crate) struct Lists {
    slabs: [Slab; CLASSES.len()],
    many: Vec<Vec<Link>>,
    /// Numbers of vectors that are not in use. Has room for all.
    free: Vec<u32>,
}

impl Default for Lists {
    fn default() -> Self {
        Self {
            slabs: CLASSES.map(Slab::new),
            many: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl Lists {
    /// Sees to it that the next [`push`](Self::push) to `head` needs no memory.
    pub(crate) fn reserve(&mut self, head: Head) -> Result<(), OutOfMemory> {
        match head.kind() {
            Kind::None => Ok(()),
            Kind::One(_) => self.slabs[0].reserve(),
            Kind::Few { class, block } => {
                let full = self
                    .slabs
                    .get(class)
                    .is_none_or(|slab| slab.used(block) >= slab.links());
                if !full {
                    Ok(())
                } else if let Some(next) = self.slabs.get_mut(class.saturating_add(1)) {
                    next.reserve()
                } else {
                    self.reserve_vector()
                }
            }
            Kind::Many(list) => {
                let list = self.many.get_mut(list).ok_or(OutOfMemory)?;
                list.try_reserve(1).map_err(|_| OutOfMemory)
            }
        }
    }

    /// Sees to it that there is a vector with room for more than the largest block.
    fn reserve_vector(&mut self) -> Result<(), OutOfMemory> {
        if self.free.is_empty() {
            if self.many.len() >= MANY as usize {
                return Err(OutOfMemory);
            }
            self.many.try_reserve(1).map_err(|_| OutOfMemory)?;
            let room = self.many.len().saturating_add(1);
            self.free.try_reserve(room).map_err(|_| OutOfMemory)?;
            self.free.push(self.many.len() as u32);
            self.many.push(Vec::new());
        }
        let next = self.free.last().map_or(0, |&number| number as usize);
        let next = self.many.get_mut(next).ok_or(OutOfMemory)?;
        next.try_reserve(FIRST_ROOM).map_err(|_| OutOfMemory)
    }

    /// Adds `link`, for which there is room.
    pub(crate) fn push(&mut self, head: &mut Head, link: Link) {
        match head.kind() {
            Kind::None => *head = Head::one(link),
            Kind::One(first) => {
                let block = self.slabs[0].take();
                let words = self.slabs[0].block_mut(block).iter_mut();
                for (place, link) in words.zip([first, link]) {
                    *place = link.word();
                }
                *head = Head::few(0, block);
            }
            Kind::Few { class, block } => {
                let next = class.saturating_add(1);
                if let Some(slab) = self.slabs.get_mut(class)
                    && let Some(place) = slab.next(block)
                {
                    *place = link.word();
                } else if let Some(to) = self.rehouse(class, block, next) {
                    *head = to;
                    self.push(head, link);
                } else if let Some(slab) = self.slabs.get_mut(class)
                    && let Some(number) = self.free.pop()
                    && let Some(list) = self.many.get_mut(number as usize)
                {
                    list.extend(slab.block(block).iter().map(|&word| Link::from_word(word)));
                    list.push(link);
                    slab.give(block);
                    *head = Head::many(number);
                } else {
                    debug_assert!(false, "room was made");
                }
            }
            Kind::Many(list) => match self.many.get_mut(list) {
                Some(list) => list.push(link),
                None => debug_assert!(false, "a list that is not there"),
            },
        }
    }

    /// Moves a list to a block of another class, in which it has room. `None` if there is no such class.
    fn rehouse(&mut self, class: usize, block: u32, to: usize) -> Option<Head> {
        let [old, new] = self.slabs.get_disjoint_mut([class, to]).ok()?;
        let moved = new.take();
        let words = old.block(block).iter().take_while(|&&word| word != 0);
        for (place, word) in new.block_mut(moved).iter_mut().zip(words) {
            *place = *word;
        }
        old.give(block);
        Some(Head::few(to, moved))
    }

    /// Takes `link` out. Whether it was there.
    pub(crate) fn remove(&mut self, head: &mut Head, link: Link) -> bool {
        match head.kind() {
            Kind::None => false,
            Kind::One(one) => {
                let found = one == link;
                if found {
                    *head = Head::EMPTY;
                }
                found
            }
            Kind::Few { class, block } => self.remove_few(head, class, block, link),
            Kind::Many(number) => {
                let Some(list) = self.many.get_mut(number) else {
                    return false;
                };
                // What came last goes first, mostly.
                let Some(at) = list.iter().rposition(|&there| there == link) else {
                    return false;
                };
                list.swap_remove(at);
                if let &[last] = list.as_slice() {
                    *head = Head::one(last);
                    *list = Vec::new();
                    self.free.push(number as u32);
                }
                true
            }
        }
    }

    fn remove_few(&mut self, head: &mut Head, class: usize, block: u32, link: Link) -> bool {
        let Some(slab) = self.slabs.get_mut(class) else {
            return false;
        };
        let used = slab.used(block);
        let words = slab.block_mut(block).get_mut(..used);
        let Some((last, rest)) = words.and_then(<[u32]>::split_last_mut) else {
            return false;
        };
        // The last takes the place of the one that goes, if that is another.
        if *last != link.word() {
            let Some(place) = rest.iter_mut().rfind(|word| **word == link.word()) else {
                return false;
            };
            *place = *last;
        }
        *last = 0;
        if let &mut [only] = rest {
            *head = Head::one(Link::from_word(only));
            slab.give(block);
        } else if let Some(to) = smaller(class, rest.len())
            // One block stays: someone may have reserved it.
            && self.slabs.get(to).is_some_and(|slab| slab.spare() > 1)
            && let Some(moved) = self.rehouse(class, block, to)
        {
            *head = moved;
        }
        true
    }

    /// How many links there are.
    pub(crate) fn len(&self, head: Head) -> usize {
        match head.kind() {
            Kind::None => 0,
            Kind::One(_) => 1,
            Kind::Few { class, block } => self.slabs.get(class).map_or(0, |slab| slab.used(block)),
            Kind::Many(list) => self.many.get(list).map_or(0, Vec::len),
        }
    }

    /// Link number `at`.
    pub(crate) fn get(&self, head: Head, at: usize) -> Option<Link> {
        match head.kind() {
            Kind::None => None,
            Kind::One(one) => (at == 0).then_some(one),
            Kind::Few { class, block } => {
                let word = self.slabs.get(class)?.block(block).get(at)?;
                word.checked_sub(1).map(Link)
            }
            Kind::Many(list) => self.many.get(list)?.get(at).copied(),
        }
    }

    /// All links.
    pub(crate) fn iter(&self, head: Head) -> impl Iterator<Item = Link> {
        (0..self.len(head)).filter_map(move |at| self.get(head, at))
    }

    /// Bytes of memory they take.
    pub(crate) fn bytes(&self) -> usize {
        let lists = self.many.iter().map(bytes_of);
        let slabs = self.slabs.iter().map(Slab::bytes);
        let rest = [bytes_of(&self.many), bytes_of(&self.free)];
        lists
            .chain(slabs)
            .chain(rest)
            .fold(0, usize::saturating_add)
    }
}

/// A class for a list of `left` links that is half as large as `class` or smaller.
fn smaller(class: usize, left: usize) -> Option<usize> {
    let to = CLASSES.iter().position(|&links| links >= left)?;
    let (small, large) = (CLASSES.get(to)?, CLASSES.get(class)?);
    (*small <= large / 2).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list that shrinks does not move into the block that another reserved.
    #[test]
    fn a_reserved_block_is_there_when_it_is_taken() {
        let mut lists = Lists::default();
        let link = |i| Link::new(i, 0);
        let add = |lists: &mut Lists, head: &mut Head, i| {
            lists.reserve(*head).unwrap();
            lists.push(head, link(i));
        };
        let (mut long, mut short) = (Head::EMPTY, Head::EMPTY);
        // In a block of the third class, which is four times as large as one of the first.
        for i in 0..=CLASSES[1] as u32 {
            add(&mut lists, &mut long, i);
        }
        add(&mut lists, &mut short, 0);
        lists.reserve(short).unwrap();
        while lists.slabs[0].spare() > 1 {
            let mut pair = Head::EMPTY;
            add(&mut lists, &mut pair, 0);
            add(&mut lists, &mut pair, 1);
        }
        for i in (CLASSES[0] as u32..=CLASSES[1] as u32).rev() {
            assert!(lists.remove(&mut long, link(i)));
            assert_eq!(lists.slabs[0].spare(), 1);
        }
        lists.push(&mut short, link(1));
        assert_eq!((lists.len(long), lists.len(short)), (CLASSES[0], 2));
    }

    #[test]
    fn a_list_grows_shrinks_and_is_used_again() {
        let mut lists = Lists::default();
        let (mut a, mut b) = (Head::EMPTY, Head::EMPTY);
        let link = |i| Link::new(i, i as usize);
        for i in 0..6 {
            for head in [&mut a, &mut b] {
                lists.reserve(*head).unwrap();
                lists.push(head, link(i));
            }
        }
        assert_eq!((lists.len(a), lists.len(b)), (6, 6));
        for i in 0..6 {
            assert!(lists.remove(&mut a, link(i)));
            assert!(!lists.remove(&mut a, link(i)));
            assert!(
                lists
                    .iter(a)
                    .all(|l| l.page() > i && l.index() > i as usize)
            );
        }
        assert_eq!(a, Head::EMPTY);
        assert_eq!(lists.iter(b).count(), 6);
        assert_eq!(lists.get(b, 6), None);
    }

    /// Thousands of pushes and removals, beside lists that are only lists.
    #[test]
    fn lists_of_every_length_hold_what_was_put_in() {
        let mut lists = Lists::default();
        let mut heads = [Head::EMPTY; 7];
        let mut plain: [Vec<Link>; 7] = Default::default();
        let mut seed = 7u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            seed >> 8
        };
        for step in 0..30_000u32 {
            let which = (next() % 7) as usize;
            // Up and down, some to hundreds.
            let up = next() % 100
                < if step / 3000 % 2 == 0 {
                    55 + which as u32 * 6
                } else {
                    30
                };
            let (head, list) = (&mut heads[which], &mut plain[which]);
            if up || list.is_empty() {
                let link = Link::new(step, step as usize & 511);
                lists.reserve(*head).unwrap();
                lists.push(head, link);
                list.push(link);
            } else {
                let link = list.swap_remove(next() as usize % list.len());
                assert!(lists.remove(head, link));
                assert!(!lists.remove(head, link));
            }
            assert_eq!(lists.len(heads[which]), plain[which].len());
            if step % 97 == 0 {
                let mut ours: Vec<u32> = lists.iter(heads[which]).map(|link| link.0).collect();
                let mut theirs: Vec<u32> = plain[which].iter().map(|link| link.0).collect();
                ours.sort_unstable();
                theirs.sort_unstable();
                assert_eq!(ours, theirs);
            }
        }
        assert!(plain.iter().any(|list| list.len() > 64), "vectors too");
        for (head, list) in heads.iter_mut().zip(plain) {
            list.into_iter()
                .for_each(|link| assert!(lists.remove(head, link)));
            assert_eq!(*head, Head::EMPTY);
        }
        assert!(
            lists.slabs.iter().all(|slab| slab.bytes() < 2000),
            "blocks were given back"
        );
    }

    #[test]
    fn the_last_link_of_all_can_be_said() {
        let last = Link::new(Link::MOST_PAGES - 1, 511);
        assert_eq!((last.page(), last.index()), (Link::MOST_PAGES - 1, 511));
        assert!(matches!(
            Head::one(Link::new(Link::MOST_PAGES - 2, 511)).kind(),
            Kind::One(_)
        ));
    }
}
