// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split virtqueue against a driver that writes raw words, honest and not.

use std::sync::Arc;

use hvkit_virtio_devices::fake::{Buffer, Ring, Used};
use hvkit_virtio_devices::features::Features;
use hvkit_virtio_devices::queue::{
    Area, Chain, ChainError, Notify, Queue, QueueConfig, QueueError, Segment,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use Buffer::{Readable, Writable};

const BASE: u64 = 0x1000;
const MEMORY: u64 = 0x10_0000;
const BOTH: Features = Features::INDIRECT_DESC.union(Features::EVENT_IDX);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap())
}

fn config(ring: &Ring) -> QueueConfig {
    QueueConfig {
        size: ring.size,
        descriptor_area: ring.table,
        driver_area: ring.available,
        device_area: ring.used,
    }
}

struct Pair {
    memory: Arc<GuestMemoryMmap>,
    ring: Ring,
    queue: Queue,
    chain: Chain,
}

impl Pair {
    fn new(size: u16, features: Features) -> Self {
        let memory = memory();
        let ring = Ring::new(Arc::clone(&memory), BASE, size);
        let queue = Queue::new(&config(&ring), features, &*memory).unwrap();
        Self {
            memory,
            ring,
            queue,
            chain: Chain::new(),
        }
    }

    fn pop(&mut self) -> Result<Option<u16>, QueueError> {
        let head = self.queue.map(&*self.memory).pop(&mut self.chain)?;
        Ok(head.map(|head| head.index()))
    }

    /// Pops a chain and returns its buffers.
    fn buffers(&mut self) -> Vec<Buffer> {
        self.pop().unwrap().expect("nothing is available");
        let readable = self
            .chain
            .readable()
            .pieces()
            .map(|s| Readable(s.address, s.length));
        let writable = self
            .chain
            .writable()
            .pieces()
            .map(|s| Writable(s.address, s.length));
        readable.chain(writable).collect()
    }

    /// Pops and completes `count` chains, then publishes once.
    fn serve(&mut self, count: usize) -> Notify {
        for _ in 0..count {
            let head = self
                .queue
                .map(&*self.memory)
                .pop(&mut self.chain)
                .unwrap()
                .unwrap();
            self.queue.map(&*self.memory).complete(head, 7).unwrap();
        }
        self.queue.map(&*self.memory).publish().unwrap()
    }

    /// The next pop reports an error; after it the queue is empty and quiet.
    fn refused(&mut self) -> QueueError {
        let error = self.pop().unwrap_err();
        assert!(self.queue.is_failed());
        self.ring.submit(&[Readable(0, 1)]);
        assert_eq!(self.pop().unwrap(), None, "an error must be latched");
        assert!(!self.queue.map(&*self.memory).enable_kicks().unwrap());
        error
    }

    fn refused_chain(&mut self) -> ChainError {
        match self.refused() {
            QueueError::Chain { source, .. } => source,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn chains_come_as_they_were_made() {
    let mut pair = Pair::new(8, BOTH);
    assert_eq!(pair.pop().unwrap(), None);
    let chains: [&[Buffer]; 4] = [
        &[Readable(0x5000, 1)],
        &[Writable(0x5000, 0xffff_ffff)],
        &[
            Readable(0x5000, 16),
            Readable(0x6000, 4096),
            Writable(0x7000, 1),
        ],
        &[Readable(u64::MAX - 1, 1), Writable(1 << 60, 5)],
    ];
    for chain in chains {
        pair.ring.submit(chain);
    }
    for chain in chains {
        assert_eq!(pair.buffers(), chain);
    }
    assert_eq!(pair.pop().unwrap(), None);
}

#[test]
fn an_empty_buffer_is_a_descriptor_but_no_bytes() {
    let mut pair = Pair::new(8, BOTH);
    pair.ring.submit(&[
        Readable(0x5000, 0),
        Writable(0x6000, 0),
        Writable(0x7000, 2),
    ]);
    assert_eq!(pair.buffers(), [Writable(0x7000, 2)]);
    assert!(pair.chain.readable().is_empty());
    assert_eq!(pair.chain.writable().len(), 2);
}

#[test]
fn used_elements_are_what_was_completed_in_that_order() {
    let mut pair = Pair::new(8, BOTH);
    for i in 0..3 {
        pair.ring.submit(&[Readable(i, 1), Writable(i, 1)]);
    }
    let mut heads: Vec<_> = (0..3)
        .map(|_| {
            pair.queue
                .map(&*pair.memory)
                .pop(&mut pair.chain)
                .unwrap()
                .unwrap()
        })
        .collect();
    heads.reverse();
    for (head, length) in heads.into_iter().zip([9, 0, u32::MAX]) {
        pair.queue
            .map(&*pair.memory)
            .complete(head, length)
            .unwrap();
    }
    assert_eq!(pair.ring.take(), None, "seen before it was published");
    assert_eq!(
        pair.queue.map(&*pair.memory).publish().unwrap(),
        Notify::Yes
    );
    let used: Vec<_> = std::iter::from_fn(|| pair.ring.take()).collect();
    let expected = [(4, 9), (2, 0), (0, u32::MAX)].map(|(head, length)| Used { head, length });
    assert_eq!(used, expected);
}

#[test]
fn indices_wrap() {
    for features in [BOTH, Features::empty()] {
        let mut pair = Pair::new(2, features);
        for i in 0..0x1_0010u64 {
            pair.ring.submit(&[Readable(i, 1)]);
            assert_eq!(pair.serve(1), Notify::Yes, "{i:#x}");
            assert_eq!(pair.ring.take().map(|used| used.length), Some(7), "{i:#x}");
            assert!(!pair.queue.map(&*pair.memory).enable_kicks().unwrap());
        }
    }
}

/// "If [...] the driver [...] the device MUST send [...] when [the index it writes] passes used_event"
/// (2.7.7.2): an interrupt if and only if one of the elements just published has that index.
#[test]
fn an_interrupt_comes_when_the_index_passes_the_event() {
    for event in [0u16, 1, 2, 3, 4, 5, 8, 9, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        let mut pair = Pair::new(16, BOTH);
        let mut old = 0u16;
        for count in [1u16, 2, 1, 4, 1] {
            for _ in 0..count {
                pair.ring.submit(&[Readable(0, 1)]);
            }
            pair.ring.put16(pair.ring.available + 4 + 2 * 16, event);
            let passed = (0..count).any(|i| old.wrapping_add(i) == event);
            let expected = if passed { Notify::Yes } else { Notify::No };
            assert_eq!(
                pair.serve(count.into()),
                expected,
                "{event:#x} from {old} by {count}"
            );
            old += count;
        }
    }
}

#[test]
fn without_event_indices_the_drivers_flag_counts() {
    let mut pair = Pair::new(4, Features::empty());
    for (flags, expected) in [
        (0, Notify::Yes),
        (1, Notify::No),
        (2, Notify::Yes),
        (0xffff, Notify::No),
    ] {
        pair.ring.put16(pair.ring.available, flags);
        // Where the event index would be, were it negotiated.
        pair.ring.put16(pair.ring.available + 4 + 2 * 4, 0x1234);
        pair.ring.submit(&[Readable(0, 1)]);
        assert_eq!(pair.serve(1), expected, "{flags:#x}");
    }
    assert_eq!(
        pair.queue.map(&*pair.memory).publish().unwrap(),
        Notify::No,
        "nothing was completed"
    );
}

#[test]
fn kicks_are_asked_for_where_the_driver_looks() {
    // Event index: the index of the next chain we have not seen.
    let mut pair = Pair::new(4, BOTH);
    let event = pair.ring.used + 4 + 8 * 4;
    pair.ring.submit(&[Readable(0, 1)]);
    let _ = pair.serve(1);
    assert!(!pair.queue.map(&*pair.memory).enable_kicks().unwrap());
    assert_eq!(pair.ring.get16(event), 1);
    pair.queue.map(&*pair.memory).disable_kicks().unwrap();
    assert_eq!(
        (pair.ring.get16(event), pair.ring.get16(pair.ring.used)),
        (1, 0)
    );
    // Not the index of what was used: one is taken and not done yet.
    pair.ring.submit(&[Readable(0, 1)]);
    pair.pop().unwrap();
    assert!(!pair.queue.map(&*pair.memory).enable_kicks().unwrap());
    assert_eq!(pair.ring.get16(event), 2);
    // Flag: 1 for "do not".
    let mut pair = Pair::new(4, Features::empty());
    pair.queue.map(&*pair.memory).disable_kicks().unwrap();
    assert_eq!(pair.ring.get16(pair.ring.used), 1);
    assert!(!pair.queue.map(&*pair.memory).enable_kicks().unwrap());
    assert_eq!(pair.ring.get16(pair.ring.used), 0);
    assert_eq!(
        pair.ring.get16(pair.ring.used + 4 + 8 * 4),
        0,
        "not negotiated, not written"
    );
}

#[test]
fn what_comes_while_kicks_are_off_is_noticed() {
    for features in [BOTH, Features::empty()] {
        let mut pair = Pair::new(4, features);
        pair.queue.map(&*pair.memory).disable_kicks().unwrap();
        assert_eq!(pair.pop().unwrap(), None);
        pair.ring.submit(&[Readable(3, 1)]);
        assert!(pair.queue.map(&*pair.memory).enable_kicks().unwrap());
        assert_eq!(pair.buffers(), [Readable(3, 1)]);
    }
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    let memory = memory();
    let good = config(&Ring::new(Arc::clone(&memory), BASE, 8));
    let refused = |config: QueueConfig| Queue::new(&config, BOTH, &*memory).unwrap_err();
    for size in [0, 3, 0x8001, 0xffff] {
        let error = refused(QueueConfig { size, ..good });
        assert!(matches!(error, QueueError::Size { size: s } if s == size));
    }
    // 2.7: 16, 2 and 4 bytes.
    for (area, alignment) in [(Area::Descriptor, 16), (Area::Driver, 2), (Area::Device, 4)] {
        let at = |address| {
            let mut config = good;
            match area {
                Area::Descriptor => config.descriptor_area = address,
                Area::Driver => config.driver_area = address,
                Area::Device => config.device_area = address,
            }
            config
        };
        let error = refused(at(0x4000 + alignment / 2));
        assert!(
            matches!(error, QueueError::Alignment { area: a, alignment: n, .. } if (a, n) == (area, alignment))
        );
        for address in [
            MEMORY,
            MEMORY - alignment,
            1 << 40,
            0u64.wrapping_sub(alignment),
        ] {
            let error = refused(at(address));
            assert!(
                matches!(error, QueueError::Unmapped { area: a, address: n, .. } if (a, n) == (area, address)),
                "{area:?} {address:#x}"
            );
        }
    }
    // The last place where each fits.
    for (descriptor_area, driver_area, device_area) in [
        (MEMORY - 128, 0, 0x1000),
        (0, MEMORY - 22, 0x1000),
        (0, 0x1000, MEMORY - 72),
    ] {
        let config = QueueConfig {
            size: 8,
            descriptor_area,
            driver_area,
            device_area,
        };
        Queue::new(&config, BOTH, &*memory).unwrap();
    }
    Queue::new(&QueueConfig { size: 1, ..good }, BOTH, &*memory).unwrap();
}

#[test]
fn an_available_index_that_jumps_is_refused() {
    for index in [5u16, 6, 0x8000, 0xffff] {
        let mut pair = Pair::new(4, BOTH);
        pair.ring.put16(pair.ring.available + 2, index);
        match pair.refused() {
            QueueError::Available {
                available,
                used: 0,
                size: 4,
            } => assert_eq!(available, index),
            other => panic!("{other:?}"),
        }
    }
    let mut pair = Pair::new(4, BOTH);
    pair.ring.put16(pair.ring.available + 2, 4);
    assert_eq!(pair.pop().unwrap(), Some(0));
}

#[test]
fn an_available_index_that_goes_back_is_refused() {
    let mut pair = Pair::new(4, BOTH);
    for _ in 0..3 {
        pair.ring.submit(&[Readable(0, 1)]);
    }
    while pair.pop().unwrap().is_some() {}
    pair.ring.put16(pair.ring.available + 2, 2);
    assert!(matches!(
        pair.refused(),
        QueueError::Available { available: 2, .. }
    ));
}

#[test]
fn more_in_flight_than_the_queue_holds_is_refused() {
    let mut pair = Pair::new(4, BOTH);
    for _ in 0..4 {
        pair.ring.submit(&[Readable(0, 1)]);
    }
    let heads: Vec<_> = (0..4)
        .map(|_| {
            pair.queue
                .map(&*pair.memory)
                .pop(&mut pair.chain)
                .unwrap()
                .unwrap()
        })
        .collect();
    // Completed but not published: the driver cannot know, so it may not reuse them.
    for head in heads {
        pair.queue.map(&*pair.memory).complete(head, 0).unwrap();
    }
    pair.ring.submit(&[Readable(0, 1)]);
    assert!(matches!(
        pair.refused(),
        QueueError::Available {
            available: 5,
            used: 0,
            size: 4
        }
    ));
    // What was done before is still shown.
    assert_eq!(
        pair.queue.map(&*pair.memory).publish().unwrap(),
        Notify::Yes
    );
    assert_eq!(std::iter::from_fn(|| pair.ring.take()).count(), 4);
}

#[test]
fn a_head_outside_the_table_is_refused() {
    for head in [4, 5, 0x8000, 0xffff] {
        let mut pair = Pair::new(4, BOTH);
        pair.ring.offer(head);
        match pair.refused_chain() {
            ChainError::Index { index, entries: 4 } => assert_eq!(index, head),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_next_outside_the_table_is_refused() {
    let mut pair = Pair::new(4, BOTH);
    pair.ring.descriptor(BASE, 0, (0, 1, NEXT, 4));
    pair.ring.offer(0);
    assert!(matches!(
        pair.refused_chain(),
        ChainError::Index {
            index: 4,
            entries: 4
        }
    ));
}

#[test]
fn loops_end() {
    // To itself, and in a ring of all.
    for (index, next) in [(0, 0), (3, 0)] {
        let mut pair = Pair::new(4, BOTH);
        for i in 0..4 {
            pair.ring.descriptor(BASE, i, (0, 1, NEXT, i + 1));
        }
        pair.ring.descriptor(BASE, index, (0, 1, NEXT, next));
        pair.ring.offer(0);
        assert!(matches!(
            pair.refused_chain(),
            ChainError::TooLong { size: 4 }
        ));
    }
}

#[test]
fn a_readable_buffer_after_a_writable_one_is_refused() {
    let mut pair = Pair::new(4, BOTH);
    pair.ring
        .submit(&[Readable(0, 1), Writable(0, 1), Readable(0, 1)]);
    assert!(matches!(
        pair.refused_chain(),
        ChainError::ReadableAfterWritable { index: 2 }
    ));
}

#[test]
fn buffers_that_wrap_are_refused() {
    for (address, length) in [
        (u64::MAX, 1),
        (u64::MAX - 0xffff_fffe, u32::MAX),
        (u64::MAX - 2, 3),
    ] {
        let mut pair = Pair::new(4, BOTH);
        pair.ring.submit(&[Readable(address, length)]);
        match pair.refused_chain() {
            ChainError::Wraps {
                address: a,
                length: l,
            } => assert_eq!((a, l), (address, length)),
            other => panic!("{other:?}"),
        }
    }
}

/// 2.7.5.2: "a descriptor chain longer than 2^32 bytes in total" may not be made; one of 2^32 may.
#[test]
fn at_most_four_gib_in_total() {
    let mut pair = Pair::new(4, BOTH);
    pair.ring.submit(&[Readable(0, u32::MAX), Writable(0, 1)]);
    assert_eq!(pair.pop().unwrap(), Some(0));
    assert_eq!(
        pair.chain.readable().len() + pair.chain.writable().len(),
        1 << 32
    );
    pair.ring.submit(&[Readable(0, u32::MAX), Writable(0, 2)]);
    assert!(matches!(pair.refused_chain(), ChainError::TooBig { bytes } if bytes == (1 << 32) + 1));
}

const TABLE: u64 = 0x8000;

/// A queue of 4 with a chain of `before` direct descriptors and then an indirect one to `TABLE`.
fn indirect(before: u16, length: u32, flags: u16) -> Pair {
    let mut pair = Pair::new(4, BOTH);
    for i in 0..before {
        pair.ring.descriptor(BASE, i, (0x100, 1, NEXT, i + 1));
    }
    pair.ring
        .descriptor(BASE, before, (TABLE, length, INDIRECT | flags, 0));
    pair.ring.offer(0);
    pair
}

#[test]
fn indirect_tables_are_followed() {
    // WRITE on the indirect descriptor itself means nothing (2.7.5.3.2).
    for flags in [0, WRITE] {
        for before in [0u16, 1, 2] {
            let mut pair = indirect(before, 32, flags);
            pair.ring.descriptor(TABLE, 0, (0x200, 2, NEXT, 1));
            pair.ring.descriptor(TABLE, 1, (0x300, 3, WRITE, 0xffff));
            let mut expected = vec![Readable(0x100, 1); before.into()];
            expected.extend([Readable(0x200, 2), Writable(0x300, 3)]);
            assert_eq!(pair.buffers(), expected);
        }
    }
}

#[test]
fn a_readable_buffer_in_an_indirect_table_after_a_writable_one_before_it_is_refused() {
    let mut pair = indirect(1, 32, 0);
    let table = pair.ring.table;
    pair.ring.descriptor(table, 0, (0x100, 1, NEXT | WRITE, 1));
    pair.ring.descriptor(TABLE, 0, (0x200, 2, NEXT, 1));
    pair.ring.descriptor(TABLE, 1, (0x300, 3, WRITE, 0));
    assert!(matches!(
        pair.refused_chain(),
        ChainError::ReadableAfterWritable { index: 0 }
    ));
}

#[test]
fn an_indirect_table_may_be_larger_than_the_queue_but_not_the_chain() {
    let mut pair = indirect(0, 16 * 100, 0);
    pair.ring.descriptor(TABLE, 0, (0, 1, NEXT, 99));
    pair.ring.descriptor(TABLE, 99, (1, 1, 0, 0));
    assert_eq!(pair.buffers(), [Readable(0, 1), Readable(1, 1)]);
    // Four fit, whatever tables they are in; five do not.
    for (before, inside, fits) in [(0, 4, true), (0, 5, false), (2, 2, true), (2, 3, false)] {
        let mut pair = indirect(before, 16 * 8, 0);
        for i in 0..inside {
            let next = if i + 1 < inside { NEXT } else { 0 };
            pair.ring.descriptor(TABLE, i, (0, 1, next, i + 1));
        }
        if fits {
            assert_eq!(pair.buffers().len(), 4);
        } else {
            assert!(matches!(
                pair.refused_chain(),
                ChainError::TooLong { size: 4 }
            ));
        }
    }
}

#[test]
fn indirect_tables_that_cannot_be_are_refused() {
    for length in [0, 1, 15, 17, 16 * 3 + 8, u32::MAX] {
        match indirect(0, length, 0).refused_chain() {
            ChainError::IndirectLength { length: l } => assert_eq!(l, length),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(
        indirect(1, 16, NEXT).refused_chain(),
        ChainError::IndirectNext { index: 1 }
    ));

    let mut nested = indirect(0, 32, 0);
    nested.ring.descriptor(TABLE, 0, (TABLE, 16, INDIRECT, 0));
    assert!(matches!(
        nested.refused_chain(),
        ChainError::IndirectNested { index: 0 }
    ));
    let mut nested = indirect(0, 32, 0);
    nested.ring.descriptor(TABLE, 0, (0, 1, NEXT, 1));
    nested.ring.descriptor(TABLE, 1, (TABLE, 16, INDIRECT, 0));
    assert!(matches!(
        nested.refused_chain(),
        ChainError::IndirectNested { index: 1 }
    ));

    let mut outside = indirect(0, 32, 0);
    outside.ring.descriptor(TABLE, 0, (0, 1, NEXT, 2));
    assert!(matches!(
        outside.refused_chain(),
        ChainError::Index {
            index: 2,
            entries: 2
        }
    ));

    let mut looped = indirect(0, 32, 0);
    looped.ring.descriptor(TABLE, 0, (0, 1, NEXT, 0));
    assert!(matches!(
        looped.refused_chain(),
        ChainError::TooLong { size: 4 }
    ));

    for address in [MEMORY, MEMORY - 8, 1 << 50] {
        let mut pair = Pair::new(4, BOTH);
        pair.ring.descriptor(BASE, 0, (address, 16, INDIRECT, 0));
        pair.ring.offer(0);
        let error = pair.refused_chain();
        assert!(
            matches!(error, ChainError::Unreadable { index: 0, .. }),
            "{error:?}"
        );
    }
    let mut pair = Pair::new(4, BOTH);
    pair.ring
        .descriptor(BASE, 0, (u64::MAX - 15, 16, INDIRECT, 0));
    pair.ring.offer(0);
    assert!(matches!(pair.refused_chain(), ChainError::Wraps { .. }));
}

#[test]
fn indirect_must_have_been_negotiated() {
    let mut pair = Pair::new(4, Features::EVENT_IDX);
    pair.ring.descriptor(BASE, 0, (TABLE, 16, INDIRECT, 0));
    pair.ring.offer(0);
    assert!(matches!(
        pair.refused_chain(),
        ChainError::IndirectNotNegotiated { index: 0 }
    ));
}

#[test]
fn a_segment_is_an_address_and_a_length() {
    let mut pair = Pair::new(4, BOTH);
    pair.ring
        .submit(&[Readable(0x1234_5678_9abc_def0, 0x0fed_cba9)]);
    pair.pop().unwrap();
    let segments: Vec<_> = pair.chain.readable().pieces().collect();
    assert_eq!(
        segments,
        [Segment {
            address: 0x1234_5678_9abc_def0,
            length: 0x0fed_cba9
        }]
    );
}
