// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split layout: a descriptor table, an available ring, a used ring.
//!
//! ```text
//!   available   flags:16  idx:16  ring[size]:16        used_event:16     the driver's
//!   used        flags:16  idx:16  ring[size]:(32,32)   avail_event:16    ours
//! ```
//!
//! Indices count on from 0 and wrap at 2^16; a slot is an index modulo the size.
//!
//! "The Virtqueue Available Ring" (2.7.6), "The Virtqueue Used Ring" (2.7.8).

use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestMemory;

use super::areas::Areas;
use super::chain::{
    Chain, DESCRIPTOR_BITS, Descriptor, Filling, INDIRECT, Met, Numbers, Table, words,
};
use super::quick::{Quick, descriptor, descriptors, table};
use super::reach::{Reach, Slice};
use super::refused::{Refused, nested, not_negotiated};
use super::words::{Place, Words};
use super::{Head, Notify, Position, QueueError};
use crate::features::Features;

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY.
const NO_NOTIFY: u16 = 1;

/// Offset of the flags in either ring.
const FLAGS: u64 = 0;
/// Offset of the index in either ring.
const INDEX: u64 = 2;
/// Offset of the first slot in either ring.
const SLOTS: u64 = 4;

/// A split ring. Every index here is our own copy, or was checked when it was read.
#[derive(Debug)]
pub(super) struct SplitRing {
    /// A power of two.
    size: u16,
    /// One less: an index's slot.
    mask: u16,
    indirect: bool,
    event_index: bool,
    /// The next index to take.
    taken: u16,
    /// The driver's index when we last looked. At most `size` past `published`.
    seen: u16,
    /// The next index to put in the used ring.
    completed: u16,
    /// Our index as the driver sees it.
    published: u16,
}

impl SplitRing {
    /// A ring whose configuration was checked, and which goes on at `position`.
    pub(super) fn new(size: u16, features: Features, position: Position) -> Self {
        Self {
            size,
            mask: size.wrapping_sub(1),
            indirect: features.contains(Features::INDIRECT_DESC),
            event_index: features.contains(Features::EVENT_IDX),
            taken: position.available,
            seen: position.available,
            completed: position.used,
            published: position.used,
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn position(&self) -> Position {
        Position {
            available: self.taken,
            used: self.published,
        }
    }

    #[inline(always)]
    fn slot(&self, index: u16) -> u64 {
        u64::from(index & self.mask)
    }

    /// As `pop`, for a ring in one piece: the usual chains at once.
    #[inline(always)]
    pub(super) fn pop_quick<'m, M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'m, M>,
        areas: &Areas<Slice<'m, M>>,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Box<QueueError>> {
        if self.taken == self.seen && !self.look(areas)? {
            return Ok(None);
        }
        match self.take_quick(reach, areas, chain) {
            Some(index) => {
                self.taken = self.taken.wrapping_add(1);
                Ok(Some(Head::new(index, 1)))
            }
            None => self.pop(reach, areas, chain),
        }
    }

    #[inline(always)]
    fn take_quick<'m, M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'m, M>,
        areas: &Areas<Slice<'m, M>>,
        chain: &mut Chain,
    ) -> Option<u16> {
        let at = SLOTS.wrapping_add(self.slot(self.taken) << 1);
        let head = u16::from_le(areas.driver.get(at).ok()?);
        let ring = descriptors(&areas.descriptors, 0, self.size.into())?;
        let first = descriptor(&ring, head.into())?;
        let flags = |rest: u64| (rest >> 32) as u16;
        let quick = Quick::new(chain.room(self.size));
        let (numbers, _) = if flags(first[1]) == INDIRECT && self.indirect {
            let known = table(reach, first)?;
            let table = descriptors(&known, 0, known.len() >> DESCRIPTOR_BITS)?;
            let next = |_, rest: u64| descriptor(&table, (rest >> 48) as usize);
            quick.follow(descriptor(&table, 0)?, 0, flags, next)?
        } else {
            let next = |_, rest: u64| descriptor(&ring, (rest >> 48) as usize);
            quick.follow(first, 0, flags, next)?
        };
        chain.set_quick(numbers);
        Some(head)
    }

    #[inline(never)]
    pub(super) fn pop<M: GuestMemory + ?Sized, W: Words>(
        &mut self,
        reach: &Reach<'_, M>,
        areas: &Areas<W>,
        chain: &mut Chain,
    ) -> Result<Option<Head>, Box<QueueError>> {
        if self.taken == self.seen && !self.look(areas)? {
            return Ok(None);
        }
        // The index was loaded with Acquire, and what it shows stays: any kind of load will do.
        let at = SLOTS.wrapping_add(self.slot(self.taken) << 1);
        let index = u16::from_le(areas.driver.get(at)?);
        if let Err(source) = self.fill(reach, areas, index, chain) {
            return Err(QueueError::chain(index, source));
        }
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Head::new(index, 1)))
    }

    /// As `pop`, for a chain that was taken before, and not by us.
    #[cfg(feature = "vhost-user")]
    pub(super) fn retake<M: GuestMemory + ?Sized, W: Words>(
        &mut self,
        reach: &Reach<'_, M>,
        areas: &Areas<W>,
        head: u16,
        chain: &mut Chain,
    ) -> Result<Head, QueueError> {
        self.fill(reach, areas, head, chain)
            .map_err(|source| QueueError::chain(head, source))?;
        self.taken = self.taken.wrapping_add(1);
        self.seen = self.taken;
        Ok(Head::new(head, 1))
    }

    /// Undoes the last `pop`.
    pub(super) fn put_back(&mut self, _head: &Head) {
        self.taken = self.taken.wrapping_sub(1);
    }

    /// ```text
    ///   table   [ addr len flags next ]  16 bytes a descriptor
    ///              |         |
    ///              |         '- NEXT: go on at `next`     WRITE: for the device to write
    ///              '- INDIRECT: the chain goes on, and ends, in a table of its own at `addr`
    /// ```
    #[inline(always)]
    fn fill<M: GuestMemory + ?Sized, W: Words>(
        &self,
        reach: &Reach<'_, M>,
        areas: &Areas<W>,
        head: u16,
        chain: &mut Chain,
    ) -> Result<(), Refused> {
        let (table, entries) = (&areas.descriptors, u32::from(self.size));
        let mut filling = chain.refill(self.size);
        let first = Descriptor::split(words(table, head, entries)?);
        let numbers = match filling.follow(head, first, |before| linked(table, entries, before))? {
            Met::End(_) => filling.finish(),
            Met::Indirect(index, descriptor) => {
                self.fill_indirect(reach, index, descriptor, filling)?
            }
        };
        chain.set(numbers)
    }

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
        match table.known(reach) {
            Some(words) => follow(&words, table.entries(), filling),
            None => follow_found(reach, table, filling),
        }
    }

    /// Reads the driver's index; true if there is something to take.
    fn look<W: Words>(&mut self, areas: &Areas<W>) -> Result<bool, Box<QueueError>> {
        // Acquire: what the index shows must be read after the index.
        let available = areas.driver.load(INDEX, Ordering::Acquire)?;
        let (used, size) = (self.published, self.size);
        // A driver reuses a descriptor only after it has seen it used, so it can never be further ahead.
        // Nor may it go back behind what it has shown us.
        let ahead = available.wrapping_sub(used);
        if ahead > size || ahead < self.taken.wrapping_sub(used) {
            return Err(Box::new(QueueError::Available {
                available,
                used,
                size,
            }));
        }
        self.seen = available;
        Ok(self.taken != self.seen)
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
        let at = SLOTS.wrapping_add(self.slot(self.completed) << 3);
        let element = (u64::from(written) << 32) | u64::from(head.index());
        areas.device.put(at, element.to_le())?;
        self.completed = self.completed.wrapping_add(1);
        Ok(())
    }

    pub(super) fn publish<W: Words>(&mut self, areas: &Areas<W>) -> Result<Notify, QueueError> {
        let (old, new) = (self.published, self.completed);
        if old == new {
            return Ok(Notify::No);
        }
        // Release: the elements, and the buffers they speak of, before the index.
        areas.device.store(INDEX, new, Ordering::Release)?;
        self.published = new;
        // The driver stores its wish, then looks at our index; we store our index, then look at its wish.
        // Without a full fence on both sides, both could miss the other's store.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let used_event = SLOTS.wrapping_add(u64::from(self.size) << 1);
            let event = areas.driver.load(used_event, Ordering::Relaxed)?;
            // Did the index step over `event` on its way from `old` to `new`?
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            areas.driver.load(FLAGS, Ordering::Relaxed)? & NO_INTERRUPT == 0
        };
        Ok(if wanted { Notify::Yes } else { Notify::No })
    }

    pub(super) fn disable_kicks<W: Words>(&mut self, areas: &Areas<W>) -> Result<(), QueueError> {
        // With event indices there is nothing to do: the index we asked for is behind us already.
        if !self.event_index {
            areas.device.store(FLAGS, NO_NOTIFY, Ordering::Relaxed)?;
        }
        Ok(())
    }

    pub(super) fn enable_kicks<W: Words>(&mut self, areas: &Areas<W>) -> Result<bool, QueueError> {
        if self.event_index {
            let avail_event = SLOTS.wrapping_add(u64::from(self.size) << 3);
            areas
                .device
                .store(avail_event, self.taken, Ordering::Relaxed)?;
        } else {
            areas.device.store(FLAGS, 0, Ordering::Relaxed)?;
        }
        // As in `publish`: our wish first, then the driver's index.
        fence(Ordering::SeqCst);
        Ok(self.look(areas)?)
    }
}

/// The descriptor that `before` links to.
#[inline(always)]
fn linked(
    table: &impl Words,
    entries: u32,
    before: &Descriptor,
) -> Result<(u16, Descriptor), Refused> {
    let index = before.next;
    Ok((index, Descriptor::split(words(table, index, entries)?)))
}

/// The rest of a chain, in an indirect table.
#[inline(always)]
fn follow(table: &impl Words, entries: u32, mut filling: Filling<'_>) -> Result<Numbers, Refused> {
    let first = Descriptor::split(words(table, 0, entries)?);
    match filling.follow(0, first, |before| linked(table, entries, before))? {
        Met::End(_) => Ok(filling.finish()),
        Met::Indirect(index, _) => Err(nested(index)),
    }
}

/// [`follow`], where it is not known at once where the table is.
#[inline(never)]
fn follow_found<M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    table: Table,
    filling: Filling<'_>,
) -> Result<Numbers, Refused> {
    match table.find(reach) {
        Place::Whole(words) => follow(&words, table.entries(), filling),
        Place::Scattered(words) => follow(&words, table.entries(), filling),
    }
}
