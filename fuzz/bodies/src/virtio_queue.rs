// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtqueue, split or packed, in memory of which every word is the driver's to choose while the device works.

use arbitrary::{Arbitrary, Unstructured};
use hvkit_virtio_devices::features::Features;
use hvkit_virtio_devices::queue::{Chain, Head, Queue, QueueConfig, QueueError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory.
const MEMORY: u64 = 0x4000;
/// The most actions of an input.
const ACTIONS: usize = 32;

/// Where the driver puts the queue, and of what kind it is.
#[derive(Arbitrary, Debug)]
struct Setup {
    size: u16,
    areas: [u16; 3],
    features: u8,
    noise: [u8; 64],
}

/// What driver and device do.
#[derive(Arbitrary, Debug)]
enum Action {
    /// The driver writes a word of 16 bits, somewhere in memory.
    Write(u16, u16),
    /// The driver writes a descriptor's worth, in slots of 16 bytes.
    Descriptor(u8, [u8; 16]),
    /// The device takes a chain and keeps it.
    Pop,
    /// It gives the chain back that it took last.
    PutBack,
    /// It is done with one of those that it keeps.
    Complete(u8, u32),
    /// It shows what is done.
    Publish,
    /// It asks not to be notified, or to be.
    Quiet,
    /// See `Quiet`.
    Listen,
}

fn features(bits: u8) -> Features {
    [
        Features::INDIRECT_DESC,
        Features::EVENT_IDX,
        Features::RING_PACKED,
        Features::IN_ORDER,
    ]
    .into_iter()
    .enumerate()
    .filter(|(bit, _)| bits & 1 << bit != 0)
    .map(|(_, feature)| feature)
    .collect()
}

/// No panic; no more in flight than the queue holds; an error is reported once, and ends the queue.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(setup) = Setup::arbitrary(&mut input) else {
        return;
    };
    let memory =
        GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
    for at in (0..MEMORY).step_by(setup.noise.len()) {
        memory
            .write_slice(&setup.noise, GuestAddress(at))
            .expect("inside");
    }
    let [descriptor_area, driver_area, device_area] = setup.areas.map(u64::from);
    let config = QueueConfig {
        size: setup.size,
        descriptor_area,
        driver_area,
        device_area,
    };
    let Ok(mut queue) = Queue::new(&config, features(setup.features), &memory) else {
        return;
    };
    let size = usize::from(queue.size());
    let (mut chain, mut held, mut errors) = (Chain::new(), Vec::<Head>::new(), 0);
    let mut last_was_pop = false;
    for _ in 0..ACTIONS {
        let Ok(action) = Action::arbitrary(&mut input) else {
            break;
        };
        let mut mapped = queue.map(&memory);
        let popped = matches!(action, Action::Pop);
        let result: Result<(), Box<QueueError>> = match action {
            Action::Write(at, value) => {
                let at = u64::from(at) % (MEMORY - 1);
                memory.write_obj(value, GuestAddress(at)).expect("inside");
                Ok(())
            }
            Action::Descriptor(slot, raw) => {
                let at = GuestAddress(16 * u64::from(slot));
                memory.write_slice(&raw, at).expect("inside");
                Ok(())
            }
            Action::Pop => mapped.pop(&mut chain).map(|head| {
                if let Some(head) = head {
                    let (read, write) = (chain.readable_segments(), chain.writable_segments());
                    assert!(
                        read.len() + write.len() <= size,
                        "a chain longer than the queue"
                    );
                    assert!(chain.readable().len() + chain.writable().len() <= 1 << 32);
                    for segment in read.iter().chain(write) {
                        assert!(segment.address.checked_add(segment.length.into()).is_some());
                    }
                    held.push(head);
                    assert!(held.len() <= size, "more in flight than the queue holds");
                }
            }),
            Action::PutBack => {
                if last_was_pop && let Some(head) = held.pop() {
                    mapped.put_back(head);
                }
                Ok(())
            }
            Action::Complete(which, written) => match held.len() {
                0 => Ok(()),
                count => {
                    let head = held.remove(usize::from(which) % count);
                    mapped.complete(head, written)
                }
            },
            Action::Publish => mapped.publish().map(drop),
            Action::Quiet => mapped.disable_kicks(),
            Action::Listen => mapped.enable_kicks().map(drop),
        };
        last_was_pop = popped && result.is_ok() && !queue.is_failed();
        errors += usize::from(result.is_err());
        assert!(errors <= 1, "an error is reported once");
        assert_eq!(errors == 1, queue.is_failed(), "an error ends the queue");
    }
}
