// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a driver does to set a queue up is the same on any transport, but for the registers.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::{PackedRing, Ring};

/// The registers of a transport's queues.
pub(super) trait Slots {
    /// How large queue `queue` may be. Panics if there is none.
    fn queue_max(&mut self, queue: u16) -> u16;

    /// Places the areas of a queue of `size` descriptors, and enables it. Panics if the device refuses.
    fn place(&mut self, queue: u16, size: u16, areas: [u64; 3]);
}

/// Sets a split queue up, with its ring at `base`.
pub(super) fn split(
    driver: &mut impl Slots,
    queue: u16,
    memory: &Arc<GuestMemoryMmap>,
    base: u64,
    size: u16,
) -> Ring {
    behind(driver, queue, memory, base, size, 0)
}

/// The same, for a device that has each address `distance` further up.
pub(super) fn behind(
    driver: &mut impl Slots,
    queue: u16,
    memory: &Arc<GuestMemoryMmap>,
    base: u64,
    size: u16,
    distance: u64,
) -> Ring {
    let max = driver.queue_max(queue);
    let ring = Ring::new(Arc::clone(memory), base, size.min(max));
    let areas = [ring.table, ring.available, ring.used].map(|area| area + distance);
    driver.place(queue, ring.size, areas);
    ring
}

/// The same, of a packed one.
pub(super) fn packed(
    driver: &mut impl Slots,
    queue: u16,
    memory: &Arc<GuestMemoryMmap>,
    base: u64,
    size: u16,
) -> PackedRing {
    let max = driver.queue_max(queue);
    let ring = PackedRing::new(Arc::clone(memory), base, size.min(max));
    driver.place(queue, ring.size, [ring.ring, ring.driver, ring.device]);
    ring
}
