// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver, a process that is killed between any two stores, and another that goes on.

mod words;

use super::super::Notes;
use super::*;
use crate::fake::PackedRing;
use crate::features::Features;
use crate::queue::{Chain, ChainError, Head, Layout, Position, Queue, QueueConfig, QueueError};
use crate::vhost_user::in_flight::InFlight;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Of no power of two, so that chains lie across the end in every way.
const SIZE: u16 = 7;
const LENGTH: usize = HEAD + ENTRY * SIZE as usize;
const RING: u64 = 0x1000;
const TABLE: u64 = 0x8000;
const MEMORY: usize = 0x9000;

fn told(file: &File) -> InFlight {
    let mut answer = (LENGTH as u64).to_ne_bytes().to_vec();
    answer.extend([0; 8]);
    answer.extend(1u16.to_ne_bytes());
    answer.extend(SIZE.to_ne_bytes());
    let file = file.try_clone().unwrap();
    InFlight::new(&answer, file, 1, (Layout::Packed, SIZE)).unwrap()
}

fn config(ring: &PackedRing) -> QueueConfig {
    QueueConfig {
        size: SIZE,
        descriptor_area: ring.ring,
        driver_area: ring.driver,
        device_area: ring.device,
    }
}

/// A queue in a process that comes after another, or first.
fn queue(memory: &GuestMemoryMmap, ring: &PackedRing, file: &File, features: Features) -> Queue {
    let config = config(ring);
    let left = told(file).left(0, &config, memory, 0x8000).unwrap();
    let position = Position {
        available: left.used,
        used: left.used,
    };
    let features = features | Features::RING_PACKED | Features::INDIRECT_DESC;
    let mut queue = Queue::restored(&config, features, memory, position).unwrap();
    queue.map(memory).withdraw(&left.begun).unwrap();
    let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
    let memory = Arc::new(MmapRegion::from_file(mapped, LENGTH).unwrap());
    let shape = (Layout::Packed, SIZE);
    queue.note_in(Notes::new(memory, 0..LENGTH, shape, left).unwrap());
    queue
}

/// A driver, a queue, and what is noted of it in a file.
struct Noted {
    memory: Arc<GuestMemoryMmap>,
    ring: PackedRing,
    file: File,
    queue: Queue,
    /// Available and not used, for the driver: identifiers, and how many descriptors and what length each has.
    outstanding: BTreeMap<u16, (u16, u32)>,
    lengths: u32,
}

impl Noted {
    fn new(features: Features) -> Self {
        let ranges = [(GuestAddress(0), MEMORY)];
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap());
        let ring = PackedRing::new(memory.clone(), RING, SIZE);
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH as u64).unwrap();
        let queue = queue(&memory, &ring, &file, features);
        Self {
            memory,
            ring,
            file,
            queue,
            outstanding: BTreeMap::new(),
            lengths: 1,
        }
    }

    fn area(&self) -> Vec<u8> {
        let mut area = vec![0; LENGTH];
        self.file.read_exact_at(&mut area, 0).unwrap();
        area
    }

    /// Makes a chain of `count` descriptors available, or one of a table, whose bytes no other chain has.
    fn offer(&mut self, count: u16, indirect: bool) {
        let taken: u16 = self.outstanding.values().map(|(count, _)| count).sum();
        let id = (0..SIZE).find(|id| !self.outstanding.contains_key(id));
        let (Some(id), true) = (id, count > 0 && taken + count <= SIZE) else {
            return;
        };
        let length = self.lengths;
        self.lengths += u32::from(SIZE);
        if indirect {
            let table = TABLE + 0x100 * u64::from(id);
            self.ring.descriptor(table, 0, (0x6000, length, 0, 2));
            self.ring.offer(&[(table, 16, id, 4)]);
        } else {
            let descriptors: Vec<_> = (0..count)
                .map(|at| {
                    (
                        0x6000,
                        length + u32::from(at),
                        id,
                        2 | u16::from(at + 1 < count),
                    )
                })
                .collect();
            self.ring.offer(&descriptors);
        }
        let count = if indirect { 1 } else { count };
        self.outstanding.insert(id, (count, length));
    }

    /// The driver sees what was used.
    fn look(&mut self) {
        loop {
            let (slot, wrap) = self.ring.seen;
            let (_, _, id, flags) = self.ring.words(self.ring.ring, slot);
            if flags & 0x8080 != if wrap { 0x8080 } else { 0 } {
                return;
            }
            let (count, _) = self
                .outstanding
                .remove(&id)
                .expect("one that is outstanding");
            let next = slot + count;
            self.ring.seen = match next.checked_sub(SIZE) {
                Some(next) => (next, !wrap),
                None => (next, wrap),
            };
        }
    }

    /// All of memory.
    fn bytes(&self) -> Vec<u8> {
        let mut all = vec![0; MEMORY];
        self.memory.read_slice(&mut all, GuestAddress(0)).unwrap();
        all
    }

    /// What a process would do that came to such notes and such memory: all that it takes, by identifier and length, and where it
    /// goes on behind that.
    fn taken_by_another(
        &self,
        features: Features,
        area: &[u8],
        bytes: &[u8],
    ) -> (BTreeMap<u16, u64>, Position) {
        let copy = tempfile::tempfile().unwrap();
        copy.write_all_at(area, 0).unwrap();
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        memory.write_slice(bytes, GuestAddress(0)).unwrap();
        let mut other = queue(&memory, &self.ring, &copy, features);
        let (mut mapped, mut chain) = (other.map(&memory), Chain::new());
        let mut taken = BTreeMap::new();
        while let Some(head) = mapped.pop(&mut chain).unwrap() {
            let before = taken.insert(head.index(), chain.writable_bytes());
            assert_eq!(before, None, "twice");
        }
        (taken, other.position())
    }

    /// Whoever comes to such notes and such memory does what is not used, each once, and goes on where the driver does.
    fn check_with(&self, features: Features, area: &[u8], bytes: &[u8]) {
        let all = self.outstanding.iter().map(|(id, (count, length))| {
            let (count, length) = (u64::from(*count), u64::from(*length));
            (*id, count * length + count * (count - 1) / 2)
        });
        let (taken, position) = self.taken_by_another(features, area, bytes);
        assert_eq!(taken, all.collect());
        let word = |(slot, wrap): (u16, bool)| slot | u16::from(wrap) << 15;
        assert_eq!(position.available, word(self.ring.free));
        assert_eq!(position.used, word(self.ring.seen));
    }

    fn check(&self, features: Features) {
        self.check_with(features, &self.area(), &self.bytes());
    }

    /// Does `step`, and checks what another would find between any two of its stores to the notes.
    fn moment_by_moment(&mut self, features: Features, step: impl FnOnce(&mut Self)) {
        let (mut area, bytes) = (self.area(), self.bytes());
        STORES.set(Some(Vec::new()));
        step(self);
        let mut stores = STORES.take().unwrap_or_default().into_iter().peekable();
        // Until something is shown, or to the end.
        self.check_with(features, &area, &bytes);
        while let Some(Some((at, value))) = stores.next_if(Option::is_some) {
            area[at..at + value.len()].copy_from_slice(&value);
            self.check_with(features, &area, &bytes);
        }
        self.look();
        for (at, value) in stores.flatten() {
            self.check_with(features, &area, &self.bytes());
            area[at..at + value.len()].copy_from_slice(&value);
        }
        assert_eq!(area, self.area());
    }
}

type Store = (usize, Vec<u8>);

thread_local! {
    /// What is stored in this thread's notes while somebody wants to know; nothing, where the driver is shown something.
    static STORES: RefCell<Option<Vec<Option<Store>>>> = const { RefCell::new(None) };
}

/// To be told of each store.
pub(super) fn stored(at: usize, value: &[u8]) {
    journal(Some((at, value.to_vec())));
}

/// To be told where what was completed has been shown.
pub(super) fn shown() {
    journal(None);
}

fn journal(event: Option<Store>) {
    STORES.with_borrow_mut(|stores| {
        if let Some(stores) = stores {
            stores.push(event);
        }
    });
}

/// A driver that offers more than it was shown to be used, while the entries of what was completed are not free yet: it is refused, and
/// nothing of it is noted, least of all behind the area.
#[test]
fn more_than_there_are_entries_is_refused() {
    // So many are completed and not shown, and then so many descriptors offered.
    for (completed, offered) in [(SIZE, 1), (SIZE - 1, 2), (SIZE, SIZE)] {
        let mut noted = Noted::new(Features::empty());
        let file = tempfile::tempfile().unwrap();
        file.set_len((LENGTH + ENTRY) as u64).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = Arc::new(MmapRegion::from_file(mapped, LENGTH + ENTRY).unwrap());
        let left = Left::nothing(0x8000);
        let notes = Notes::new(memory, 0..LENGTH, (Layout::Packed, SIZE), left);
        noted.queue.note_in(notes.unwrap());
        for _ in 0..completed {
            noted.offer(1, false);
        }
        let mut mapped = noted.queue.map(&*noted.memory);
        let mut chain = Chain::new();
        for _ in 0..completed {
            let head = mapped.pop(&mut chain).unwrap().unwrap();
            mapped.complete(head, 0).unwrap();
        }
        let descriptor = |at| (0x6000, 1, 0, u16::from(at + 1 < offered));
        let descriptors: Vec<_> = (0..offered).map(descriptor).collect();
        noted.ring.offer(&descriptors);
        let bytes = || {
            let mut bytes = vec![0; LENGTH + ENTRY];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        let before = bytes();
        match *mapped.pop(&mut chain).unwrap_err() {
            QueueError::Chain { source, .. } => {
                assert_eq!(
                    source.to_string(),
                    ChainError::TooLong { size: SIZE }.to_string()
                );
            }
            other => panic!("{other}"),
        }
        assert_eq!(bytes(), before, "{completed} {offered}");
        // It has failed, and does not go on.
        assert!(mapped.pop(&mut chain).unwrap().is_none());
    }
}

proptest! {
    /// Whenever the process is killed, another one takes what is not used, each once.
    #[test]
    fn nothing_is_lost_or_done_twice_wherever_it_ends(
        ordered in any::<bool>(),
        steps in prop::collection::vec((0u8..8, 0usize..8), 0..80),
    ) {
        let features = if ordered { Features::IN_ORDER } else { Features::empty() };
        let mut noted = Noted::new(features);
        let mut begun: Vec<Head> = Vec::new();
        let mut chain = Chain::new();
        for (step, which) in steps {
            match step {
                0 | 1 => noted.offer(which as u16 % 4, which > 5),
                2 | 3 => noted.moment_by_moment(features, |noted| {
                    let mut mapped = noted.queue.map(&*noted.memory);
                    begun.extend(mapped.pop(&mut chain).unwrap());
                }),
                4 | 5 if !begun.is_empty() => {
                    let head = begun.remove(which % begun.len());
                    noted.moment_by_moment(features, |noted| {
                        noted.queue.map(&*noted.memory).complete(head, 0).unwrap();
                    });
                }
                6 => noted.moment_by_moment(features, |noted| {
                    let _ = noted.queue.map(&*noted.memory).publish().unwrap();
                }),
                // The last that was popped is given back, or the process is another one from here on.
                7 if which < 4 => noted.moment_by_moment(features, |noted| {
                    let mut mapped = noted.queue.map(&*noted.memory);
                    if let Some(head) = mapped.pop(&mut chain).unwrap() {
                        mapped.put_back(head);
                    }
                }),
                7 => {
                    begun.clear();
                    noted.moment_by_moment(features, |noted| {
                        noted.queue = queue(&noted.memory, &noted.ring, &noted.file, features);
                    });
                }
                _ => {}
            }
            noted.check(features);
        }
    }

    /// Any area is read to its end, and what it says is within the queue.
    #[test]
    fn whatever_is_noted_ends(
        mut area in prop::collection::vec(any::<u8>(), LENGTH),
        small in any::<u64>(),
        marks in any::<u16>(),
    ) {
        area[VERSION_AT..][..2].copy_from_slice(&VERSION.to_ne_bytes());
        area[DESCRIPTORS_AT..][..2].copy_from_slice(&SIZE.to_ne_bytes());
        area[WRAP_AT] &= 1;
        area[OLD_WRAP_AT] &= 1;
        // Links and places mostly within it.
        let fields = [FREE_AT, OLD_FREE_AT, USED_AT, OLD_USED_AT].map(|at| (at, 7));
        let links = (0..usize::from(SIZE))
            .flat_map(|entry| [NEXT_AT, LAST_AT, COUNT_AT].map(|at| (HEAD + ENTRY * entry + at, 8)));
        for (count, (at, most)) in fields.into_iter().chain(links).enumerate() {
            if small >> count & 1 == 0 {
                let word = u16::from_ne_bytes([area[at], area[at + 1]]) % most;
                area[at..at + 2].copy_from_slice(&word.to_ne_bytes());
            }
        }
        for entry in 0..usize::from(SIZE) {
            area[HEAD + ENTRY * entry] &= 1;
        }
        if let Some(left) = left(&area, SIZE, 0, |_| Some(marks)) {
            prop_assert!(left.used & 0x7fff < SIZE);
            let mut all: Vec<u16> = left.free.clone();
            for begun in &left.begun {
                let Begun::Packed(copied) = begun else { panic!("of a packed queue") };
                prop_assert_eq!(copied.entries.len(), copied.descriptors.len());
                all.extend(&copied.entries);
            }
            all.sort_unstable();
            prop_assert_eq!(all, (0..SIZE).collect::<Vec<_>>());
        }
    }
}
