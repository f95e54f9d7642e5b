// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The notes of a packed queue.
//!
//! ```text
//!   features:64   version:16 descriptors:16 free_head:16 old_free_head:16
//!   used_idx:16 old_used_idx:16 used_wrap_counter:8 old_used_wrap_counter:8 0:16    0:64
//!   then as many entries as descriptors
//!     in flight:8 0:8 next:16 last:16 num:16    counter:64    id:16 flags:16 len:32    addr:64
//!
//!   free_head --> entry --> entry --> ..            `next`, to one that is none
//!   in flight     entry --> entry --> last          a chain's: `num` of them, a descriptor in each
//! ```
//!
//! A chain is copied into entries from the front of the free list before it is begun, and is noted when `old_free_head` has
//! passed them. What was completed is linked before the list, and `used_idx` moved, before the driver is shown it; the old fields
//! follow when it has been. Who finds them apart looks at the ring: whether the driver has been shown the descriptor at
//! `old_used_idx`, whose marks tell. The marks of those behind it are set first, so who goes on after one that was not shown has to
//! take them back ([`withdraw`](crate::queue::Mapped::withdraw)).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

use super::{Begun, Left};
use crate::queue::chain::{Descriptor, NEXT};
use crate::queue::packed::{Place, is_available};
use crate::queue::refused::{Refused, too_long};

/// Bytes before the entries, and of each entry.
pub(crate) const HEAD: usize = 32;
pub(crate) const ENTRY: usize = 32;

const VERSION_AT: usize = 8;
const DESCRIPTORS_AT: usize = 10;
const FREE_AT: usize = 12;
const OLD_FREE_AT: usize = 14;
const USED_AT: usize = 16;
const OLD_USED_AT: usize = 18;
const WRAP_AT: usize = 20;
const OLD_WRAP_AT: usize = 21;

const NEXT_AT: usize = 2;
const LAST_AT: usize = 4;
const COUNT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const ID_AT: usize = 16;
const FLAGS_AT: usize = 18;
const LENGTH_AT: usize = 20;
const ADDRESS_AT: usize = 24;

const VERSION: u16 = 1;

/// A chain as it was in the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    /// The entry of each descriptor. Not empty.
    entries: Vec<u16>,
    descriptors: Vec<Descriptor>,
    counter: u64,
}

impl Copied {
    /// Its first entry.
    pub(crate) fn head(&self) -> u16 {
        self.entries.first().copied().unwrap_or_default()
    }

    /// What was in the ring.
    pub(crate) fn descriptors(&self) -> &[Descriptor] {
        &self.descriptors
    }
}

/// What somebody else has noted. All of it is checked where it is used.
struct Noted<'a> {
    head: &'a [u8],
    entries: &'a [[u8; ENTRY]],
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Noted<'a> {
    /// The notes in `area` of a queue of `size` descriptors.
    fn of(area: &'a [u8], size: u16) -> Option<Self> {
        let (head, entries) = area.split_at_checked(HEAD)?;
        let entries = entries.as_chunks().0.get(..size.into())?;
        Some(Self { head, entries })
    }

    fn field(&self, at: usize) -> Option<u16> {
        word(self.head, at)
    }

    fn entry(&self, index: u16) -> Option<&'a [u8; ENTRY]> {
        self.entries.get(usize::from(index))
    }

    fn size(&self) -> u16 {
        // It was cut to so many.
        self.entries.len() as u16
    }

    /// A place in the ring, and which wrap counter it has.
    fn place(&self, index: usize, wrap: usize) -> Option<Place> {
        let (slot, wrap) = (self.field(index)?, *self.head.get(wrap)?);
        // Below the size of a queue, which is below bit 15.
        let place = || Place::from_word(slot | u16::from(wrap) << 15);
        (slot < self.size() && wrap <= 1).then(place)
    }

    /// The list of entries that hold nothing, which are marked as `seen`. It ends where no entry is.
    fn free(&self, first: u16, seen: &mut [bool]) -> Option<Vec<u16>> {
        let (mut free, mut at) = (Vec::new(), first);
        while let Some(entry) = self.entry(at) {
            mark(seen, at)?;
            free.push(at);
            at = word(entry, NEXT_AT)?;
        }
        Some(free)
    }

    /// The chain whose first entry is `first`.
    fn chain(&self, first: u16, seen: &mut [bool]) -> Option<Copied> {
        let head = self.entry(first)?;
        let [last, count] = [LAST_AT, COUNT_AT].map(|at| word(head, at));
        let (last, count) = (last?, count?);
        let (mut entries, mut descriptors, mut at) = (Vec::new(), Vec::new(), first);
        for left in (0..count).rev() {
            mark(seen, at)?;
            let entry = self.entry(at)?;
            let length = entry.get(LENGTH_AT..)?.first_chunk()?;
            let address = entry.get(ADDRESS_AT..)?.first_chunk()?;
            let flags = word(entry, FLAGS_AT)?;
            // All but the last have a next one.
            if (flags & NEXT != 0) != (left > 0) {
                return None;
            }
            entries.push(at);
            descriptors.push(Descriptor {
                address: u64::from_ne_bytes(*address),
                length: u32::from_ne_bytes(*length),
                flags,
                next: word(entry, ID_AT)?,
            });
            at = word(entry, NEXT_AT)?;
        }
        let counter = u64::from_ne_bytes(*head.get(COUNTER_AT..)?.first_chunk()?);
        (entries.last() == Some(&last)).then_some(Copied {
            entries,
            descriptors,
            counter,
        })
    }
}

/// Marks an entry, once.
fn mark(seen: &mut [bool], at: u16) -> Option<()> {
    let place = seen.get_mut(usize::from(at))?;
    (!std::mem::replace(place, true)).then_some(())
}

/// What is left of a queue of `size` descriptors by the notes in `area`, where `flags` reads those of the descriptor at a place of the
/// ring. `start` is where it goes on if nothing was ever noted. Nothing if the notes make no sense.
pub(crate) fn left(
    area: &[u8],
    size: u16,
    start: u16,
    flags: impl Fn(u16) -> Option<u16>,
) -> Option<Left> {
    let noted = Noted::of(area, size)?;
    match noted.field(VERSION_AT)? {
        0 => {
            // If something was used all the same, it is a process that notes nothing.
            let place = Place::from_word(start);
            let used = crate::queue::packed::is_used(place, flags(place.slot)?);
            return (!used).then(|| Left::nothing(start));
        }
        VERSION if noted.field(DESCRIPTORS_AT)? == size => {}
        _ => return None,
    }
    let (mut used, old) = (
        noted.place(USED_AT, WRAP_AT)?,
        noted.place(OLD_USED_AT, OLD_WRAP_AT)?,
    );
    let mut first = noted.field(FREE_AT)?;
    // The driver was not shown what the notes say was about to be: it is not used.
    if used == old || is_available(old, flags(old.slot)?) {
        (used, first) = (old, noted.field(OLD_FREE_AT)?);
    }
    let mut seen = vec![false; size.into()];
    let mut free = noted.free(first, &mut seen)?;
    // One that is free is not in flight, whatever it says: it was given back, or never wholly taken.
    let flies = |(index, is_free): (u16, &bool)| {
        let flies = noted.entry(index)?.first() == Some(&1);
        (flies && !is_free).then_some(index)
    };
    let heads: Vec<_> = (0..size).zip(&seen).filter_map(flies).collect();
    let begun: Option<Vec<_>> = heads
        .into_iter()
        .map(|head| noted.chain(head, &mut seen))
        .collect();
    let mut begun = begun?;
    begun.sort_by_key(|chain| chain.counter);
    // Whatever is neither.
    let neither = (0..size).zip(&seen).filter(|(_, seen)| !**seen);
    free.extend(neither.map(|(index, _)| index));
    Some(Left {
        used: used.word(),
        begun: begun.into_iter().map(Begun::Packed).collect(),
        free,
    })
}

/// Whether anything is in flight by the notes in `area` alone, which is so at least until it was noted that it is not.
pub(crate) fn is_left(area: &[u8], size: u16) -> Option<bool> {
    let mut entries = Noted::of(area, size)?.entries.iter();
    Some(entries.any(|entry| entry.first() == Some(&1)))
}

/// The notes as they are written. What is in the memory is never read again: the front end has it, too.
#[derive(Debug)]
pub(super) struct Notes {
    memory: Arc<MmapRegion>,
    area: Range<usize>,
    size: u16,
    /// What is noted of each entry: the one after it, and of a chain's first one the last.
    next: Vec<u16>,
    last: Vec<u16>,
    free: u16,
    old_free: u16,
    used: Place,
    old_used: Place,
    counter: u64,
    /// Completed, and not about to be shown yet: first entries.
    batch: Vec<u16>,
    /// About to be shown.
    shown: Vec<u16>,
}

impl Notes {
    /// Goes on in `area` of `memory`, which has the room.
    pub(super) fn new(memory: Arc<MmapRegion>, area: Range<usize>, size: u16, left: &Left) -> Self {
        let used = Place::from_word(left.used);
        let mut notes = Self {
            memory,
            area,
            size,
            next: vec![size; size.into()],
            last: vec![size; size.into()],
            free: size,
            old_free: size,
            used,
            old_used: used,
            counter: 0,
            batch: Vec::new(),
            shown: Vec::new(),
        };
        for chain in &left.begun {
            let Begun::Packed(chain) = chain else {
                continue;
            };
            for (entry, next) in chain.entries.iter().zip(chain.entries.iter().skip(1)) {
                set(&mut notes.next, *entry, *next);
            }
            if let Some(last) = chain.entries.last() {
                set(&mut notes.last, chain.head(), *last);
            }
            notes.counter = notes.counter.max(chain.counter.wrapping_add(1));
        }
        // What is noted stays where it is: whenever this ends, what there is says the same.
        let all: Vec<_> = (0..size).collect();
        let is_new = left.begun.is_empty() && left.free.is_empty();
        let free = if is_new { &all } else { &left.free };
        for entry in free.iter().rev() {
            notes.link(*entry, notes.free);
            notes.free = *entry;
        }
        for entry in free {
            notes.put(*entry, 0, 0u8);
        }
        notes.old_free = notes.free;
        if is_new {
            // A version is what makes notes of them.
            notes.set_used();
            notes.set_free();
        } else {
            notes.set_free();
            notes.set_used();
        }
        notes
    }

    fn set<T: AtomicAccess>(&self, at: usize, value: T) {
        #[cfg(test)]
        tests::stored(at, value.as_slice());
        let at = self.area.start.saturating_add(at);
        // Behind it is another queue's.
        if at.saturating_add(size_of::<T>()) > self.area.end {
            return;
        }
        // The area was found in the memory.
        let _ = self
            .memory
            .as_volatile_slice()
            .store(value, at, Ordering::Release);
    }

    fn put<T: AtomicAccess>(&self, entry: u16, at: usize, value: T) {
        let place = ENTRY.saturating_mul(entry.into());
        self.set(place.saturating_add(HEAD).saturating_add(at), value);
    }

    /// Notes both ends of the free list, at once: old and new are never mixed with another's.
    fn set_free(&self) {
        let mut word = [0; 8];
        fill(&mut word, VERSION_AT, &VERSION.to_ne_bytes());
        fill(&mut word, DESCRIPTORS_AT, &self.size.to_ne_bytes());
        fill(&mut word, FREE_AT, &self.free.to_ne_bytes());
        fill(&mut word, OLD_FREE_AT, &self.old_free.to_ne_bytes());
        self.set(VERSION_AT, u64::from_ne_bytes(word));
    }

    /// The same for the places in the ring.
    fn set_used(&self) {
        let (used, old) = (self.used, self.old_used);
        let mut word = [0; 8];
        fill(&mut word, USED_AT, &used.slot.to_ne_bytes());
        fill(&mut word, OLD_USED_AT, &old.slot.to_ne_bytes());
        fill(&mut word, WRAP_AT, &[(used.word() >> 15) as u8]);
        fill(&mut word, OLD_WRAP_AT, &[(old.word() >> 15) as u8]);
        self.set(USED_AT, u64::from_ne_bytes(word));
    }

    fn link(&mut self, entry: u16, next: u16) {
        set(&mut self.next, entry, next);
        self.put(entry, NEXT_AT, next);
    }

    /// Puts a chain's entries before the free list, which begins with them then.
    fn give_back(&mut self, head: u16) {
        if let Some(last) = self.last.get(usize::from(head)).copied() {
            self.link(last, self.free);
            self.free = head;
        }
    }

    /// A chain of `descriptors` is begun; which entry it is known by.
    ///
    /// # Errors
    ///
    /// There are not so many entries free: what was completed has to be shown first, and no driver offers more before it was. Nothing
    /// is noted then.
    pub(super) fn began(&mut self, descriptors: &[Descriptor]) -> Result<u16, Refused> {
        let head = self.free;
        let mut at = head;
        for _ in descriptors {
            let next = self.next.get(usize::from(at)).copied();
            at = next.ok_or_else(|| too_long(self.size.into()))?;
        }
        let (mut at, mut last) = (head, head);
        for descriptor in descriptors {
            self.put(at, ID_AT, descriptor.next);
            self.put(at, FLAGS_AT, descriptor.flags);
            self.put(at, LENGTH_AT, descriptor.length);
            self.put(at, ADDRESS_AT, descriptor.address);
            last = at;
            // So many were found free.
            at = self.next.get(usize::from(at)).copied().unwrap_or(self.size);
        }
        set(&mut self.last, head, last);
        self.put(head, LAST_AT, last);
        // No chain is longer than a ring.
        self.put(head, COUNT_AT, descriptors.len() as u16);
        self.put(head, COUNTER_AT, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.put(head, 0, 1u8);
        (self.free, self.old_free) = (at, at);
        self.set_free();
        Ok(head)
    }

    /// The chain that was begun last was not.
    pub(super) fn put_back(&mut self, head: u16) {
        self.give_back(head);
        self.old_free = self.free;
        self.set_free();
        self.put(head, 0, 0u8);
    }

    /// A chain is about to be used. Its entries are free when the driver is shown that: until then, others may be begun.
    pub(super) fn completed(&mut self, head: u16) {
        self.batch.push(head);
    }

    /// The driver is about to be shown what was completed, and the ring's used place to be `used`.
    pub(super) fn publishing(&mut self, used: u16) {
        for head in std::mem::take(&mut self.batch) {
            self.give_back(head);
            self.shown.push(head);
        }
        self.set_free();
        self.used = Place::from_word(used);
        self.set_used();
    }

    /// It has been.
    pub(super) fn published(&mut self) {
        #[cfg(test)]
        tests::shown();
        for head in std::mem::take(&mut self.shown) {
            self.put(head, 0, 0u8);
        }
        self.old_free = self.free;
        self.set_free();
        self.old_used = self.used;
        self.set_used();
    }
}

fn set(entries: &mut [u16], at: u16, value: u16) {
    if let Some(place) = entries.get_mut(usize::from(at)) {
        *place = value;
    }
}

/// Fills in a field at `at` of one of the two words of eight bytes before the entries.
fn fill(word: &mut [u8; 8], at: usize, bytes: &[u8]) {
    let place = word.iter_mut().skip(at & 7);
    for (place, byte) in place.zip(bytes) {
        *place = *byte;
    }
}

#[cfg(test)]
mod tests;
