// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! rust-vmm's virtio-queue.

use std::hint::black_box;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::driver::{DEVICE, DRIVER, Driver, Layout, SIZE, Shape, TABLE};
use crate::harness::time;

pub fn case(memory: GuestMemoryMmap, shape: Shape, rounds: usize) -> Box<dyn FnMut() -> f64> {
    Box::new(move || {
        let mut driver = Driver::new(memory.clone(), shape, Layout::Split);
        let mut queue = Queue::new(SIZE).unwrap();
        queue
            .try_set_desc_table_address(GuestAddress(TABLE))
            .unwrap();
        queue
            .try_set_avail_ring_address(GuestAddress(DRIVER))
            .unwrap();
        queue
            .try_set_used_ring_address(GuestAddress(DEVICE))
            .unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        time(|| {
            for _ in 0..rounds {
                driver.post();
                let mut served = 0;
                while let Some(chain) = queue.pop_descriptor_chain(&memory) {
                    let head = chain.head_index();
                    let mut written = 0;
                    for descriptor in chain {
                        let length = descriptor.len() as usize;
                        let slice = memory.get_slice(descriptor.addr(), length).unwrap();
                        black_box(slice.ptr_guard_mut().as_ptr());
                        if descriptor.is_write_only() {
                            written += descriptor.len();
                        }
                    }
                    queue.add_used(&memory, head, written).unwrap();
                    served += 1;
                }
                black_box(queue.needs_notification(&memory).unwrap());
                assert_eq!(served, shape.batch);
            }
        })
    })
}
