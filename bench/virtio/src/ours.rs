// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Our queues.

use std::hint::black_box;

use hvkit_virtio_devices::features::Features;
use hvkit_virtio_devices::queue::{Chain, Queue, QueueConfig, Slice};
use vm_memory::{GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};

use crate::driver::{DEVICE, DRIVER, Driver, Layout, SIZE, Shape, TABLE};
use crate::harness::time;

/// `memory` as the driver sees it, `view` as the device does.
pub fn case<M: GuestMemory + 'static>(
    memory: GuestMemoryMmap,
    view: M,
    shape: Shape,
    layout: Layout,
    rounds: usize,
) -> Box<dyn FnMut() -> f64> {
    Box::new(move || {
        let mut driver = Driver::new(memory.clone(), shape, layout);
        let config = QueueConfig {
            size: SIZE,
            descriptor_area: TABLE,
            driver_area: DRIVER,
            device_area: DEVICE,
        };
        let mut features = Features::INDIRECT_DESC | Features::EVENT_IDX;
        if layout == Layout::Packed {
            features |= Features::RING_PACKED;
        }
        let mut queue = Queue::new(&config, features, &view).unwrap();
        let mut chain = Chain::new();
        let mut round = || {
            let mut mapped = queue.map(&view);
            let mut served = 0;
            while let Some(head) = mapped.pop(&mut chain).unwrap() {
                let reach = mapped.reach();
                let see = |slice: Slice<'_, M>| {
                    black_box(slice.ptr_guard().as_ptr());
                    Ok::<_, GuestMemoryError>(())
                };
                for piece in chain.readable_segments() {
                    reach.for_each(*piece, Permissions::Read, see).unwrap();
                }
                for piece in chain.writable_segments() {
                    reach.for_each(*piece, Permissions::Write, see).unwrap();
                }
                let written = chain.writable_bytes() as u32;
                mapped.complete(head, written).unwrap();
                served += 1;
            }
            let _ = black_box(mapped.publish().unwrap());
            assert_eq!(served, shape.batch);
        };
        // What the driver does is timed with it: one store a batch in a split queue, a copy of a batch's descriptors
        // in a packed one. A case of its own says what that takes.
        time(|| {
            for _ in 0..rounds {
                driver.post();
                round();
            }
        })
    })
}
