// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The split virtqueue over memory that nobody wrote with care, against a model of the specification's
//! text, against virtio-queue, and through an IOMMU.

use std::sync::Arc;

use hvkit_virtio_devices::fake::{Behind, Buffer, Ring, Tables};
use hvkit_virtio_devices::features::Features;
use hvkit_virtio_devices::queue::{Chain, Notify, Queue, QueueConfig, QueueError};
use proptest::prelude::*;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Permissions};

use Buffer::{Readable, Writable};

const SIZE: u16 = 8;
const BASE: u64 = 0x1000;
const TABLE: u64 = 0x8000;
const MEMORY: u64 = 0x1_0000;
const BOTH: Features = Features::INDIRECT_DESC.union(Features::EVENT_IDX);

type Words = (u64, u32, u16, u16);

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

/// Descriptors that are nearly right, so that chains get far before they go wrong.
fn words() -> impl Strategy<Value = Words> {
    let address = prop_oneof![
        6 => 0..MEMORY,
        4 => (0u64..4).prop_map(|i| TABLE + 16 * i),
        1 => any::<u64>(),
        1 => (0u64..64).prop_map(|i| u64::MAX - i),
    ];
    let length = prop_oneof![
        4 => 0u32..100,
        4 => (0u32..6).prop_map(|n| 16 * n),
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ];
    let flags = prop_oneof![
        4 => Just(0u16), 6 => Just(1), 3 => Just(2), 4 => Just(3), 3 => Just(4), 1 => Just(6), 1 => 0u16..16,
        1 => any::<u16>(),
    ];
    let next = prop_oneof![8 => 0u16..SIZE, 1 => any::<u16>()];
    (address, length, flags, next)
}

/// The words of a descriptor, if they are all in memory.
fn look(memory: &GuestMemoryMmap, table: u64, index: u16) -> Option<Words> {
    let mut raw = [0; 16];
    let address = table.checked_add(16 * u64::from(index))?;
    memory.read_slice(&mut raw, GuestAddress(address)).ok()?;
    let part = |from: usize, to: usize| {
        raw[from..to]
            .iter()
            .rev()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    Some((
        part(0, 8),
        part(8, 12) as u32,
        part(12, 14) as u16,
        part(14, 16) as u16,
    ))
}

/// The rules of 2.7.4 and 2.7.5, as plainly as they can be put; `None` if one is broken.
fn model(memory: &GuestMemoryMmap, head: u16) -> Option<Vec<Buffer>> {
    let mut buffers = Vec::new();
    let (mut table, mut index, mut entries, mut inside) = (BASE, head, u32::from(SIZE), false);
    let mut total = 0u64;
    loop {
        if u32::from(index) >= entries {
            return None;
        }
        let (address, length, flags, next) = look(memory, table, index)?;
        address.checked_add(length.into())?;
        if flags & 4 != 0 {
            if inside || flags & 1 != 0 || length == 0 || length % 16 != 0 {
                return None;
            }
            (table, index, entries, inside) = (address, 0, length / 16, true);
            continue;
        }
        let after_writable = matches!(buffers.last(), Some(Writable(..)));
        total += u64::from(length);
        if buffers.len() == usize::from(SIZE)
            || total > 1 << 32
            || (flags & 2 == 0 && after_writable)
        {
            return None;
        }
        let buffer = if flags & 2 == 0 { Readable } else { Writable };
        buffers.push(buffer(address, length));
        if flags & 1 == 0 {
            return Some(buffers);
        }
        index = next;
    }
}

fn lay_out(memory: &Arc<GuestMemoryMmap>, table: &[Words], indirect: &[Words]) -> Ring {
    let ring = Ring::new(Arc::clone(memory), BASE, SIZE);
    for (words, index) in table.iter().zip(0..) {
        ring.descriptor(BASE, index, *words);
    }
    for (words, index) in indirect.iter().zip(0..) {
        ring.descriptor(TABLE, index, *words);
    }
    ring
}

/// What was popped: buffers without the empty ones, which `Chain` does not show.
fn popped(chain: &Chain) -> Vec<Buffer> {
    let readable = chain
        .readable()
        .pieces()
        .map(|s| Readable(s.address, s.length));
    let writable = chain
        .writable()
        .pieces()
        .map(|s| Writable(s.address, s.length));
    readable.chain(writable).collect()
}

fn not_empty(buffer: &Buffer) -> bool {
    !matches!(buffer, Readable(_, 0) | Writable(_, 0))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn chains_are_what_the_specification_makes_of_them(
        table in prop::collection::vec(words(), usize::from(SIZE)),
        indirect in prop::collection::vec(words(), 0..12),
        head in prop_oneof![8 => 0..SIZE, 1 => any::<u16>()],
    ) {
        let memory = memory();
        let mut ring = lay_out(&memory, &table, &indirect);
        ring.offer(head);
        let mut queue = Queue::new(&config(&ring), BOTH, &*memory).unwrap();
        let mut chain = Chain::new();
        let ours = queue.map(&*memory).pop(&mut chain);
        match model(&memory, head) {
            Some(expected) => {
                let popped_head = ours.unwrap().map(|head| head.index());
                prop_assert_eq!(popped_head, Some(head));
                let expected: Vec<_> = expected.into_iter().filter(not_empty).collect();
                prop_assert_eq!(popped(&chain), expected.clone());
                let total = chain.readable().len() + chain.writable().len();
                // The peer takes one byte less than the specification allows, and only tables of up to
                // 65535 descriptors.
                if total == 1 << 32 || table.iter().any(|w| w.2 & 4 != 0 && w.1 > 16 * 65535) {
                    return Ok(());
                }
                // The peer, which must agree on whatever is well-formed.
                let mut peer = virtio_queue::Queue::new(SIZE).unwrap();
                peer.try_set_desc_table_address(GuestAddress(ring.table)).unwrap();
                peer.try_set_avail_ring_address(GuestAddress(ring.available)).unwrap();
                peer.try_set_used_ring_address(GuestAddress(ring.used)).unwrap();
                peer.set_ready(true);
                let theirs: Vec<_> = peer
                    .pop_descriptor_chain(&*memory)
                    .unwrap()
                    .map(|d| match d.is_write_only() {
                        true => Writable(d.addr().0, d.len()),
                        false => Readable(d.addr().0, d.len()),
                    })
                    .filter(not_empty)
                    .collect();
                prop_assert_eq!(theirs, expected);
            }
            None => prop_assert!(
                matches!(ours.as_ref().err().map(|e| &**e), Some(QueueError::Chain { head: h, .. }) if *h == head),
                "accepted: {:?}", popped(&chain)
            ),
        }
    }

    /// A queue that keeps an order takes each chain by the long way. Nobody can tell, by buffers or by what is said of a
    /// chain that is refused.
    #[test]
    fn the_short_way_and_the_long_one_take_the_same(
        table in prop::collection::vec(words(), usize::from(SIZE)),
        indirect in prop::collection::vec(words(), 0..12),
        head in prop_oneof![8 => 0..SIZE, 1 => any::<u16>()],
        offered in prop_oneof![Just(BOTH), Just(Features::EVENT_IDX)],
    ) {
        let memory = memory();
        let mut ring = lay_out(&memory, &table, &indirect);
        ring.offer(head);
        let taken = |features| {
            let mut queue = Queue::new(&config(&ring), features, &*memory).unwrap();
            let mut chain = Chain::new();
            let popped = queue.map(&*memory).pop(&mut chain);
            let popped = popped.map(|head| head.map(|head| head.index()));
            let sides = (chain.readable_segments().to_vec(), chain.writable_segments().to_vec());
            (format!("{popped:?}"), sides, chain.readable_bytes(), chain.writable_bytes())
        };
        prop_assert_eq!(taken(offered), taken(offered | Features::IN_ORDER));
    }

    /// Every word of memory is the driver's to choose, while the device works.
    #[test]
    fn no_memory_makes_it_panic_or_run_on(
        noise in prop::collection::vec(any::<u8>(), 0x400),
        rewrites in prop::collection::vec((0..0x3000u64, any::<u16>()), 0..40),
        features in prop_oneof![Just(BOTH), Just(Features::empty()), Just(Features::EVENT_IDX)],
        size in prop_oneof![Just(1u16), Just(2), Just(8), Just(64)],
    ) {
        let memory = memory();
        let ring = Ring::new(Arc::clone(&memory), BASE, size);
        memory.write_slice(&noise, GuestAddress(BASE)).unwrap();
        // Small enough an index that the first look does not already end it.
        ring.put16(ring.available + 2, size.min(3));
        let mut queue = Queue::new(&config(&ring), features, &*memory).unwrap();
        let mut chain = Chain::new();
        let mut errors = 0;
        for (offset, value) in rewrites {
            for _ in 0..2 {
                match queue.map(&*memory).pop(&mut chain) {
                    Ok(Some(head)) => {
                        let segments = popped(&chain).len();
                        prop_assert!(segments <= usize::from(size));
                        prop_assert!(chain.readable().len() + chain.writable().len() <= 1 << 32);
                        errors += usize::from(queue.map(&*memory).complete(head, 1).is_err());
                    }
                    Ok(None) => {}
                    Err(_) => errors += 1,
                }
            }
            errors += usize::from(queue.map(&*memory).publish().is_err());
            errors += usize::from(queue.map(&*memory).enable_kicks().is_err());
            memory.write_slice(&value.to_le_bytes(), GuestAddress(BASE + offset)).unwrap();
        }
        prop_assert!(errors <= 1, "{errors} errors from one queue");
        prop_assert_eq!(errors == 1, queue.is_failed());
    }
}

/// A view of `memory` in which page `n` of a device's address space is page `15 - n`: readable and writable
/// for even `n`, readable for odd `n`, and nothing from page 12 on.
fn behind_iommu(memory: &Arc<GuestMemoryMmap>) -> Behind {
    let view = Tables::before(memory);
    for page in 0..12u64 {
        let access = if page % 2 == 0 {
            Permissions::ReadWrite
        } else {
            Permissions::Read
        };
        let target = (15 - page) << 12;
        view.iommu().map(page << 12, 4096, target, access);
    }
    view
}

#[test]
fn a_queue_may_lie_behind_an_iommu() {
    let memory = memory();
    let view = behind_iommu(&memory);
    // The driver's addresses are physical, the device's are not: rings and tables at pages 1 (readable) and
    // 2 (writable), an indirect table across pages 3 and 4, which are not neighbours in memory.
    let mut ring = Ring::new(Arc::clone(&memory), 14 << 12, SIZE);
    let config = QueueConfig {
        size: SIZE,
        descriptor_area: 1 << 12,
        driver_area: (1 << 12) + 16 * u64::from(SIZE),
        device_area: 2 << 12,
    };
    ring.used = 13 << 12;
    let indirect = (4 << 12) - 16;
    ring.descriptor(ring.table, 0, (indirect, 32, 4, 0));
    ring.descriptor((12 << 12) + 4080, 0, (0x111, 1, 1, 1));
    ring.descriptor(11 << 12, 0, (0x222, 2, 2, 0));
    ring.offer(0);

    let mut queue = Queue::new(&config, BOTH, &*view).unwrap();
    let mut chain = Chain::new();
    let head = queue.map(&*view).pop(&mut chain).unwrap().unwrap();
    assert_eq!(popped(&chain), [Readable(0x111, 1), Writable(0x222, 2)]);
    queue.map(&*view).complete(head, 2).unwrap();
    assert_eq!(queue.map(&*view).publish().unwrap(), Notify::Yes);
    assert_eq!(ring.take().map(|used| used.length), Some(2));
}

#[test]
fn an_iommu_decides_where_a_queue_may_be() {
    let memory = memory();
    let view = behind_iommu(&memory);
    let good = QueueConfig {
        size: SIZE,
        descriptor_area: 1 << 12,
        driver_area: (1 << 12) + 512,
        device_area: 2 << 12,
    };
    Queue::new(&good, BOTH, &*view).unwrap();
    for bad in [
        QueueConfig {
            descriptor_area: 12 << 12,
            ..good
        },
        QueueConfig {
            driver_area: (12 << 12) - 2,
            ..good
        },
        // Mapped, for reading only.
        QueueConfig {
            device_area: 3 << 12,
            ..good
        },
        QueueConfig {
            device_area: 0u64.wrapping_sub(4),
            ..good
        },
    ] {
        let error = Queue::new(&bad, BOTH, &*view).unwrap_err();
        assert!(
            matches!(error, QueueError::Unmapped { .. }),
            "{bad:?}: {error:?}"
        );
    }
}
