// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lists of links to entries, most of which have one element: four bytes each, and more only where
//! there is more.

use alloc::vec::Vec;

use super::error::OutOfMemory;

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
    Many(usize),
}

const MANY: u32 = 1 << 31;

impl Head {
    pub(crate) const EMPTY: Self = Self(0);

    const fn one(link: Link) -> Self {
        Self(link.0 + 1)
    }

    const fn kind(self) -> Kind {
        match self.0 {
            0 => Kind::None,
            word if word & MANY != 0 => Kind::Many((word & !MANY) as usize),
            word => Kind::One(Link(word - 1)),
        }
    }
}

/// The lists with more than one link.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    many: Vec<Vec<Link>>,
    /// Numbers of lists that are not in use. Has room for all.
    free: Vec<u32>,
    /// What the next list with two links is made of.
    spare: Vec<Link>,
}

impl Lists {
    /// Sees to it that the next [`push`](Self::push) to `head` needs no memory.
    pub(crate) fn reserve(&mut self, head: Head) -> Result<(), OutOfMemory> {
        match head.kind() {
            Kind::None => Ok(()),
            Kind::Many(list) => self.many[list].try_reserve(1).map_err(|_| OutOfMemory),
            Kind::One(_) => {
                if self.free.is_empty() {
                    if self.many.len() >= MANY as usize {
                        return Err(OutOfMemory);
                    }
                    self.many.try_reserve(1).map_err(|_| OutOfMemory)?;
                    let room = self.many.len() + 1;
                    self.free.try_reserve(room).map_err(|_| OutOfMemory)?;
                }
                if self.spare.capacity() < 2 {
                    self.spare.try_reserve_exact(4).map_err(|_| OutOfMemory)?;
                }
                Ok(())
            }
        }
    }

    /// Adds `link`, for which there is room.
    pub(crate) fn push(&mut self, head: &mut Head, link: Link) {
        match head.kind() {
            Kind::None => *head = Head::one(link),
            Kind::Many(list) => self.many[list].push(link),
            Kind::One(first) => {
                let mut both = core::mem::take(&mut self.spare);
                both.push(first);
                both.push(link);
                let number = match self.free.pop() {
                    Some(number) => {
                        self.many[number as usize] = both;
                        number
                    }
                    None => {
                        self.many.push(both);
                        self.many.len() as u32 - 1
                    }
                };
                *head = Head(number | MANY);
            }
        }
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
            Kind::Many(number) => {
                let list = &mut self.many[number];
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

    /// How many links there are.
    pub(crate) fn len(&self, head: Head) -> usize {
        match head.kind() {
            Kind::None => 0,
            Kind::One(_) => 1,
            Kind::Many(list) => self.many[list].len(),
        }
    }

    /// Link number `at`.
    pub(crate) fn get(&self, head: Head, at: usize) -> Option<Link> {
        match head.kind() {
            Kind::None => None,
            Kind::One(one) => (at == 0).then_some(one),
            Kind::Many(list) => self.many[list].get(at).copied(),
        }
    }

    /// All links.
    pub(crate) fn iter(&self, head: Head) -> impl Iterator<Item = Link> {
        (0..self.len(head)).filter_map(move |at| self.get(head, at))
    }

    /// Bytes of memory they take.
    pub(crate) fn bytes(&self) -> usize {
        let links: usize = self.many.iter().map(Vec::capacity).sum();
        links * size_of::<Link>()
            + self.many.capacity() * size_of::<Vec<Link>>()
            + self.free.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((lists.len(a), lists.len(b), lists.many.len()), (6, 6, 2));
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
        assert_eq!(lists.free.len(), 1);
        lists.reserve(a).unwrap();
        lists.push(&mut a, link(1));
        lists.reserve(a).unwrap();
        lists.push(&mut a, link(2));
        assert_eq!(lists.many.len(), 2, "the free list was taken");
        assert_eq!(lists.iter(b).count(), 6);
        assert_eq!(lists.get(b, 6), None);
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
