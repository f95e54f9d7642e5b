// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packed virtqueue against a driver that writes raw words, honest and not; and what both layouts share.

use std::sync::Arc;

use hvkit_virtio_devices::fake::{Buffer, PackedRing, Ring, Used};
use hvkit_virtio_devices::features::Features;
use hvkit_virtio_devices::queue::{
    Chain, ChainError, Head, Notify, Position, Queue, QueueConfig, QueueError,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use Buffer::{Readable, Writable};

const BASE: u64 = 0x1000;
const TABLE: u64 = 0x8000;
const MEMORY: u64 = 0x10_0000;
const PACKED: Features = Features::RING_PACKED
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 0x80;

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap())
}

fn config(ring: &PackedRing) -> QueueConfig {
    QueueConfig {
        size: ring.size,
        descriptor_area: ring.ring,
        driver_area: ring.driver,
        device_area: ring.device,
    }
}

struct Pair {
    memory: Arc<GuestMemoryMmap>,
    ring: PackedRing,
    queue: Queue,
    chain: Chain,
}

impl Pair {
    fn new(size: u16, features: Features) -> Self {
        let memory = memory();
        let ring = PackedRing::new(Arc::clone(&memory), BASE, size);
        let queue = Queue::new(&config(&ring), features, &*memory).unwrap();
        Self {
            memory,
            ring,
            queue,
            chain: Chain::new(),
        }
    }

    fn pop(&mut self) -> Result<Option<Head>, Box<QueueError>> {
        self.queue.map(&*self.memory).pop(&mut self.chain)
    }

    fn buffers(&self) -> Vec<Buffer> {
        let readable = self.chain.readable_segments().iter();
        let writable = self.chain.writable_segments().iter();
        readable
            .map(|s| Readable(s.address, s.length))
            .chain(writable.map(|s| Writable(s.address, s.length)))
            .collect()
    }

    fn complete(&mut self, head: Head, written: u32) {
        let mut queue = self.queue.map(&*self.memory);
        queue.complete(head, written).unwrap();
    }

    fn publish(&mut self) -> Notify {
        self.queue.map(&*self.memory).publish().unwrap()
    }

    /// The next pop reports an error of a chain; after it the queue is empty.
    fn refused(&mut self) -> ChainError {
        let error = self.pop().unwrap_err();
        assert!(self.queue.is_failed());
        assert!(self.pop().unwrap().is_none(), "an error must be latched");
        match *error {
            QueueError::Chain { source, .. } => source,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn used_descriptors_are_the_specifications_words() {
    let mut pair = Pair::new(4, PACKED);
    pair.ring
        .offer(&[(0x5000, 16, 0, NEXT), (0x6000, 512, 0x1234, WRITE)]);
    // "AVAIL and USED are set to 1 and 0 by a driver whose wrap counter is 1" (2.8.1).
    assert_eq!(pair.ring.words(BASE, 0), (0x5000, 16, 0, NEXT | AVAIL));
    let head = pair.pop().unwrap().unwrap();
    assert_eq!(head.index(), 0x1234);
    assert_eq!(
        pair.buffers(),
        [Readable(0x5000, 16), Writable(0x6000, 512)]
    );
    pair.complete(head, 77);
    assert_eq!(
        pair.ring.words(BASE, 0).3,
        NEXT | AVAIL,
        "seen before it was published"
    );
    assert_eq!(pair.publish(), Notify::Yes);
    // Written at our place: length, identifier, WRITE, AVAIL and USED; the address keeps what it was.
    assert_eq!(pair.ring.words(BASE, 0), (0x5000, 77, 0x1234, 0x8082));
    // The other places of the chain are not written.
    assert_eq!(
        pair.ring.words(BASE, 1),
        (0x6000, 512, 0x1234, WRITE | AVAIL)
    );

    // The next chain goes over the end: its last descriptor is in the next round.
    pair.ring
        .offer(&[(1, 1, 0, NEXT), (2, 1, 0, NEXT), (3, 1, 9, 0)]);
    assert_eq!(pair.ring.words(BASE, 0).3, 0x8000);
    let head = pair.pop().unwrap().unwrap();
    assert_eq!(
        pair.buffers(),
        [Readable(1, 1), Readable(2, 1), Readable(3, 1)]
    );
    pair.complete(head, 0);
    assert_eq!(pair.publish(), Notify::Yes);
    // Nothing was written, so no WRITE; our wrap counter is still 1 there.
    assert_eq!(pair.ring.words(BASE, 2), (1, 0, 9, 0x8080));
    // And then it is 0.
    pair.ring.offer(&[(4, 1, 5, 0)]);
    let head = pair.pop().unwrap().unwrap();
    pair.complete(head, 0);
    assert_eq!(pair.publish(), Notify::Yes);
    assert_eq!(pair.ring.words(BASE, 1).3, 0);
}

#[test]
fn rounds_of_any_size() {
    for size in [1, 2, 3, 5, 8, 192] {
        for features in [PACKED, Features::RING_PACKED] {
            let mut pair = Pair::new(size, features);
            for i in 0..1000u64 {
                let length = 1 + i as usize % usize::from(size.min(4));
                let buffers: Vec<_> = (0..length).map(|k| Readable(i + k as u64, 1)).collect();
                let id = pair.ring.submit(&buffers);
                let head = pair.pop().unwrap().expect("nothing available");
                assert_eq!(pair.buffers(), buffers);
                assert!(pair.pop().unwrap().is_none());
                pair.complete(head, i as u32);
                let _ = pair.publish();
                let used = Used {
                    head: id.into(),
                    length: i as u32,
                };
                assert_eq!(pair.ring.take(), Some(used), "size {size}, chain {i}");
                assert_eq!(pair.ring.take(), None);
                assert!(!pair.queue.map(&*pair.memory).enable_kicks().unwrap());
            }
        }
    }
}

#[test]
fn a_batch_is_seen_at_once_and_out_of_order() {
    let mut pair = Pair::new(8, PACKED);
    for i in 0..3 {
        pair.ring.submit(&[Readable(i, 1), Writable(i, 1)]);
    }
    let heads: Vec<_> = (0..3).map(|_| pair.pop().unwrap().unwrap()).collect();
    for (head, length) in heads.into_iter().rev().zip([9, 0, u32::MAX]) {
        pair.complete(head, length);
        assert_eq!(pair.ring.take(), None, "seen before it was published");
    }
    assert_eq!(pair.publish(), Notify::Yes);
    assert_eq!(pair.publish(), Notify::No, "nothing new");
    let used: Vec<_> = std::iter::from_fn(|| pair.ring.take()).collect();
    let expected = [(2, 9), (1, 0), (0, u32::MAX)].map(|(head, length)| Used { head, length });
    assert_eq!(used, expected);
}

/// The model: step over each place that was given back, and ask of each whether it is the event's.
#[test]
fn an_interrupt_comes_when_a_place_passes_the_event() {
    let size = 5u16;
    for event in (0..size)
        .flat_map(|slot| [slot, slot | 0x8000])
        .chain([6, 0x7fff, 0xffff])
    {
        let mut pair = Pair::new(size, PACKED);
        pair.ring.put16(pair.ring.driver, event);
        pair.ring.put16(pair.ring.driver + 2, 2);
        let (mut slot, mut wrap) = (0u16, true);
        for (round, length) in [1usize, 2, 2, 5, 3, 1, 4, 4, 1].into_iter().enumerate() {
            let buffers = vec![Readable(0, 1); length];
            pair.ring.submit(&buffers);
            let head = pair.pop().unwrap().unwrap();
            pair.complete(head, 0);
            let mut passed = false;
            for _ in 0..length {
                passed |= event == slot | u16::from(wrap) << 15;
                slot += 1;
                if slot == size {
                    (slot, wrap) = (0, !wrap);
                }
            }
            let expected = if passed { Notify::Yes } else { Notify::No };
            assert_eq!(pair.publish(), expected, "event {event:#x}, round {round}");
            pair.ring.take().unwrap();
        }
    }
}

#[test]
fn event_flags_say_whether_not_when() {
    for (flags, features, expected) in [
        (0, PACKED, Notify::Yes),
        (1, PACKED, Notify::No),
        // RING_EVENT_FLAGS_DESC means nothing unless it was negotiated; 3 is reserved.
        (2, Features::RING_PACKED, Notify::Yes),
        (3, PACKED, Notify::Yes),
        // The other bits are reserved.
        (0xfffd, PACKED, Notify::No),
    ] {
        let mut pair = Pair::new(4, features);
        pair.ring.put16(pair.ring.driver, 3);
        pair.ring.put16(pair.ring.driver + 2, flags);
        pair.ring.submit(&[Readable(0, 1)]);
        let head = pair.pop().unwrap().unwrap();
        pair.complete(head, 0);
        assert_eq!(pair.publish(), expected, "flags {flags:#x}");
    }
}

#[test]
fn our_wish_is_where_we_are() {
    let mut pair = Pair::new(2, PACKED);
    let device = pair.ring.device;
    let wish = |pair: &Pair| {
        let word = pair.ring.words(device & !15, 0);
        (word.0 as u16, (word.0 >> 16) as u16)
    };
    pair.queue.map(&*pair.memory).disable_kicks().unwrap();
    assert_eq!(wish(&pair).1, 1);
    assert!(!pair.queue.map(&*pair.memory).enable_kicks().unwrap());
    assert_eq!(wish(&pair), (0x8000, 2));
    for expected in [0x8001, 0x0000, 0x0001, 0x8000] {
        pair.ring.submit(&[Readable(0, 1)]);
        assert!(pair.queue.map(&*pair.memory).enable_kicks().unwrap());
        let head = pair.pop().unwrap().unwrap();
        pair.complete(head, 0);
        let _ = pair.publish();
        assert!(!pair.queue.map(&*pair.memory).enable_kicks().unwrap());
        assert_eq!(wish(&pair), (expected, 2));
    }
    let mut plain = Pair::new(2, Features::RING_PACKED);
    plain.queue.map(&*plain.memory).disable_kicks().unwrap();
    assert!(!plain.queue.map(&*plain.memory).enable_kicks().unwrap());
    assert_eq!(wish(&plain).1, 0);
}

#[test]
fn an_indirect_table_is_all_of_it_in_order() {
    let mut pair = Pair::new(4, PACKED);
    // NEXT means nothing in the table, nor do identifiers there.
    pair.ring.descriptor(TABLE, 0, (0x111, 1, 7, NEXT));
    pair.ring.descriptor(TABLE, 1, (0x222, 2, 8, 0));
    pair.ring.descriptor(TABLE, 2, (0x333, 3, 9, WRITE));
    // WRITE means nothing beside INDIRECT.
    pair.ring.offer(&[(TABLE, 48, 2, INDIRECT | WRITE)]);
    let head = pair.pop().unwrap().unwrap();
    assert_eq!(head.index(), 2);
    assert_eq!(
        pair.buffers(),
        [Readable(0x111, 1), Readable(0x222, 2), Writable(0x333, 3)]
    );
    pair.complete(head, 3);
    let _ = pair.publish();
    // It took one place.
    pair.ring.offer(&[(0x444, 4, 1, 0)]);
    assert_eq!(pair.ring.free, (2, true));
    assert!(pair.pop().unwrap().is_some());
    assert_eq!(pair.buffers(), [Readable(0x444, 4)]);
}

#[test]
fn chains_that_no_driver_may_make() {
    type Words = (u64, u32, u16, u16);
    let refused = |ring: &[Words], table: &[Words], features| {
        let mut pair = Pair::new(4, features);
        for (words, index) in table.iter().zip(0..) {
            pair.ring.descriptor(TABLE, index, *words);
        }
        pair.ring.offer(ring);
        pair.refused()
    };
    let direct = |ring: &[Words]| refused(ring, &[], PACKED);
    let indirect =
        |length, table: &[Words]| refused(&[(TABLE, length, 0, INDIRECT)], table, PACKED);
    let plain = (0x5000, 1, 0, 0);

    assert!(matches!(
        direct(&[(0, 1, 0, NEXT); 4]),
        ChainError::TooLong { size: 4 }
    ));
    assert!(matches!(
        direct(&[(0, 1, 0, NEXT | WRITE), plain]),
        ChainError::ReadableAfterWritable { index: 1 }
    ));
    assert!(matches!(
        direct(&[(u64::MAX, 1, 0, 0)]),
        ChainError::Wraps { .. }
    ));
    assert!(matches!(
        direct(&[(0, u32::MAX, 0, NEXT), (0, 2, 0, 0)]),
        ChainError::TooBig {
            bytes: 0x1_0000_0001
        }
    ));
    assert!(matches!(
        direct(&[(TABLE, 16, 0, INDIRECT | NEXT)]),
        ChainError::IndirectNext { index: 0 }
    ));
    assert!(matches!(
        refused(&[(TABLE, 16, 0, INDIRECT)], &[plain], Features::RING_PACKED),
        ChainError::IndirectNotNegotiated { index: 0 }
    ));
    for length in [0, 8, 17, u32::MAX] {
        assert!(
            matches!(indirect(length, &[]), ChainError::IndirectLength { .. }),
            "{length}"
        );
    }
    for length in [5 * 16, 0x10_0000, 0xffff_fff0] {
        assert!(
            matches!(indirect(length, &[]), ChainError::TooLong { size: 4 }),
            "{length}"
        );
    }
    assert!(matches!(
        indirect(32, &[plain, (TABLE, 16, 0, INDIRECT)]),
        ChainError::IndirectNested { index: 1 }
    ));
    for address in [MEMORY, MEMORY - 8, 1 << 50] {
        let error = direct(&[(address, 16, 0, INDIRECT)]);
        assert!(matches!(error, ChainError::Unreadable { .. }), "{error:?}");
    }
}

#[test]
fn no_more_is_in_flight_than_there_are_places() {
    let mut pair = Pair::new(4, PACKED);
    let heads: Vec<_> = (0..4)
        .map(|_| {
            pair.ring.submit(&[Readable(0, 1)]);
            pair.pop().unwrap().unwrap()
        })
        .collect();
    // A driver that goes on although nothing was used.
    pair.ring.submit(&[Readable(0, 1)]);
    assert!(matches!(pair.refused(), ChainError::TooLong { size: 4 }));
    drop(heads);
}

#[test]
fn what_is_completed_early_waits_if_the_driver_relies_on_the_order() {
    let mut pair = Pair::new(3, PACKED | Features::IN_ORDER);
    for round in 0..5 {
        let ids: Vec<_> = (0..3)
            .map(|_| pair.ring.submit(&[Readable(0, 1)]))
            .collect();
        let [a, b, c] = [(); 3].map(|()| pair.pop().unwrap().unwrap());
        pair.complete(b, 2);
        assert_eq!(pair.publish(), Notify::No, "round {round}");
        pair.complete(a, 1);
        let _ = pair.publish();
        let lengths: Vec<_> = std::iter::from_fn(|| pair.ring.take()).collect();
        let used = |k: usize| Used {
            head: ids[k].into(),
            length: k as u32 + 1,
        };
        assert_eq!(lengths, [used(0), used(1)]);
        pair.complete(c, 3);
        let _ = pair.publish();
        assert_eq!(pair.ring.take(), Some(used(2)));
    }

    let memory = memory();
    let mut ring = Ring::new(Arc::clone(&memory), BASE, 4);
    let config = QueueConfig {
        size: 4,
        descriptor_area: ring.table,
        driver_area: ring.available,
        device_area: ring.used,
    };
    let mut queue = Queue::new(&config, Features::IN_ORDER, &*memory).unwrap();
    let mut chain = Chain::new();
    let heads: Vec<_> = (0..4)
        .map(|i| {
            ring.submit(&[Readable(i, 1)]);
            queue.map(&*memory).pop(&mut chain).unwrap().unwrap()
        })
        .collect();
    for head in heads.into_iter().rev() {
        queue.map(&*memory).complete(head, 0).unwrap();
    }
    assert_eq!(queue.map(&*memory).publish().unwrap(), Notify::Yes);
    let order: Vec<_> = std::iter::from_fn(|| ring.take())
        .map(|used| used.head)
        .collect();
    assert_eq!(order, [0, 1, 2, 3]);
}

#[test]
fn a_queue_goes_on_where_another_was() {
    let mut pair = Pair::new(3, PACKED);
    for i in 0..7u32 {
        let id = pair.ring.submit(&[Readable(0, 1), Writable(0, 1)]);
        let position = pair.queue.position();
        let config = config(&pair.ring);
        pair.queue = Queue::restored(&config, PACKED, &*pair.memory, position).unwrap();
        let head = pair.pop().unwrap().unwrap();
        pair.complete(head, i);
        let _ = pair.publish();
        assert_eq!(
            pair.ring.take(),
            Some(Used {
                head: id.into(),
                length: i
            })
        );
    }
    let bad = |available, used| {
        let position = Position { available, used };
        let error = Queue::restored(&config(&pair.ring), PACKED, &*pair.memory, position);
        matches!(error, Err(QueueError::Position { size: 3, position: p }) if p == position)
    };
    assert!(bad(0x8003, 0x8003), "a place outside the ring");
    assert!(bad(0x8001, 0x8000), "something in flight");
    assert!(bad(0x8001, 0x0001), "a whole round in flight");
}

#[test]
fn a_packed_queue_has_any_size_and_its_own_alignment() {
    let memory = memory();
    let good = QueueConfig {
        size: 7,
        descriptor_area: 0x1000,
        driver_area: 0x2004,
        device_area: 0x3008,
    };
    let new = |config: QueueConfig| Queue::new(&config, PACKED, &*memory);
    assert_eq!(new(good).unwrap().size(), 7);
    for size in [0, 0x8001, 0xffff] {
        let config = QueueConfig { size, ..good };
        assert!(
            matches!(new(config), Err(QueueError::Size { .. })),
            "{size}"
        );
    }
    for config in [
        QueueConfig {
            descriptor_area: 0x1008,
            ..good
        },
        QueueConfig {
            driver_area: 0x2002,
            ..good
        },
        QueueConfig {
            device_area: 0x3002,
            ..good
        },
    ] {
        assert!(
            matches!(new(config), Err(QueueError::Alignment { .. })),
            "{config:x?}"
        );
    }
    for config in [
        QueueConfig {
            descriptor_area: MEMORY - 16 * 6,
            ..good
        },
        QueueConfig {
            driver_area: MEMORY,
            ..good
        },
        QueueConfig {
            device_area: u64::MAX - 3,
            ..good
        },
    ] {
        assert!(
            matches!(new(config), Err(QueueError::Unmapped { .. })),
            "{config:x?}"
        );
    }
}
