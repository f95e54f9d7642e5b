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
use super::chain::{Chain, ChainError, Descriptor, Filling, INDIRECT, NEXT, indirect_table, words};
use super::reach::Reach;
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
        u64::from(index & (self.size - 1))
    }

    #[inline(always)]
    pub(super) fn pop<M: GuestMemory + ?Sized, W: Words>(
        &mut self,
        reach: &Reach<'_, M>,
        areas: &Areas<W>,
        chain: &mut Chain,
    ) -> Result<Option<Head>, QueueError> {
        if self.taken == self.seen && !self.look(areas)? {
            return Ok(None);
        }
        let at = SLOTS + 2 * self.slot(self.taken);
        let index = areas.driver.load(at, Ordering::Relaxed)?;
        if let Err(source) = self.fill(reach, areas, index, chain) {
            return Err(QueueError::Chain {
                head: index,
                source,
            });
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
            .map_err(|source| QueueError::Chain { head, source })?;
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
    ) -> Result<(), ChainError> {
        let size = self.size;
        let mut filling = chain.refill(size);
        let mut index = head;
        loop {
            if index >= size {
                let entries = size.into();
                return Err(ChainError::Index { index, entries });
            }
            let descriptor = Descriptor::split(words(&areas.descriptors, index)?);
            if descriptor.flags & INDIRECT != 0 {
                return self.fill_indirect(reach, index, descriptor, filling.apart());
            }
            filling.add(index, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                filling.finish();
                return Ok(());
            }
            index = descriptor.next;
        }
    }

    fn fill_indirect<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        index: u16,
        descriptor: Descriptor,
        filling: Filling<'_>,
    ) -> Result<(), ChainError> {
        if !self.indirect {
            return Err(ChainError::IndirectNotNegotiated { index });
        }
        match indirect_table(reach, index, descriptor)? {
            (Place::Whole(table), entries) => follow(&table, entries, filling),
            (Place::Scattered(table), entries) => follow(&table, entries, filling),
        }
    }

    /// Reads the driver's index; true if there is something to take.
    fn look<W: Words>(&mut self, areas: &Areas<W>) -> Result<bool, QueueError> {
        // Acquire: what the index shows must be read after the index.
        let available = areas.driver.load(INDEX, Ordering::Acquire)?;
        let (used, size) = (self.published, self.size);
        // A driver reuses a descriptor only after it has seen it used, so it can never be further ahead.
        // Nor may it go back behind what it has shown us.
        let ahead = available.wrapping_sub(used);
        if ahead > size || ahead < self.taken.wrapping_sub(used) {
            return Err(QueueError::Available {
                available,
                used,
                size,
            });
        }
        self.seen = available;
        Ok(self.taken != self.seen)
    }

    #[inline(always)]
    pub(super) fn complete<W: Words>(
        &mut self,
        areas: &Areas<W>,
        head: &Head,
        written: u32,
    ) -> Result<(), QueueError> {
        let at = SLOTS + 8 * self.slot(self.completed);
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
            let used_event = SLOTS + 2 * u64::from(self.size);
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
            let avail_event = SLOTS + 8 * u64::from(self.size);
            areas
                .device
                .store(avail_event, self.taken, Ordering::Relaxed)?;
        } else {
            areas.device.store(FLAGS, 0, Ordering::Relaxed)?;
        }
        // As in `publish`: our wish first, then the driver's index.
        fence(Ordering::SeqCst);
        self.look(areas)
    }
}

/// The rest of a chain, in an indirect table.
fn follow(table: &impl Words, entries: u32, mut filling: Filling<'_>) -> Result<(), ChainError> {
    let mut index = 0;
    loop {
        if u32::from(index) >= entries {
            return Err(ChainError::Index { index, entries });
        }
        let descriptor = Descriptor::split(words(table, index)?);
        if descriptor.flags & INDIRECT != 0 {
            return Err(ChainError::IndirectNested { index });
        }
        filling.add(index, descriptor)?;
        if descriptor.flags & NEXT == 0 {
            filling.finish();
            return Ok(());
        }
        index = descriptor.next;
    }
}
