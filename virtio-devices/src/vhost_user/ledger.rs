// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which chains a back end has that does not say: what the driver has made available, less what was used since.
//!
//! ```text
//!   available ring   .. | 4 1 7 2 |       each head at a place that is written again `size` heads later
//!   used ring        .. | 1 4 |           so: look often enough, and see when it was not
//! ```
//!
//! We look whenever the back end has something for the driver, before the driver knows. A place that may have been
//! written twice since makes the ledger void, until nothing is in flight.

use std::sync::atomic::{Ordering, fence};

use vm_memory::GuestMemory;

use crate::queue::{QueueConfig, Reach};

/// Offset of the index in either ring, and of the first place.
const INDEX: u64 = 2;
const PLACES: u64 = 4;

/// What is in flight in one split queue.
#[derive(Debug)]
pub(super) struct Ledger {
    config: QueueConfig,
    available: u16,
    used: u16,
    /// For each head, whether it is in flight; void if that cannot be said.
    heads: Option<Vec<bool>>,
}

impl Ledger {
    /// Of a queue in which nothing is in flight, and which goes on at `base`.
    pub(super) fn new(config: QueueConfig, base: u16) -> Self {
        let heads = Some(vec![false; config.size.into()]);
        Self {
            config,
            available: base,
            used: base,
            heads,
        }
    }

    /// Notes what happened since the last look.
    pub(super) fn look<M: GuestMemory + ?Sized>(&mut self, reach: &Reach<'_, M>) {
        let config = self.config;
        let index = |ring: u64| {
            let index = word(reach, ring, INDEX);
            // What it shows is read after it, and the next one too.
            fence(Ordering::Acquire);
            index
        };
        // In this order: all that is used by then was available by then.
        let used = index(config.device_area);
        let available = index(config.driver_area);
        let (Some(used), Some(available)) = (used, available) else {
            self.heads = None;
            return;
        };
        if used == available {
            self.heads = Some(vec![false; config.size.into()]);
        } else if let Some(mut heads) = self.heads.take() {
            let noted = self.note(reach, &mut heads, available, used);
            // Only what nobody can have written over meanwhile counts.
            let later = [
                (index(config.driver_area), self.available),
                (index(config.device_area), self.used),
            ];
            let fresh = later
                .iter()
                .all(|(now, first)| now.is_some_and(|now| now.wrapping_sub(*first) < config.size));
            self.heads = (fresh && noted.is_some()).then_some(heads);
        }
        (self.available, self.used) = (available, used);
    }

    /// Notes both rings up to these indices; nothing if they make no sense.
    fn note<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        heads: &mut [bool],
        available: u16,
        used: u16,
    ) -> Option<()> {
        let QueueConfig {
            size,
            driver_area,
            device_area,
            ..
        } = self.config;
        let span = |first: u16, end: u16| {
            let count = end.wrapping_sub(first);
            (count < size).then(|| (0..count).map(move |at| first.wrapping_add(at)))
        };
        // A head may come back within one look, so the sum is what counts.
        let mut sums = vec![0i32; heads.len()]; // each of at most `size`
        for index in span(self.available, available)? {
            let head = word(reach, driver_area, self.place(index, 2)?)?;
            let sum = sums.get_mut(usize::from(head))?;
            *sum = sum.saturating_add(1);
        }
        for index in span(self.used, used)? {
            // 32 bits, of which a head has 16.
            let head = word(reach, device_area, self.place(index, 8)?)?;
            let sum = sums.get_mut(usize::from(head))?;
            *sum = sum.saturating_sub(1);
        }
        for (flies, sum) in heads.iter_mut().zip(sums) {
            *flies = match (*flies, sum) {
                (flies, 0) => flies,
                (false, 1) => true,
                (true, -1) => false,
                _ => return None,
            };
        }
        let count = heads.iter().filter(|flies| **flies).count();
        (count == usize::from(available.wrapping_sub(used))).then_some(())
    }

    /// Whether what is in flight is what the available ring shows from the used ring's index on: then whoever goes on there
    /// does all of it, and nothing twice.
    pub(super) fn is_next<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        heads: &[u16],
    ) -> bool {
        let count = self.available.wrapping_sub(self.used);
        let shown = (0..count).map(|at| {
            let at = self.used.wrapping_add(at);
            word(reach, self.config.driver_area, self.place(at, 2)?)
        });
        let Some(mut shown) = shown.collect::<Option<Vec<_>>>() else {
            return false;
        };
        shown.sort_unstable();
        shown == heads
    }

    /// Whether everything that both rings still show was used in the order in which it was made available. The used ring's
    /// index at the last look, if so.
    pub(super) fn showed_order<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
    ) -> Option<u16> {
        let flying = self.available.wrapping_sub(self.used);
        let shown = self.config.size.checked_sub(flying)?;
        let same = |back: u16| {
            let at = self.used.wrapping_sub(back);
            let available = word(reach, self.config.driver_area, self.place(at, 2)?)?;
            let used = word(reach, self.config.device_area, self.place(at, 8)?)?;
            (available == used).then_some(())
        };
        (1..=shown).try_for_each(same).map(|()| self.used)
    }

    /// Where `index` has its place of so many bytes in a ring; nowhere in a queue of no descriptors.
    fn place(&self, index: u16, bytes: u64) -> Option<u64> {
        let at = u64::from(index.checked_rem(self.config.size)?);
        Some(bytes.saturating_mul(at).saturating_add(PLACES))
    }

    /// The used ring's index at the last look, and what was in flight then, unless that cannot be said.
    pub(super) fn in_flight(&self) -> Option<(u16, Vec<u16>)> {
        let heads = self.heads.as_ref()?.iter();
        let flying = (0u16..)
            .zip(heads)
            .filter_map(|(head, flies)| flies.then_some(head));
        Some((self.used, flying.collect()))
    }
}

fn word<M: GuestMemory + ?Sized>(reach: &Reach<'_, M>, ring: u64, offset: u64) -> Option<u16> {
    let mut bytes = [0; 2];
    reach.read(&mut bytes, ring.checked_add(offset)?).ok()?;
    Some(u16::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::Ring;
    use proptest::prelude::*;
    use std::sync::Arc;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    const SIZE: u16 = 4;

    /// A driver and a device of bytes.
    struct Queue {
        memory: Arc<GuestMemoryMmap>,
        ring: Ring,
        used: u16,
        flying: Vec<u16>,
    }

    impl Queue {
        fn new() -> Self {
            let ranges = [(GuestAddress(0), 0x4000)];
            let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
            Self {
                ring: Ring::new(memory.clone(), 0x1000, SIZE),
                memory,
                used: 0,
                flying: Vec::new(),
            }
        }

        fn ledger(&self) -> Ledger {
            let config = QueueConfig {
                size: SIZE,
                descriptor_area: self.ring.table,
                driver_area: self.ring.available,
                device_area: self.ring.used,
            };
            Ledger::new(config, 0)
        }

        fn offer(&mut self, head: u16) {
            self.flying.push(head);
            self.ring.offer(head);
        }

        /// Uses the one that was begun at place `at`.
        fn finish(&mut self, at: usize) {
            let head = self.flying.remove(at);
            let place = self.ring.used + 4 + 8 * u64::from(self.used % SIZE);
            let element = u64::from(head).to_le_bytes();
            self.memory
                .write_slice(&element, GuestAddress(place))
                .unwrap();
            self.used = self.used.wrapping_add(1);
            self.ring.put16(self.ring.used + 2, self.used);
        }

        fn look(&self, ledger: &mut Ledger) -> Option<Vec<u16>> {
            ledger.look(&Reach::new(&*self.memory));
            ledger.in_flight().map(|(_, heads)| heads)
        }
    }

    #[test]
    fn a_place_that_was_written_twice_makes_it_void_until_nothing_flies() {
        let mut queue = Queue::new();
        let mut ledger = queue.ledger();
        queue.offer(3);
        assert_eq!(queue.look(&mut ledger), Some(vec![3]));
        // The same head, again and again, while another never ends: both rings look as if 3 had been used in time.
        for _ in 0..SIZE {
            queue.offer(1);
            queue.finish(1);
        }
        assert_eq!(queue.look(&mut ledger), None);
        queue.offer(2);
        assert_eq!(queue.look(&mut ledger), None);
        queue.finish(0);
        queue.finish(0);
        assert_eq!(queue.look(&mut ledger), Some(vec![]));
        queue.offer(0);
        assert_eq!(queue.look(&mut ledger), Some(vec![0]));
    }

    #[test]
    fn what_no_driver_or_device_does() {
        // A head that no queue has; one that is offered twice; an index that jumps; one used that nobody offered.
        for wrong in 0..4 {
            let mut queue = Queue::new();
            let mut ledger = queue.ledger();
            match wrong {
                0 => queue.offer(SIZE),
                1 => {
                    queue.offer(1);
                    queue.offer(1);
                }
                2 => queue.ring.put16(queue.ring.available + 2, 1000),
                _ => {
                    queue.flying.push(2);
                    queue.finish(0);
                }
            }
            assert_eq!(queue.look(&mut ledger), None, "{wrong}");
        }
    }

    proptest! {
        /// Against a list of what flies: what it says is true, and it says something if it looked often enough.
        #[test]
        fn what_it_says_is_true(steps in prop::collection::vec((0u8..3, 0usize..4), 0..200)) {
            let mut queue = Queue::new();
            let mut ledger = queue.ledger();
            let (mut since, mut used) = (0, 0);
            let mut known = true;
            for (step, which) in steps {
                match step {
                    0 if !queue.flying.is_empty() => {
                        queue.finish(which % queue.flying.len());
                        used += 1;
                    }
                    1 => {
                        let free = (0..SIZE).filter(|head| !queue.flying.contains(head));
                        if let Some(head) = free.cycle().nth(which).filter(|_| queue.flying.len() < 4) {
                            queue.offer(head);
                            since += 1;
                        }
                    }
                    2 => {
                        let said = queue.look(&mut ledger);
                        let mut flying = queue.flying.clone();
                        flying.sort_unstable();
                        known = known && since < SIZE && used < SIZE || flying.is_empty();
                        (since, used) = (0, 0);
                        if known {
                            prop_assert_eq!(said, Some(flying));
                        } else {
                            prop_assert_eq!(said, None);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
