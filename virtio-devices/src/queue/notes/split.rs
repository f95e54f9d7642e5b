// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The notes of a split queue.
//!
//! ```text
//!   features:64  version:16  descriptors:16  last_batch_head:16  used_idx:16
//!   then for each descriptor   in flight:8  0:40  next:16  counter:64
//! ```
//!
//! A chain is noted before it is begun. One that was completed is linked to those completed since the used ring's index was
//! last shown; they are taken out after it is shown. Whoever finds more shown than noted finds them by those links.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory};

use super::{Begun, Left};

/// Bytes before the descriptors, and of each descriptor.
pub(crate) const HEAD: usize = 16;
pub(crate) const DESCRIPTOR: usize = 16;
const VERSION_AT: usize = 8;
const DESCRIPTORS_AT: usize = 10;
const LAST_HEAD_AT: usize = 12;
const USED_AT: usize = 14;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const VERSION: u16 = 1;

/// The notes of one split queue.
#[derive(Debug)]
pub(super) struct Notes {
    memory: Arc<MmapRegion>,
    area: Range<usize>,
    counter: u64,
    last: u16,
    /// Completed, and not shown yet.
    batch: Vec<u16>,
}

impl Notes {
    /// Goes on in `area` of `memory`, which has the room.
    pub(super) fn new(memory: Arc<MmapRegion>, area: Range<usize>, size: u16, left: &Left) -> Self {
        let counter = left.begun.len() as u64;
        let notes = Self {
            memory,
            area,
            counter,
            last: 0,
            batch: Vec::new(),
        };
        for head in 0..size {
            // In the order in which they are to be finished, should it be a third process that does.
            let mut begun = left.begun.iter();
            let counter = begun.position(|begun| *begun == Begun::Split(head));
            notes.put(head, COUNTER, counter.unwrap_or(0) as u64);
            notes.put(head, 0, u8::from(counter.is_some()));
        }
        notes.set(DESCRIPTORS_AT, size);
        notes.set(USED_AT, left.used);
        notes.set(VERSION_AT, VERSION);
        notes
    }

    fn set<T: AtomicAccess>(&self, at: usize, value: T) {
        let at = self.area.start.saturating_add(at);
        // The area was found in the memory.
        let _ = self
            .memory
            .as_volatile_slice()
            .store(value, at, Ordering::Release);
    }

    fn put<T: AtomicAccess>(&self, head: u16, at: usize, value: T) {
        let place = DESCRIPTOR.saturating_mul(head.into());
        self.set(place.saturating_add(HEAD).saturating_add(at), value);
    }

    /// A chain is begun.
    pub(super) fn began(&mut self, head: u16) {
        self.put(head, COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.put(head, 0, 1u8);
    }

    /// The chain that was begun last was not.
    pub(super) fn put_back(&mut self, head: u16) {
        self.put(head, 0, 0u8);
    }

    /// A chain is about to be used.
    pub(super) fn completed(&mut self, head: u16) {
        self.put(head, NEXT, self.last);
        self.set(LAST_HEAD_AT, head);
        self.last = head;
        self.batch.push(head);
    }

    /// The used ring's index is now `used`.
    pub(super) fn published(&mut self, used: u16) {
        for head in std::mem::take(&mut self.batch) {
            self.put(head, 0, 0u8);
        }
        self.set(USED_AT, used);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Notes;
    use super::*;
    use crate::fake::Ring;
    use crate::features::Features;
    use crate::queue::{Chain, Head, Layout, Position, Queue, QueueConfig};
    use crate::vhost_user::in_flight::InFlight;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

    const SIZE: u16 = 8;
    const LENGTH: usize = HEAD + DESCRIPTOR * SIZE as usize;

    /// A driver, a queue, and what is noted of it in a file.
    struct Noted {
        memory: Arc<GuestMemoryMmap>,
        ring: Ring,
        file: File,
        queue: Queue,
        /// Available and not used, for the driver.
        outstanding: Vec<u16>,
        /// What another process finds noted, if that is not what is.
        shown: Option<Vec<u8>>,
    }

    fn told(file: &File) -> InFlight {
        let mut answer = (LENGTH as u64).to_ne_bytes().to_vec();
        answer.extend([0; 8]);
        answer.extend(1u16.to_ne_bytes());
        answer.extend(SIZE.to_ne_bytes());
        let file = file.try_clone().unwrap();
        InFlight::new(&answer, file, 1, (Layout::Split, SIZE)).unwrap()
    }

    fn queue(memory: &GuestMemoryMmap, ring: &Ring, file: &File, features: Features) -> Queue {
        let config = QueueConfig {
            size: SIZE,
            descriptor_area: ring.table,
            driver_area: ring.available,
            device_area: ring.used,
        };
        let used = ring.get16(ring.used + 2);
        let position = Position {
            available: used,
            used,
        };
        let mut queue = Queue::restored(&config, features, memory, position).unwrap();
        let left = told(file).left(0, &config, memory, used).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = Arc::new(MmapRegion::from_file(mapped, LENGTH).unwrap());
        let shape = (Layout::Split, SIZE);
        queue.note_in(Notes::new(memory, 0..LENGTH, shape, left).unwrap());
        queue
    }

    impl Noted {
        fn new(features: Features) -> Self {
            let ranges = [(GuestAddress(0), 0x4000)];
            let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
            let ring = Ring::new(memory.clone(), 0x1000, SIZE);
            let file = tempfile::tempfile().unwrap();
            file.set_len(LENGTH as u64).unwrap();
            let queue = queue(&memory, &ring, &file, features);
            Self {
                memory,
                ring,
                file,
                queue,
                outstanding: Vec::new(),
                shown: None,
            }
        }

        fn area(&self) -> Option<Vec<u8>> {
            let mut area = vec![0; LENGTH];
            self.file.read_exact_at(&mut area, 0).unwrap();
            Some(area)
        }

        /// What a process that came now would do: all that it takes.
        fn taken_by_another(&self, features: Features) -> Vec<u16> {
            // Its own copy of the notes.
            let copy = tempfile::tempfile().unwrap();
            let area = self.shown.clone().or_else(|| self.area()).unwrap();
            copy.write_all_at(&area, 0).unwrap();
            let mut other = queue(&self.memory, &self.ring, &copy, features);
            let (mut mapped, mut chain) = (other.map(&*self.memory), Chain::new());
            let mut taken = Vec::new();
            while let Some(head) = mapped.pop(&mut chain).unwrap() {
                taken.push(head.index());
            }
            taken.sort_unstable();
            taken
        }
    }

    proptest! {
        /// Whenever the process is killed, another one takes what is not used, each once.
        #[test]
        fn nothing_is_lost_or_done_twice_wherever_it_ends(
            ordered in any::<bool>(),
            steps in prop::collection::vec((0u8..7, 0usize..8), 0..80),
        ) {
            let features = if ordered { Features::IN_ORDER } else { Features::empty() };
            let mut noted = Noted::new(features);
            let mut begun: Vec<Head> = Vec::new();
            let mut chain = Chain::new();
            for (step, which) in steps {
                match step {
                    0 | 1 if noted.outstanding.len() < usize::from(SIZE) => {
                        let mut free = (0..SIZE).filter(|head| !noted.outstanding.contains(head));
                        let head = free.nth(which).or_else(|| free.next_back());
                        if let Some(head) = head {
                            noted.ring.descriptor(noted.ring.table, head, (0x3000, 16, 2, 0));
                            noted.ring.offer(head);
                            noted.outstanding.push(head);
                        }
                    }
                    2 | 3 => {
                        let mut mapped = noted.queue.map(&*noted.memory);
                        begun.extend(mapped.pop(&mut chain).unwrap());
                    }
                    4 if !begun.is_empty() => {
                        let head = begun.remove(which % begun.len());
                        noted.queue.map(&*noted.memory).complete(head, 0).unwrap();
                    }
                    5 => {
                        let before = noted.area();
                        let _ = noted.queue.map(&*noted.memory).publish().unwrap();
                        while let Some(used) = noted.ring.take() {
                            noted.outstanding.retain(|head| u32::from(*head) != used.head);
                        }
                        // Killed before it noted that the driver has seen them.
                        let after = std::mem::replace(&mut noted.shown, before);
                        let mut all = noted.outstanding.clone();
                        all.sort_unstable();
                        prop_assert_eq!(noted.taken_by_another(features), all);
                        noted.shown = after;
                    }
                    // The last that was popped is given back, or the process is another one from here on.
                    6 if which < 4 => {
                        let mut mapped = noted.queue.map(&*noted.memory);
                        if let Some(head) = mapped.pop(&mut chain).unwrap() {
                            mapped.put_back(head);
                        }
                    }
                    6 => {
                        begun.clear();
                        noted.queue = queue(&noted.memory, &noted.ring, &noted.file, features);
                    }
                    _ => {}
                }
                let mut all = noted.outstanding.clone();
                all.sort_unstable();
                prop_assert_eq!(noted.taken_by_another(features), all);
            }
        }
    }
}
