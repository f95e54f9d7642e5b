// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packed layout: one ring of descriptors that both sides write.
//!
//! ```text
//!   descriptor   addr:64  len:32  id:16  flags:16 = NEXT WRITE INDIRECT .. AVAIL(7) .. USED(15)
//!   driver, device area: event suppression   offset:15 wrap:1   flags:2
//!
//!        used ->|  taken, not used  |<- taken      available: AVAIL = wrap, USED != wrap
//!   ring [ .... # # # # # # # # # # # . . . . ]    used:      AVAIL = USED = wrap
//! ```
//!
//! Each side has a place in the ring and a wrap counter, which starts as 1 and flips whenever the place
//! wraps. A chain takes consecutive places; its last descriptor has its identifier. It is used by one descriptor,
//! written at our place, which then moves on by as many as the chain took.
//!
//! "Packed Virtqueues" (2.8).

use std::sync::atomic::{Ordering, fence};

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestMemory, VolatileSlice};

use super::areas::Areas;
use super::chain::{
    Chain, DESCRIPTOR_BITS, Descriptor, Filling, INDIRECT, Met, Numbers, Table, WRITE, words,
};
use super::quick::{Descriptors, Quick, descriptor, descriptors, table};
use super::reach::{Reach, Slice};
use super::refused::{Refused, nested, not_negotiated, too_long, unreadable};
use super::words::{Place as PlaceInMemory, Words};
use super::{Head, Notify, Position, QueueError};
use crate::features::Features;

/// What a process does that goes on after another.
#[cfg(feature = "vhost-user")]
mod again;

#[cfg(feature = "vhost-user")]
pub(super) use again::{is_available, is_used};

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// Offsets of a descriptor's second word, and of what is in it.
const SECOND: u64 = 8;
const ID: u64 = 12;
const FLAGS: u64 = 14;

/// Offsets in an event suppression structure.
const EVENT: u64 = 0;
const EVENT_FLAGS: u64 = 2;

/// RING_EVENT_FLAGS_ENABLE, _DISABLE and _DESC.
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const AT_EVENT: u16 = 2;

/// A wrap counter: of 1 both marks, of 0 none. So a used descriptor has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wrap(u16);

impl Wrap {
    const ZERO: Self = Self(0);
    const ONE: Self = Self(AVAIL | USED);

    /// After one more time around.
    #[inline(always)]
    fn flipped(self) -> Self {
        Self(self.0 ^ (AVAIL | USED))
    }

    /// The marks of an available descriptor.
    #[inline(always)]
    fn available(self) -> u16 {
        self.0 ^ USED
    }

    /// Those of a used one.
    #[inline(always)]
    fn used(self) -> u16 {
        self.0
    }
}

/// A place in the ring, and the wrap counter there. Below the ring's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) slot: u16,
    wrap: Wrap,
}

impl Place {
    /// `count` places on, at most one time around.
    #[inline(always)]
    fn on(self, count: u16, size: u16) -> Self {
        // At most twice 32768.
        let slot = u32::from(self.slot).wrapping_add(count.into());
        if slot < size.into() {
            let slot = slot as u16;
            return Self { slot, ..self };
        }
        self.around(slot.wrapping_sub(size.into()) as u16)
    }

    /// At `slot`, one time around. Apart: almost every step is not.
    #[cold]
    fn around(self, slot: u16) -> Self {
        Self {
            slot,
            wrap: self.wrap.flipped(),
        }
    }

    /// `count` places back, at most one time around.
    fn back(self, count: u16, size: u16) -> Self {
        match self.slot.checked_sub(count) {
            Some(slot) => Self { slot, ..self },
            // Not below 0: `count` is at most `size`.
            None => self.around(size.wrapping_sub(count).wrapping_add(self.slot)),
        }
    }

    /// As the specification writes it: the wrap counter in bit 15.
    pub(super) fn word(self) -> u16 {
        self.slot | self.wrap.0 & 1 << 15
    }

    pub(super) fn from_word(word: u16) -> Self {
        Self {
            slot: word & 0x7fff,
            wrap: match word & 1 << 15 {
                0 => Wrap::ZERO,
                _ => Wrap::ONE,
            },
        }
    }

    /// Where that descriptor's field at `field` is.
    #[inline(always)]
    fn offset(self, field: u64) -> u64 {
        (u64::from(self.slot) << DESCRIPTOR_BITS) | field
    }
}

/// A packed ring. Every place here is our own.
#[derive(Debug)]
pub(super) struct PackedRing {
    /// 1 to 32768, and not always a power of two.
    size: u16,
    indirect: bool,
    event_index: bool,
    /// Where the next chain to take starts.
    taken: Place,
    /// Where the next used descriptor goes.
    completed: Place,
    /// Descriptors that were taken and not given back: at most `size`.
    in_flight: u16,
    /// The first descriptor that the driver has not seen used, and its flags: written last.
    held: Option<(Place, u16)>,
}

impl PackedRing {
    /// A ring whose configuration was checked, and which goes on at `position`. `None` if there is no such
    /// place.
    pub(super) fn new(size: u16, features: Features, position: Position) -> Option<Self> {
        let taken = Place::from_word(position.available);
        let completed = Place::from_word(position.used);
        // With nothing in flight, both are at the same place.
        (taken == completed && taken.slot < size).then_some(Self {
            size,
            indirect: features.contains(Features::INDIRECT_DESC),
            event_index: features.contains(Features::EVENT_IDX),
            taken,
            completed,
            in_flight: 0,
            held: None,
        })
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn position(&self) -> Position {
        Position {
            available: self.taken.word(),
            used: self.completed.word(),
        }
    }

    /// The second word of the descriptor at `taken`, if it is available.
    #[inline(always)]
    fn look<W: Words>(&self, areas: &Areas<W>) -> Result<Option<u64>, Box<QueueError>> {
        // Acquire: what the flags show must be read after the flags.
        let word = areas.descriptors.acquire(self.taken.offset(SECOND))?;
        let marks = self.taken.wrap.available();
        Ok(((word >> 48) as u16 & (AVAIL | USED) == marks).then_some(word))
    }

    /// As `pop`, for a ring in one piece: the usual chains at once.
    #[inline(always)]
    pub(super) fn pop_quick<'m, M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'m, M>,
        areas: &Areas<Slice<'m, M>>,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Box<QueueError>> {
        let Place { slot, wrap } = self.taken;
        // To the end of the ring: almost no chain goes around it.
        let ahead = usize::from(self.size.wrapping_sub(slot));
        let Some(ring) = descriptors(&areas.descriptors, slot, ahead).filter(|_| ahead > 0) else {
            return self.pop(reach, areas, chain);
        };
        let first = ring.ref_at(0).to_slice();
        // Acquire: what the flags show must be read after the flags.
        let word = Words::acquire(&first, SECOND)?;
        let marks = wrap.available();
        if (word >> 48) as u16 & (AVAIL | USED) != marks {
            return Ok(None);
        }
        match self.take_quick(reach, &ring, &first, word, marks, chain) {
            Some(head) => Ok(Some(head)),
            None => self.pop(reach, areas, chain),
        }
    }

    #[inline(always)]
    fn take_quick<'m, M: GuestMemory + ?Sized, B: BitmapSlice>(
        &mut self,
        reach: &Reach<'m, M>,
        ring: &Descriptors<'_, B>,
        first: &VolatileSlice<'_, B>,
        word: u64,
        marks: u16,
        chain: &mut Chain,
    ) -> Option<Head> {
        let first = [u64::from_le(Words::get(first, 0).ok()?), word];
        let flags = |rest: u64| (rest >> 48) as u16;
        let (numbers, slots, last) = if flags(word) == marks | INDIRECT && self.indirect {
            let known = table(reach, first)?;
            let table = descriptors(&known, 0, known.len() >> DESCRIPTOR_BITS)?;
            let room = chain.room(self.size).get_mut(..table.len())?;
            (Quick::new(room).take(&table, flags)?, 1, word)
        } else {
            let room = chain.room(self.size).get_mut(..ring.len())?;
            let next = |before, _| descriptor(ring, before);
            let (numbers, last) = Quick::new(room).follow(first, marks, flags, next)?;
            // Not more than are ahead.
            (numbers, numbers.count as u16, last)
        };
        // A driver may offer no more than it has got back.
        let in_flight = u32::from(self.in_flight).wrapping_add(slots.into());
        if in_flight > self.size.into() {
            return None;
        }
        self.in_flight = in_flight as u16;
        self.taken = self.taken.on(slots, self.size);
        chain.set_quick(numbers);
        Some(Head::new((last >> 32) as u16, slots))
    }

    #[inline(never)]
    pub(super) fn pop<M: GuestMemory + ?Sized, W: Words>(
        &mut self,
        reach: &Reach<'_, M>,
        areas: &Areas<W>,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Box<QueueError>> {
        let Some(first) = self.look(areas)? else {
            return Ok(None);
        };
        match self.fill(reach, areas, first, chain) {
            Ok(head) => Ok(Some(head)),
            Err(source) => Err(QueueError::chain(self.taken.slot, source)),
        }
    }

    /// Undoes the last `pop`.
    pub(super) fn put_back(&mut self, head: &Head) {
        self.taken = self.taken.back(head.slots(), self.size);
        self.in_flight = self.in_flight.saturating_sub(head.slots());
    }

    /// Takes in a chain whose first descriptor's second word is `word`, and moves on behind it.
    #[inline(always)]
    fn fill<M: GuestMemory + ?Sized, W: Words>(
        &mut self,
        reach: &Reach<'_, M>,
        areas: &Areas<W>,
        word: u64,
        chain: &mut Chain,
    ) -> Result<Head, Refused> {
        let (size, ring) = (self.size, &areas.descriptors);
        // A driver may offer no more than it has got back, however it sets the marks.
        let most = size.wrapping_sub(self.in_flight);
        if most == 0 {
            return Err(too_long(size.into()));
        }
        let (mut last, mut slots) = (self.taken, 1u16);
        let next = |_: &Descriptor| {
            if slots == most {
                return Err(too_long(size.into()));
            }
            slots = slots.wrapping_add(1);
            last = last.on(1, size);
            let descriptor = packed(words(ring, last.slot, size.into())?);
            Ok((last.slot, descriptor))
        };
        let mut filling = chain.refill(size);
        // The second word was read before, once.
        let first = packed([first_word(ring, self.taken, size)?, word]);
        let (id, numbers) = match filling.follow(self.taken.slot, first, next)? {
            Met::End(last) => (last.next, filling.finish()),
            Met::Indirect(index, descriptor) => {
                let numbers = self.fill_indirect(reach, index, descriptor, filling)?;
                (descriptor.next, numbers)
            }
        };
        chain.set(numbers)?;
        self.taken = last.on(1, size);
        self.in_flight = self.in_flight.wrapping_add(slots);
        Ok(Head::new(id, slots))
    }

    /// All of an indirect table, in order: only WRITE means something there (2.8.7).
    #[inline(always)]
    fn fill_indirect<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        index: u16,
        descriptor: Descriptor,
        filling: Filling<'_>,
    ) -> Result<Numbers, Refused> {
        if !self.indirect {
            return Err(not_negotiated(index));
        }
        let table = Table::of(index, &descriptor)?;
        let size = self.size;
        let entries = u16::try_from(table.entries())
            .ok()
            .filter(|entries| *entries <= size)
            .ok_or_else(|| too_long(size.into()))?;
        match table.known(reach) {
            Some(words) => follow(&words, entries, filling),
            None => follow_found(reach, table, entries, filling),
        }
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "by value it stays in a register, and it is completed once"
    )]
    #[inline(always)]
    pub(super) fn complete<W: Words>(
        &mut self,
        areas: &Areas<W>,
        head: Head,
        written: u32,
    ) -> Result<(), Box<QueueError>> {
        let place = self.completed;
        let flags = place.wrap.used() | if written > 0 { WRITE } else { 0 };
        let ring = &areas.descriptors;
        match self.held {
            // The driver looks at them in order: it comes to this one only after the one that is held.
            Some(_) => {
                let word = u64::from(written) | head.index_above() | u64::from(flags) << 48;
                ring.put(place.offset(SECOND), word.to_le())?;
            }
            // The flags stay the driver's until `publish`.
            None => {
                ring.put(place.offset(SECOND), written.to_le())?;
                ring.store(place.offset(ID), head.index(), Ordering::Relaxed)?;
                self.held = Some((place, flags));
            }
        }
        self.completed = place.on(head.slots(), self.size);
        self.in_flight = self.in_flight.saturating_sub(head.slots());
        Ok(())
    }

    #[inline(always)]
    pub(super) fn publish<W: Words>(&mut self, areas: &Areas<W>) -> Result<Notify, QueueError> {
        let Some((place, flags)) = self.held.take() else {
            return Ok(Notify::No);
        };
        // Release: the later descriptors, and the buffers they speak of, before the first one's flags.
        let offset = place.offset(FLAGS);
        areas.descriptors.store(offset, flags, Ordering::Release)?;
        // The driver stores its wish, then looks at the ring; we store in the ring, then look at its wish.
        fence(Ordering::SeqCst);
        let wish = areas.driver.load(EVENT_FLAGS, Ordering::Acquire)? & 3;
        let wanted = match wish {
            DISABLE => false,
            AT_EVENT if self.event_index => {
                let event = Place::from_word(areas.driver.load(EVENT, Ordering::Relaxed)?);
                self.stepped_over(event, place)
            }
            _ => true,
        };
        Ok(if wanted { Notify::Yes } else { Notify::No })
    }

    /// Whether we passed `event` on our way from `start` to where we are.
    fn stepped_over(&self, event: Place, start: Place) -> bool {
        // All are of 16 bits and a sign. A place whose wrap counter is the other one is of the round before ours.
        let on_our_round = |place: Place| match place.wrap == self.completed.wrap {
            true => i32::from(place.slot),
            false => i32::from(place.slot).wrapping_sub(self.size.into()),
        };
        let passed = on_our_round(start)..self.completed.slot.into();
        // A place outside the ring is never passed.
        event.slot < self.size && passed.contains(&on_our_round(event))
    }

    pub(super) fn disable_kicks<W: Words>(&mut self, areas: &Areas<W>) -> Result<(), QueueError> {
        areas
            .device
            .store(EVENT_FLAGS, DISABLE, Ordering::Relaxed)?;
        Ok(())
    }

    pub(super) fn enable_kicks<W: Words>(&mut self, areas: &Areas<W>) -> Result<bool, QueueError> {
        let wish = if self.event_index {
            let event = self.taken.word();
            areas.device.store(EVENT, event, Ordering::Relaxed)?;
            AT_EVENT
        } else {
            ENABLE
        };
        areas.device.store(EVENT_FLAGS, wish, Ordering::Release)?;
        // As in `publish`: our wish first, then the driver's marks.
        fence(Ordering::SeqCst);
        Ok(self.look(areas)?.is_some())
    }
}

/// The address in the descriptor at `place`.
#[inline(always)]
fn first_word(ring: &impl Words, place: Place, size: u16) -> Result<u64, Refused> {
    match ring.get::<u64>(place.offset(0)) {
        Ok(word) => Ok(u64::from_le(word)),
        Err(fault) => Err(unreadable(place.slot, size.into(), fault)),
    }
}

/// From the two words of "struct pvirtq_desc". Truncations on purpose: one field each.
#[inline(always)]
fn packed([address, rest]: [u64; 2]) -> Descriptor {
    Descriptor {
        address,
        length: rest as u32,
        flags: (rest >> 48) as u16,
        next: (rest >> 32) as u16,
    }
}

/// All of an indirect table.
#[inline(always)]
fn follow(table: &impl Words, entries: u16, mut filling: Filling<'_>) -> Result<Numbers, Refused> {
    for index in 0..entries {
        let descriptor = packed(words(table, index, entries.into())?);
        if descriptor.flags & INDIRECT != 0 {
            return Err(nested(index));
        }
        filling.add(index, &descriptor)?;
    }
    Ok(filling.finish())
}

/// [`follow`], where it is not known at once where the table is.
#[inline(never)]
fn follow_found<M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    table: Table,
    entries: u16,
    filling: Filling<'_>,
) -> Result<Numbers, Refused> {
    match table.find(reach) {
        PlaceInMemory::Whole(words) => follow(&words, entries, filling),
        PlaceInMemory::Scattered(words) => follow(&words, entries, filling),
    }
}
