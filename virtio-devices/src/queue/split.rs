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

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use super::chain::{Chain, Descriptors};
use super::{Head, Notify, QueueConfig, QueueError};
use crate::features::Features;

/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY.
const NO_NOTIFY: u16 = 1;

/// A split ring. Every index here is our own copy, or was checked when it was read.
#[derive(Debug)]
pub(super) struct SplitRing {
    size: u16,
    table: u64,
    available: u64,
    used: u64,
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
    /// A ring whose `config` was checked: size, alignment, and no area wraps.
    pub(super) fn new(config: &QueueConfig, features: Features) -> Self {
        Self {
            size: config.size,
            table: config.descriptor_area,
            available: config.driver_area,
            used: config.device_area,
            indirect: features.contains(Features::INDIRECT_DESC),
            event_index: features.contains(Features::EVENT_IDX),
            taken: 0,
            seen: 0,
            completed: 0,
            published: 0,
        }
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn pop<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        chain: &mut Chain,
    ) -> Result<Option<Head>, QueueError> {
        if self.taken == self.seen && !self.look(memory)? {
            return Ok(None);
        }
        let slot = u64::from(self.taken % self.size);
        let head = load(memory, self.available + 4 + 2 * slot, Ordering::Relaxed)?;
        chain
            .fill(Descriptors::new(
                memory,
                self.table,
                self.size,
                head,
                self.indirect,
            ))
            .map_err(|source| QueueError::Chain { head, source })?;
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(Head(head)))
    }

    /// Reads the driver's index; true if there is something to take.
    fn look<M: GuestMemory + ?Sized>(&mut self, memory: &M) -> Result<bool, QueueError> {
        // Acquire: what the index shows must be read after the index.
        let available = load(memory, self.available + 2, Ordering::Acquire)?;
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

    pub(super) fn complete<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
        head: u16,
        written: u32,
    ) -> Result<(), QueueError> {
        let address = self.used + 4 + 8 * u64::from(self.completed % self.size);
        let element = (u64::from(written) << 32) | u64::from(head);
        memory
            .write_slice(&element.to_le_bytes(), GuestAddress(address))
            .map_err(|source| QueueError::Access { address, source })?;
        self.completed = self.completed.wrapping_add(1);
        Ok(())
    }

    pub(super) fn publish<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<Notify, QueueError> {
        let (old, new) = (self.published, self.completed);
        if old == new {
            return Ok(Notify::No);
        }
        // Release: the elements, and the buffers they speak of, before the index.
        store(memory, self.used + 2, new, Ordering::Release)?;
        self.published = new;
        // The driver stores its wish, then looks at our index; we store our index, then look at its wish.
        // Without a full fence on both sides, both could miss the other's store.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = load(
                memory,
                self.available + 4 + 2 * u64::from(self.size),
                Ordering::Relaxed,
            )?;
            // Did the index step over `event` on its way from `old` to `new`?
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            load(memory, self.available, Ordering::Relaxed)? & NO_INTERRUPT == 0
        };
        Ok(if wanted { Notify::Yes } else { Notify::No })
    }

    pub(super) fn disable_kicks<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<(), QueueError> {
        // With event indices there is nothing to do: the index we asked for is behind us already.
        if self.event_index {
            return Ok(());
        }
        store(memory, self.used, NO_NOTIFY, Ordering::Relaxed)
    }

    pub(super) fn enable_kicks<M: GuestMemory + ?Sized>(
        &mut self,
        memory: &M,
    ) -> Result<bool, QueueError> {
        if self.event_index {
            let event = self.used + 4 + 8 * u64::from(self.size);
            store(memory, event, self.taken, Ordering::Relaxed)?;
        } else {
            store(memory, self.used, 0, Ordering::Relaxed)?;
        }
        // As in `publish`: our wish first, then the driver's index.
        fence(Ordering::SeqCst);
        self.look(memory)
    }
}

fn load<M: GuestMemory + ?Sized>(
    memory: &M,
    address: u64,
    order: Ordering,
) -> Result<u16, QueueError> {
    memory
        .load::<u16>(GuestAddress(address), order)
        .map(u16::from_le)
        .map_err(|source| QueueError::Access { address, source })
}

fn store<M: GuestMemory + ?Sized>(
    memory: &M,
    address: u64,
    value: u16,
    order: Ordering,
) -> Result<(), QueueError> {
    memory
        .store(value.to_le(), GuestAddress(address), order)
        .map_err(|source| QueueError::Access { address, source })
}
