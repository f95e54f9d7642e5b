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

use vm_memory::{GuestMemory, Permissions};

use super::chain::{Chain, Descriptors};
use super::view::{Fault, View};
use super::{Head, Notify, QueueConfig, QueueError};
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
    config: QueueConfig,
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

/// The three areas of a split ring, found in memory.
pub(super) struct Areas<'m, M: GuestMemory + ?Sized> {
    memory: &'m M,
    table: View<'m, M>,
    available: View<'m, M>,
    used: View<'m, M>,
}

impl SplitRing {
    /// A ring whose `config` was checked: size, alignment, and no area wraps.
    pub(super) fn new(config: &QueueConfig, features: Features) -> Self {
        Self {
            config: *config,
            indirect: features.contains(Features::INDIRECT_DESC),
            event_index: features.contains(Features::EVENT_IDX),
            taken: 0,
            seen: 0,
            completed: 0,
            published: 0,
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.config.size
    }

    pub(super) fn find<'m, M: GuestMemory + ?Sized>(&self, memory: &'m M) -> Areas<'m, M> {
        let [table, available, used] = self
            .config
            .areas()
            .map(|area| View::new(memory, area.address, area.length, area.access));
        Areas {
            memory,
            table,
            available,
            used,
        }
    }

    pub(super) fn pop<M: GuestMemory + ?Sized>(
        &mut self,
        areas: &Areas<'_, M>,
        chain: &mut Chain,
    ) -> Result<Option<Head>, QueueError> {
        if self.taken == self.seen && !self.look(areas)? {
            return Ok(None);
        }
        let size = self.config.size;
        let slot = u64::from(self.taken % size);
        let head = areas.available.load(SLOTS + 2 * slot, Ordering::Relaxed)?;
        chain
            .fill(Descriptors::new(
                areas.memory,
                &areas.table,
                size,
                head,
                self.indirect,
            ))
            .map_err(|source| QueueError::Chain { head, source })?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Head(head)))
    }

    /// Reads the driver's index; true if there is something to take.
    fn look<M: GuestMemory + ?Sized>(&mut self, areas: &Areas<'_, M>) -> Result<bool, QueueError> {
        // Acquire: what the index shows must be read after the index.
        let available = areas.available.load(INDEX, Ordering::Acquire)?;
        let (used, size) = (self.published, self.config.size);
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

    pub(super) fn complete<M: GuestMemory + ?Sized>(
        &mut self,
        areas: &Areas<'_, M>,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let slot = u64::from(self.completed % self.config.size);
        let element = (u64::from(written) << 32) | u64::from(head);
        areas.used.write64(SLOTS + 8 * slot, element)?;
        self.completed = self.completed.wrapping_add(1);
        Ok(())
    }

    pub(super) fn publish<M: GuestMemory + ?Sized>(
        &mut self,
        areas: &Areas<'_, M>,
    ) -> Result<Notify, QueueError> {
        let (old, new) = (self.published, self.completed);
        if old == new {
            return Ok(Notify::No);
        }
        // Release: the elements, and the buffers they speak of, before the index.
        areas.used.store(INDEX, new, Ordering::Release)?;
        self.published = new;
        // The driver stores its wish, then looks at our index; we store our index, then look at its wish.
        // Without a full fence on both sides, both could miss the other's store.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let used_event = SLOTS + 2 * u64::from(self.config.size);
            let event = areas.available.load(used_event, Ordering::Relaxed)?;
            // Did the index step over `event` on its way from `old` to `new`?
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            areas.available.load(FLAGS, Ordering::Relaxed)? & NO_INTERRUPT == 0
        };
        Ok(if wanted { Notify::Yes } else { Notify::No })
    }

    pub(super) fn disable_kicks<M: GuestMemory + ?Sized>(
        &mut self,
        areas: &Areas<'_, M>,
    ) -> Result<(), QueueError> {
        // With event indices there is nothing to do: the index we asked for is behind us already.
        if !self.event_index {
            areas.used.store(FLAGS, NO_NOTIFY, Ordering::Relaxed)?;
        }
        Ok(())
    }

    pub(super) fn enable_kicks<M: GuestMemory + ?Sized>(
        &mut self,
        areas: &Areas<'_, M>,
    ) -> Result<bool, QueueError> {
        if self.event_index {
            let avail_event = SLOTS + 8 * u64::from(self.config.size);
            areas
                .used
                .store(avail_event, self.taken, Ordering::Relaxed)?;
        } else {
            areas.used.store(FLAGS, 0, Ordering::Relaxed)?;
        }
        // As in `publish`: our wish first, then the driver's index.
        fence(Ordering::SeqCst);
        self.look(areas)
    }
}

impl From<Fault> for QueueError {
    fn from(fault: Fault) -> Self {
        Self::Access {
            address: fault.address,
            source: fault.source,
        }
    }
}

impl QueueConfig {
    /// The three areas: what they are called, where they lie, how many bytes they have, how they must be
    /// aligned and what we do there. "Split Virtqueues" (2.7).
    pub(super) fn areas(&self) -> [AreaShape; 3] {
        use super::Area::{Descriptor, Device, Driver};
        let entries = u64::from(self.size);
        let shape = |area, address, alignment, length, access| AreaShape {
            area,
            address,
            alignment,
            length,
            access,
        };
        [
            shape(
                Descriptor,
                self.descriptor_area,
                16,
                16 * entries,
                Permissions::Read,
            ),
            shape(
                Driver,
                self.driver_area,
                2,
                6 + 2 * entries,
                Permissions::Read,
            ),
            shape(
                Device,
                self.device_area,
                4,
                6 + 8 * entries,
                Permissions::Write,
            ),
        ]
    }
}

/// What an area must be like.
pub(super) struct AreaShape {
    pub(super) area: super::Area,
    pub(super) address: u64,
    pub(super) alignment: u64,
    pub(super) length: u64,
    pub(super) access: Permissions,
}
