// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way back: from a host frame to every leaf that leads to it.
//!
//! By host frame, not by guest frame: a leaf's own target says where to look when it goes, so nothing
//! else need be kept for it. Four bytes for each frame that is mapped once.

use alloc::vec::Vec;

use super::error::OutOfMemory;
use super::index::{Index, mix};
use super::links::{Head, Link, Lists};
use super::pages::bytes_of;

/// Lists for 128 neighbouring pages of one size.
#[derive(Debug)]
struct Chunk {
    /// See [`chunk_key`].
    key: u64,
    live: u32,
    heads: Vec<Head>,
}

/// Where a page's list is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    chunk: u32,
    index: usize,
}

/// Leaves by target.
#[derive(Debug, Default)]
pub(crate) struct ReverseMap {
    chunks: Vec<Chunk>,
    free: Vec<u32>,
    index: Index,
    pub(crate) lists: Lists,
    /// Counts the links that had to make room.
    turn: usize,
}

const CHUNK: u32 = 7;

/// log2 of the bytes of a page of `level`, 1 to 3: 12 and 9 more for each above the first.
const fn page_bits(level: u8) -> u32 {
    (level as u32).wrapping_mul(9).wrapping_add(3)
}

/// log2 of the bytes of a chunk of such pages.
const fn chunk_bits(level: u8) -> u32 {
    page_bits(level).wrapping_add(CHUNK)
}

/// Bytes of a page of `level`.
pub(crate) const fn page_size(level: u8) -> u64 {
    1u64.wrapping_shl(page_bits(level))
}

/// A chunk's pages and their size in one word: pages of `level` from a multiple of 128 of them.
const fn chunk_key(level: u8, host: u64) -> u64 {
    host.wrapping_shr(chunk_bits(level)) << 2 | level as u64
}

const fn index_in_chunk(level: u8, host: u64) -> usize {
    (host.wrapping_shr(page_bits(level)) & ((1 << CHUNK) - 1)) as usize
}

/// The key of chunk `number`.
#[inline]
fn key_of(chunks: &[Chunk], number: u32) -> Option<u64> {
    chunks.get(number as usize).map(|chunk| chunk.key)
}

impl ReverseMap {
    #[inline]
    fn chunk(&self, key: u64) -> Option<u32> {
        self.index
            .find(mix(key), |chunk| key_of(&self.chunks, chunk) == Some(key))
    }

    /// The list of the page at `host`, if there is one.
    #[inline]
    pub(crate) fn place(&self, level: u8, host: u64) -> Option<Place> {
        Some(Place {
            chunk: self.chunk(chunk_key(level, host))?,
            index: index_in_chunk(level, host),
        })
    }

    /// Whether any page of `level` in the chunk of `host` is mapped, and the bytes a chunk covers.
    pub(crate) fn chunk_around(&self, level: u8, host: u64) -> (bool, u64) {
        let size = 1u64.wrapping_shl(chunk_bits(level));
        (self.chunk(chunk_key(level, host)).is_some(), size)
    }

    /// The list of the page at `host`, with room for one more link.
    pub(crate) fn reserve(&mut self, level: u8, host: u64) -> Result<Place, OutOfMemory> {
        let place = match self.place(level, host) {
            Some(place) => place,
            None => Place {
                chunk: self.add_chunk(chunk_key(level, host))?,
                index: index_in_chunk(level, host),
            },
        };
        self.lists.reserve(self.head(place))?;
        Ok(place)
    }

    fn add_chunk(&mut self, key: u64) -> Result<u32, OutOfMemory> {
        let chunks = &self.chunks;
        self.index
            .reserve(|chunk| key_of(chunks, chunk).map_or(0, mix))?;
        if self.free.is_empty() {
            self.chunks.try_reserve(1).map_err(|_| OutOfMemory)?;
            let room = self.chunks.len().saturating_add(1);
            self.free.try_reserve(room).map_err(|_| OutOfMemory)?;
        }
        let mut heads = Vec::new();
        heads
            .try_reserve_exact(1 << CHUNK)
            .map_err(|_| OutOfMemory)?;
        heads.resize(1 << CHUNK, Head::EMPTY);
        let made = Chunk {
            key,
            live: 0,
            heads,
        };
        let number = self.free.pop().unwrap_or(self.chunks.len() as u32);
        match self.chunks.get_mut(number as usize) {
            Some(free) => *free = made,
            None => self.chunks.push(made),
        }
        self.index.insert(mix(key), number);
        Ok(number)
    }

    fn head(&self, place: Place) -> Head {
        let chunk = self.chunks.get(place.chunk as usize);
        let head = chunk.and_then(|chunk| chunk.heads.get(place.index));
        head.copied().unwrap_or(Head::EMPTY)
    }

    /// How many leaves lead to the page.
    pub(crate) fn count(&self, place: Place) -> usize {
        self.lists.len(self.head(place))
    }

    /// Link number `at` of the page.
    pub(crate) fn link(&self, place: Place, at: usize) -> Option<Link> {
        self.lists.get(self.head(place), at)
    }

    /// A link of the page that is to make room for another: the next one each time, so that one that came last is the
    /// last whose turn it is. Where links stand says nothing of their age: the last takes the place of one that goes.
    pub(crate) fn old(&mut self, place: Place) -> Option<Link> {
        let at = self.turn.checked_rem(self.count(place))?;
        self.turn = self.turn.wrapping_add(1);
        self.link(place, at)
    }

    /// Adds a link, for which there is room.
    pub(crate) fn push(&mut self, place: Place, link: Link) {
        if let Some(chunk) = self.chunks.get_mut(place.chunk as usize)
            && let Some(head) = chunk.heads.get_mut(place.index)
        {
            self.lists.push(head, link);
            chunk.live = chunk.live.saturating_add(1);
        } else {
            debug_assert!(false, "{place:?} was reserved");
        }
    }

    /// Takes the link of a leaf to the page at `host` out. Whether it was there.
    pub(crate) fn remove(&mut self, level: u8, host: u64, link: Link) -> bool {
        let Some(Place {
            chunk: number,
            index,
        }) = self.place(level, host)
        else {
            return false;
        };
        let Some(chunk) = self.chunks.get_mut(number as usize) else {
            return false;
        };
        let Some(head) = chunk.heads.get_mut(index) else {
            return false;
        };
        let found = self.lists.remove(head, link);
        if found {
            chunk.live = chunk.live.saturating_sub(1);
            if chunk.live == 0 {
                let key = chunk.key;
                chunk.heads = Vec::new();
                let chunks = &self.chunks;
                self.index.remove(mix(key), number, |chunk| {
                    key_of(chunks, chunk).map_or(0, mix)
                });
                self.free.push(number);
            }
        }
        found
    }

    /// How many links there are in all.
    pub(crate) fn live(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.live as usize).sum()
    }

    /// Bytes of memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        let heads = self.chunks.iter().map(|chunk| bytes_of(&chunk.heads));
        let rest = [
            bytes_of(&self.chunks),
            bytes_of(&self.free),
            self.index.bytes(),
            self.lists.bytes(),
        ];
        heads.chain(rest).fold(0, usize::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_by_its_size_and_place_and_chunks_come_and_go() {
        let mut map = ReverseMap::default();
        let pages = [
            (1, 0x5000),
            (1, 0x20_5000),
            (2, 0x20_0000),
            (3, 0x4000_0000),
            (2, 0),
        ];
        for (i, &(level, host)) in (0..).zip(&pages) {
            let place = map.reserve(level, host).unwrap();
            map.push(place, Link::new(i, 7));
        }
        for (i, &(level, host)) in (0..).zip(&pages) {
            let place = map.place(level, host).unwrap();
            assert_eq!(map.count(place), 1);
            assert_eq!(map.link(place, 0), Some(Link::new(i, 7)));
        }
        assert_eq!(map.live(), 5);
        let place = map.reserve(1, 0x5000).unwrap();
        map.push(place, Link::new(9, 1));
        assert_eq!(map.count(place), 2);
        assert!(!map.remove(1, 0x6000, Link::new(0, 7)), "another page");
        assert!(map.remove(1, 0x5000, Link::new(0, 7)));
        assert!(map.remove(1, 0x5000, Link::new(9, 1)));
        assert!(map.place(1, 0x5000).is_none(), "the chunk is gone");
        assert_eq!(map.chunk_around(1, 0x5000), (false, 0x8_0000));
        assert_eq!(map.chunk_around(1, 0x20_0000), (true, 0x8_0000));
        assert_eq!(map.chunk_around(2, 0xfff_ffff), (true, 0x1000_0000));
        assert_eq!(map.live(), 4);
    }
}
