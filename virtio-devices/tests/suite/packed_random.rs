// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The packed virtqueue over memory that nobody wrote with care, against a model of the specification's text.

use std::sync::Arc;

use hvkit_virtio_devices::fake::Buffer::{self, Readable, Writable};
use hvkit_virtio_devices::fake::PackedRing;
use hvkit_virtio_devices::features::Features;
use hvkit_virtio_devices::queue::{Chain, Head, Queue, QueueConfig, QueueError};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const BASE: u64 = 0x1000;
const TABLE: u64 = 0x8000;
const MEMORY: u64 = 0x1_0000;
const SIZE: u16 = 6;
const PACKED: Features = Features::RING_PACKED
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX);

type Words = (u64, u32, u16, u16);

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

fn queue(ring: &PackedRing, memory: &GuestMemoryMmap) -> Queue {
    Queue::new(&config(ring), PACKED, memory).unwrap()
}

fn words() -> impl Strategy<Value = Words> {
    let address = prop_oneof![
        6 => 0..MEMORY,
        4 => (0u64..4).prop_map(|i| TABLE + 16 * i),
        1 => any::<u64>(),
        1 => (0u64..64).prop_map(|i| u64::MAX - i),
    ];
    let length = prop_oneof![
        4 => 0u32..100, 4 => (0u32..8).prop_map(|n| 16 * n), 1 => any::<u32>(), 1 => Just(u32::MAX),
    ];
    let flags = prop_oneof![
        4 => Just(0u16), 6 => Just(1), 3 => Just(2), 4 => Just(3), 3 => Just(4), 1 => Just(6), 1 => 0u16..16,
        1 => any::<u16>().prop_map(|f| f & !0x8080),
    ];
    (address, length, 0..SIZE, flags)
}

fn look(memory: &GuestMemoryMmap, table: u64, index: u16) -> Option<Words> {
    let mut raw = [0; 16];
    let address = table.checked_add(16 * u64::from(index))?;
    memory.read_slice(&mut raw, GuestAddress(address)).ok()?;
    let word = u128::from_le_bytes(raw);
    Some((
        word as u64,
        (word >> 64) as u32,
        (word >> 96) as u16,
        (word >> 112) as u16,
    ))
}

/// The rules of 2.8, as plainly as they can be put: the buffers and the identifier of the chain at place `slot`;
/// `None` if one is broken.
fn model(memory: &GuestMemoryMmap, slot: u16) -> Option<(Vec<Buffer>, u16)> {
    let mut buffers: Vec<Buffer> = Vec::new();
    let mut push = |(address, length, _, flags): Words| {
        address.checked_add(length.into())?;
        if flags & 2 == 0 && matches!(buffers.last(), Some(Writable(..))) {
            return None;
        }
        let buffer = if flags & 2 == 0 { Readable } else { Writable };
        buffers.push(buffer(address, length));
        let total: u64 = buffers
            .iter()
            .map(|b| match b {
                Readable(_, length) | Writable(_, length) => u64::from(*length),
            })
            .sum();
        (buffers.len() <= SIZE.into() && total <= 1 << 32).then_some(())
    };
    for k in 0..SIZE {
        let words = look(memory, BASE, (slot + k) % SIZE)?;
        let (address, length, id, flags) = words;
        if flags & 4 != 0 {
            address.checked_add(length.into())?;
            if flags & 1 != 0 || length == 0 || length % 16 != 0 || length / 16 > SIZE.into() {
                return None;
            }
            for index in 0..(length / 16) as u16 {
                let words = look(memory, address, index)?;
                if words.3 & 4 != 0 {
                    return None;
                }
                push(words)?;
            }
            return Some((buffers, id));
        }
        push(words)?;
        if flags & 1 == 0 {
            return Some((buffers, id));
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn chains_are_what_the_specification_makes_of_them(
        before in 0..2 * SIZE,
        ring_words in prop::collection::vec(words(), usize::from(SIZE)),
        indirect in prop::collection::vec(words(), 0..10),
    ) {
        let memory = memory();
        let mut ring = PackedRing::new(Arc::clone(&memory), BASE, SIZE);
        let mut queue = queue(&ring, &memory);
        let mut chain = Chain::new();
        // From any place of the ring, in either round.
        for _ in 0..before {
            ring.submit(&[Readable(0, 1)]);
            let mut mapped = queue.map(&*memory);
            let head = mapped.pop(&mut chain).unwrap().unwrap();
            mapped.complete(head, 0).unwrap();
            let _ = mapped.publish().unwrap();
        }
        for (words, index) in indirect.iter().zip(0..) {
            ring.descriptor(TABLE, index, *words);
        }
        let slot = ring.free.0;
        ring.offer(&ring_words);
        // A queue that keeps an order takes the chain by the long way. Nobody can tell.
        let (long, at) = (PACKED | Features::IN_ORDER, queue.position());
        let mut long = Queue::restored(&config(&ring), long, &*memory, at).unwrap();
        let mut long_chain = Chain::new();
        let long_popped = long.map(&*memory).pop(&mut long_chain);
        let popped = queue.map(&*memory).pop(&mut chain);
        let index = |head: &Option<Head>| head.as_ref().map(Head::index);
        prop_assert_eq!(
            format!("{:?}", popped.as_ref().map(index)),
            format!("{:?}", long_popped.as_ref().map(index))
        );
        if popped.is_ok() {
            prop_assert_eq!(queue.position(), long.position());
            prop_assert_eq!(chain.readable_segments(), long_chain.readable_segments());
            prop_assert_eq!(chain.writable_segments(), long_chain.writable_segments());
            prop_assert_eq!(chain.readable_bytes(), long_chain.readable_bytes());
            prop_assert_eq!(chain.writable_bytes(), long_chain.writable_bytes());
        }
        match model(&memory, slot) {
            Some((expected, id)) => {
                prop_assert_eq!(popped.unwrap().map(|head| head.index()), Some(id));
                let segments = chain.readable_segments().iter().map(|s| Readable(s.address, s.length))
                    .chain(chain.writable_segments().iter().map(|s| Writable(s.address, s.length)));
                prop_assert_eq!(segments.collect::<Vec<_>>(), expected);
            }
            None => prop_assert!(
                matches!(popped.as_ref().err().map(|e| &**e), Some(QueueError::Chain { head, .. }) if *head == slot),
                "accepted: {:?}", chain
            ),
        }
    }

    /// Every word of memory is the driver's to choose, while the device works.
    #[test]
    fn no_memory_makes_it_panic_or_run_on(
        noise in prop::collection::vec(any::<u8>(), 0x100),
        rewrites in prop::collection::vec((0..0x80u64, any::<u16>()), 0..60),
        features in prop_oneof![
            Just(PACKED), Just(Features::RING_PACKED), Just(PACKED | Features::IN_ORDER)
        ],
        size in prop_oneof![Just(1u16), Just(2), Just(5), Just(8)],
    ) {
        let memory = memory();
        let ring = PackedRing::new(Arc::clone(&memory), BASE, size);
        memory.write_slice(&noise, GuestAddress(BASE)).unwrap();
        let config = QueueConfig {
            size, descriptor_area: ring.ring, driver_area: ring.driver, device_area: ring.device,
        };
        let mut queue = Queue::new(&config, features, &*memory).unwrap();
        let mut chain = Chain::new();
        let (mut errors, mut held) = (0, Vec::new());
        for (offset, value) in rewrites {
            for _ in 0..2 {
                match queue.map(&*memory).pop(&mut chain) {
                    Ok(Some(head)) => {
                        prop_assert!(chain.readable_segments().len() + chain.writable_segments().len() <= size.into());
                        held.push(head);
                        prop_assert!(held.len() <= size.into());
                    }
                    Ok(None) => {}
                    Err(_) => errors += 1,
                }
            }
            // Some at once, some later, the last one first.
            if value % 3 != 0 && let Some(head) = held.pop() {
                errors += usize::from(queue.map(&*memory).complete(head, 1).is_err());
            }
            errors += usize::from(queue.map(&*memory).publish().is_err());
            errors += usize::from(queue.map(&*memory).enable_kicks().is_err());
            memory.write_slice(&value.to_le_bytes(), GuestAddress(BASE + offset)).unwrap();
        }
        prop_assert!(errors <= 1, "{errors} errors from one queue");
        prop_assert_eq!(errors == 1, queue.is_failed());
    }
}
