// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shadow tables there are: found by number, by role, by guest frame, by their own frame.

use alloc::vec::Vec;

use super::error::OutOfMemory;
use super::index::{Index, mix};
use super::key::{Base, Key};
use super::links::Head;
use super::seen::Seen;

/// How far a shadow table may be behind the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    /// The guest's table cannot be written without our knowing: each entry is right.
    Guarded,
    /// It has been guarded, but hardware may not know yet: to be looked at once more.
    Pending,
    /// The guest writes it as it likes: each entry is right, or stale as in a TLB.
    Unsync,
}

/// The number of a pass over the tables: 0 of none.
pub(crate) type Pass = u16;

/// One shadow table.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) key: Key,
    /// Where it is.
    pub(crate) frame: u64,
    /// Where entries may be that are not empty: bit `i` is for the sixteen from `16 * i` on.
    pub(crate) lines: u32,
    /// The entries that lead to it.
    pub(crate) parents: Head,
    pub(crate) sync: Sync,
    /// Spaces that begin here.
    pub(crate) roots: u32,
    /// Writes to the guest's table since this one was last used.
    pub(crate) writes: u8,
    /// Used since reclaim last came by.
    pub(crate) used: bool,
    /// The last pass that compared it as a whole.
    pub(crate) checked: Pass,
    /// The last pass that filled it as a whole.
    pub(crate) filled: Pass,
    /// How readily it is left unsync.
    pub(crate) heat: Heat,
    /// The guest's entries as they were when they were last compared, while it is unsync.
    pub(crate) seen: Option<Seen>,
}

impl Page {
    /// Whether an entry leads to it, or a space begins here.
    pub(crate) fn in_use(&self) -> bool {
        self.parents != Head::EMPTY || self.roots > 0
    }
}

/// How often a guest's table was guarded in vain. One that is written again right after is left unsync for longer: to
/// compare it costs less than the fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heat {
    /// Comparisons without a difference before it is guarded.
    patience: u8,
    /// Of those, how many there were.
    quiet: u8,
}

/// The most comparisons for nothing.
const MOST_PATIENCE: u8 = 8;

impl Heat {
    /// It was guarded, and is to be written.
    pub(crate) fn written(&mut self) {
        self.patience = self.patience.saturating_mul(2).clamp(1, MOST_PATIENCE);
        self.quiet = 0;
    }

    /// It was compared while unsync, and differed.
    pub(crate) fn changed(&mut self) {
        self.quiet = 0;
    }

    /// It was compared while unsync, and did not differ. Whether it is time to guard it.
    pub(crate) fn same(&mut self) -> bool {
        self.quiet = self.quiet.saturating_add(1);
        let enough = self.quiet >= self.patience;
        if enough {
            self.quiet = 0;
        }
        enough
    }
}

/// All of them. What is to be inserted next has room once it is [reserved](Pages::reserve).
#[derive(Debug)]
pub(crate) struct Pages {
    slots: Vec<Option<Page>>,
    free: Vec<u32>,
    by_base: Index,
    by_frame: Index,
    /// Guest frames with a shadow, by 2 MiB of guest-physical memory: number of `regions`.
    by_region: Index,
    regions: Vec<(u64, u32)>,
    free_regions: Vec<u32>,
    live: usize,
    hand: u32,
    pass: Pass,
}

fn frame_hash(frame: u64) -> u64 {
    mix(frame >> 12)
}

const REGION: u32 = 21;

fn region_hash(regions: &[(u64, u32)], number: u32) -> u64 {
    regions
        .get(number as usize)
        .map_or(0, |&(region, _)| mix(region))
}

/// Room for `count` elements, and for an eighth more: an MMU has about as many tables for long.
pub(crate) fn room<T>(vec: &mut Vec<T>, count: usize) -> Result<(), OutOfMemory> {
    if count <= vec.capacity() {
        return Ok(());
    }
    let more = count.saturating_add(count / 8).saturating_add(8);
    let more = more.saturating_sub(vec.len());
    vec.try_reserve_exact(more).map_err(|_| OutOfMemory)
}

/// Bytes of the heap that `vec` has.
pub(crate) fn bytes_of<T>(vec: &Vec<T>) -> usize {
    vec.capacity().saturating_mul(size_of::<T>())
}

impl Pages {
    pub(crate) const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_base: Index::EMPTY,
            by_frame: Index::EMPTY,
            by_region: Index::EMPTY,
            regions: Vec::new(),
            free_regions: Vec::new(),
            live: 0,
            hand: 0,
            pass: 0,
        }
    }

    /// Room for one table more. How many there is room for.
    pub(crate) fn reserve(&mut self) -> Result<usize, OutOfMemory> {
        let Self {
            slots,
            free,
            regions,
            ..
        } = self;
        if free.is_empty() {
            room(slots, slots.len().saturating_add(1))?;
        }
        // Each number may come back.
        let one_more = slots.len().saturating_add(1);
        room(free, one_more)?;
        let one_more_region = regions.len().saturating_add(1);
        if self.free_regions.is_empty() {
            room(regions, one_more_region)?;
        }
        room(&mut self.free_regions, one_more_region)?;
        let page = |id: u32| slots.get(id as usize)?.as_ref();
        self.by_base
            .reserve(|id| page(id).map_or(0, |page| page.key.base.hash()))?;
        self.by_frame
            .reserve(|id| page(id).map_or(0, |page| frame_hash(page.frame)))?;
        self.by_region
            .reserve(|number| region_hash(regions, number))?;
        Ok(one_more)
    }

    /// How many there are.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&Page> {
        self.slots.get(id as usize)?.as_ref()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut Page> {
        self.slots.get_mut(id as usize)?.as_mut()
    }

    /// The numbers of all.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        (0..self.slots.len() as u32).filter(|&id| self.get(id).is_some())
    }

    /// The table in `role`.
    #[inline]
    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        self.by_base.find(key.base.hash(), |id| {
            self.get(id).is_some_and(|page| page.key == *key)
        })
    }

    /// The table at `frame`.
    #[inline]
    pub(crate) fn at_frame(&self, frame: u64) -> Option<u32> {
        self.by_frame.find(frame_hash(frame), |id| {
            self.get(id).is_some_and(|page| page.frame == frame)
        })
    }

    /// Every shadow of the guest's table at `frame`.
    #[inline]
    pub(crate) fn of_guest_table(&self, frame: u64) -> impl Iterator<Item = u32> {
        let base = Base::Table(frame);
        self.by_base
            .near(base.hash())
            .filter(move |&id| self.get(id).is_some_and(|page| page.key.base == base))
    }

    /// Whether a shadow of the guest's table at `frame` keeps it from being written.
    #[inline]
    pub(crate) fn guarded(&self, frame: u64) -> bool {
        let base = Base::Table(frame);
        let guards = |page: &Page| page.key.base == base && page.sync != Sync::Unsync;
        self.by_base
            .find(base.hash(), |id| self.get(id).is_some_and(guards))
            .is_some()
    }

    /// Shadow number `n` of the guest's table at `frame`.
    pub(crate) fn shadow_of(&self, frame: u64, n: usize) -> Option<u32> {
        self.of_guest_table(frame).nth(n)
    }

    /// Whether the guest's memory of `length` bytes (a power of two) at `start` has a table that is
    /// shadowed.
    pub(crate) fn tables_in(&self, start: u64, length: u64) -> bool {
        (start >> REGION..=start.saturating_add(length.saturating_sub(1)) >> REGION)
            .any(|region| self.region(region).is_some())
    }

    fn region(&self, region: u64) -> Option<u32> {
        self.by_region.find(mix(region), |number| {
            let there = self.regions.get(number as usize);
            there.is_some_and(|&(start, count)| start == region && count > 0)
        })
    }

    /// Adds a table, for which there is room.
    pub(crate) fn insert(&mut self, page: Page) -> u32 {
        let (base, frame) = (page.key.base, page.frame);
        let id = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(id as usize) {
            Some(free) => *free = Some(page),
            None => {
                debug_assert!(self.slots.len() < self.slots.capacity(), "room was made");
                self.slots.push(Some(page));
            }
        }
        self.by_base.insert(base.hash(), id);
        self.by_frame.insert(frame_hash(frame), id);
        self.live = self.live.saturating_add(1);
        if let Base::Table(frame) = base {
            self.count_in(frame >> REGION);
        }
        id
    }

    /// A guest's table more in `region`.
    fn count_in(&mut self, region: u64) {
        let known = self.region(region);
        if let Some((_, count)) = known.and_then(|number| self.regions.get_mut(number as usize)) {
            *count = count.saturating_add(1);
            return;
        }
        let new = self.free_regions.pop();
        let number = new.unwrap_or(self.regions.len() as u32);
        match self.regions.get_mut(number as usize) {
            Some(free) => *free = (region, 1),
            None => self.regions.push((region, 1)),
        }
        self.by_region.insert(mix(region), number);
    }

    /// One less.
    fn discount_in(&mut self, region: u64) {
        let Some(number) = self.region(region) else {
            return;
        };
        let Some((_, count)) = self.regions.get_mut(number as usize) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            let regions = &self.regions;
            self.by_region
                .remove(mix(region), number, |number| region_hash(regions, number));
            self.free_regions.push(number);
        }
    }

    /// Takes a table out.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Page> {
        let (base, frame) = self.get(id).map(|page| (page.key.base, page.frame))?;
        // Hashes are of what is in the slots: take it out last.
        let Self {
            slots,
            by_base,
            by_frame,
            ..
        } = self;
        let page = |id: u32| slots.get(id as usize)?.as_ref();
        by_base.remove(base.hash(), id, |id| {
            page(id).map_or(0, |page| page.key.base.hash())
        });
        by_frame.remove(frame_hash(frame), id, |id| {
            page(id).map_or(0, |page| frame_hash(page.frame))
        });
        if let Base::Table(frame) = base {
            self.discount_in(frame >> REGION);
        }
        self.live = self.live.saturating_sub(1);
        self.free.push(id);
        self.slots.get_mut(id as usize)?.take()
    }

    /// How many tables are no root in use.
    pub(crate) fn but_roots(&self) -> usize {
        let pages = self.slots.iter().flatten();
        pages.filter(|page| page.roots == 0).count()
    }

    /// A table that was not used for a while and that `spare` lets go; what was used gets another
    /// round.
    pub(crate) fn victim(&mut self, spare: impl Fn(u32, &Page) -> bool) -> Option<u32> {
        let count = self.slots.len() as u32;
        for _ in 0..count.saturating_mul(2) {
            let next = self.hand.saturating_add(1);
            self.hand = if next < count { next } else { 0 };
            let hand = self.hand;
            if let Some(page) = self.get_mut(hand)
                && !core::mem::take(&mut page.used)
                && page.roots == 0
                && spare(hand, page)
            {
                return Some(hand);
            }
        }
        None
    }

    /// The number of a new pass over the tables: no table has it.
    pub(crate) fn begin_pass(&mut self) -> Pass {
        self.pass = self.pass.wrapping_add(1);
        if self.pass == 0 {
            self.pass = 1;
            for page in self.slots.iter_mut().flatten() {
                (page.checked, page.filled) = (0, 0);
            }
        }
        self.pass
    }

    /// Bytes of memory they take, the tables themselves apart.
    pub(crate) fn bytes(&self) -> usize {
        [
            bytes_of(&self.slots),
            bytes_of(&self.free),
            bytes_of(&self.free_regions),
            bytes_of(&self.regions),
            self.by_base.bytes(),
            self.by_frame.bytes(),
            self.by_region.bytes(),
        ]
        .into_iter()
        .fold(0, usize::saturating_add)
    }
}
