// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in a packed ring of a chain that is noted, and how somebody else goes on with it.

use std::sync::atomic::Ordering;

use vm_memory::GuestMemory;

use super::{AVAIL, FLAGS, PackedRing, Place, USED, packed};
use crate::queue::areas::Areas;
use crate::queue::chain::{Chain, Descriptor, Met, words};
use crate::queue::reach::Reach;
use crate::queue::refused::{Refused, too_long};
use crate::queue::words::Words;
use crate::queue::{Head, QueueError};

/// Whether a descriptor with those `flags` is available at `place`.
pub(in crate::queue) fn is_available(place: Place, flags: u16) -> bool {
    flags & (AVAIL | USED) == place.wrap.available()
}

/// Whether it is used there.
pub(in crate::queue) fn is_used(place: Place, flags: u16) -> bool {
    flags & (AVAIL | USED) == place.wrap.used()
}

impl PackedRing {
    /// What is in the ring of the chain that was popped last.
    pub(in crate::queue) fn descriptors<W: Words>(
        &self,
        areas: &Areas<W>,
        head: &Head,
    ) -> Result<Vec<Descriptor>, Box<QueueError>> {
        let mut place = self.taken.back(head.slots(), self.size);
        let mut descriptors = Vec::new();
        for _ in 0..head.slots() {
            let words = words(&areas.descriptors, place.slot, self.size.into())
                .map_err(|source| QueueError::chain(place.slot, source))?;
            descriptors.push(packed(words));
            place = place.on(1, self.size);
        }
        Ok(descriptors)
    }

    /// As `pop`, for a chain that was taken before, and not by us: what was in the ring are `descriptors`.
    pub(in crate::queue) fn retake<M: GuestMemory + ?Sized>(
        &mut self,
        reach: &Reach<'_, M>,
        descriptors: &[Descriptor],
        chain: &mut Chain,
    ) -> Result<Head, QueueError> {
        let slot = self.taken.slot;
        let filled = self.refill(reach, descriptors, chain);
        let head = filled.map_err(|source| QueueError::chain(slot, source))?;
        self.taken = self.taken.on(head.slots(), self.size);
        self.in_flight = self.in_flight.wrapping_add(head.slots());
        Ok(head)
    }

    /// Takes back what somebody may have written in the `count` places that the next used descriptors take, and not shown the
    /// driver: when it is shown the first of them, it would find the others.
    pub(in crate::queue) fn withdraw<W: Words>(
        &self,
        areas: &Areas<W>,
        count: u16,
    ) -> Result<(), Box<QueueError>> {
        let mut place = self.completed;
        for _ in 0..count.min(self.size) {
            let at = place.offset(FLAGS);
            let flags = areas.descriptors.load(at, Ordering::Relaxed)?;
            if is_used(place, flags) {
                let available = flags & !(AVAIL | USED) | place.wrap.available();
                areas.descriptors.store(at, available, Ordering::Release)?;
            }
            place = place.on(1, self.size);
        }
        Ok(())
    }

    /// Takes in a chain that is not in the ring any more.
    fn refill<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        descriptors: &[Descriptor],
        chain: &mut Chain,
    ) -> Result<Head, Refused> {
        let (size, slot) = (self.size, self.taken.slot);
        let most = usize::from(size.wrapping_sub(self.in_flight));
        let refused = || too_long(size.into());
        let (Some((first, mut rest)), true) =
            (descriptors.split_first(), descriptors.len() <= most)
        else {
            return Err(refused());
        };
        let next = |_: &Descriptor| {
            let (next, after) = rest.split_first().ok_or_else(refused)?;
            rest = after;
            Ok((slot, *next))
        };
        let mut filling = chain.refill(size);
        let (id, numbers) = match filling.follow(slot, *first, next)? {
            Met::End(last) => (last.next, filling.finish()),
            Met::Indirect(index, descriptor) => {
                let numbers = self.fill_indirect(reach, index, descriptor, filling)?;
                (descriptor.next, numbers)
            }
        };
        chain.set(numbers)?;
        // At most as many as the ring has.
        Ok(Head::new(id, descriptors.len() as u16))
    }
}
