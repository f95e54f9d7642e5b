// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entropy device.

use std::io::{self, Read};

use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::PackedRing;
use hvkit_virtio_devices::limit::{Limits, Rate};

use crate::support::END;
use crate::support::guest::{Bus, Guest, TRANSPORTS, Transport, ring_at};

/// Counts up, and fails where it is told.
struct Counting {
    next: u8,
    left: usize,
}

impl Read for Counting {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Err(io::Error::other("the source is dry"));
        }
        let count = data.len().min(self.left);
        for byte in &mut data[..count] {
            (*byte, self.next) = (self.next, self.next.wrapping_add(1));
        }
        self.left -= count;
        Ok(count)
    }
}

fn counting(left: usize) -> Entropy {
    Entropy::new(Counting { next: 1, left })
}

#[test]
fn buffers_are_filled_in_order() {
    for transport in TRANSPORTS {
        let entropy = counting(usize::MAX);
        let counters = entropy.counters().clone();
        let mut guest = Guest::new(Box::new(entropy), transport);
        let mut rings = guest.start(u64::MAX, &[0]);
        let ring = &mut rings[0];
        ring.submit(&[
            Writable(0x8000, 3),
            Writable(0x9000, 0),
            Writable(0xa000, 2),
        ]);
        ring.submit(&[Writable(0xb000, 1)]);
        guest.run(0);
        assert_eq!(ring.take().unwrap().length, 5);
        assert_eq!(ring.take().unwrap().length, 1);
        assert_eq!(guest.read(0x8000, 4), [1, 2, 3, 0]);
        assert_eq!(guest.read(0xa000, 3), [4, 5, 0]);
        assert_eq!(guest.read(0xb000, 2), [6, 0]);
        let counts = counters.read();
        assert_eq!((counts.chains, counts.bytes, counts.errors), (2, 6, 0));
        assert_eq!(counts.interrupts, 1);
    }
}

#[test]
fn a_driver_gets_what_there_is() {
    let mut guest = Guest::new(Box::new(counting(usize::MAX)), Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0]);
    let ring = &mut rings[0];
    // More than one chain gets; nothing; a part that is not in memory; nothing to write to.
    ring.submit(&[Writable(0x4_0000, 0x2_0000)]);
    ring.submit(&[Writable(0, 0)]);
    ring.submit(&[Writable(0x8000, 4096), Writable(END, 16)]);
    ring.submit(&[Readable(0x8000, 16)]);
    guest.run(0);
    let lengths: Vec<_> = std::iter::from_fn(|| ring.take())
        .map(|used| used.length)
        .collect();
    assert_eq!(lengths, [0x1_0000, 0, 4096, 0]);
    assert_eq!(guest.read(0x4_0000 + 0x1_0000, 1), [0]);
}

#[test]
fn a_source_that_fails_is_told_but_not_for_ever() {
    let mut guest = Guest::new(Box::new(counting(4096)), Transport::Mmio);
    let mut rings = guest.start(u64::MAX, &[0]);
    let ring = &mut rings[0];
    ring.submit(&[Writable(0x8000, 5000)]);
    guest.run(0);
    // What was there was given.
    assert_eq!(ring.take().unwrap().length, 4096);
    for _ in 0..20 {
        ring.submit(&[Writable(0x8000, 16)]);
        guest.run(0);
        assert_eq!(ring.take().unwrap().length, 0);
    }
    let told = guest.told.lock().unwrap();
    // The 1st, 2nd, 4th, 8th and 16th of 21.
    assert_eq!(told.len(), 5, "{told:?}");
    assert!(told[0].contains("queue 0") && told[0].contains("the source is dry"));
    assert!(told[4].contains("16 requests"));
}

#[test]
fn a_limit_makes_the_driver_wait() {
    let rate = Rate {
        burst: 16,
        ..Rate::per_second(1)
    };
    let entropy = counting(usize::MAX).with_limits(Limits {
        bytes: Some(rate),
        requests: None,
    });
    let counters = entropy.counters().clone();
    let mut guest = Guest::new(Box::new(entropy), Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0]);
    let ring = &mut rings[0];
    for _ in 0..3 {
        ring.submit(&[Writable(0x8000, 100)]);
    }
    guest.run(0);
    // The first passes, although it is more than the burst; the debt is 84 seconds.
    assert_eq!(ring.take().unwrap().length, 100);
    assert_eq!(ring.take(), None);
    assert!(counters.read().limited >= 1);
    // And a reset is not held up by it.
    assert_eq!(guest.set_status(0), 0);
}

/// The same device by a packed ring, on both transports.
#[test]
fn a_packed_ring_serves_as_well() {
    for transport in TRANSPORTS {
        let mut guest = Guest::new(Box::new(counting(usize::MAX)), transport);
        let memory = guest.memory.clone();
        // 7 descriptors: a size that no split queue has.
        let setup = |packed: &mut dyn FnMut() -> PackedRing| packed();
        let mut ring = match &mut guest.bus {
            Bus::Pci(driver) => {
                assert_ne!(driver.negotiate_packed(u64::MAX) & 1 << 34, 0);
                setup(&mut || driver.queue_packed(0, &memory, ring_at(0), 7))
            }
            Bus::Mmio(driver) => {
                assert_ne!(driver.negotiate_packed(u64::MAX) & 1 << 34, 0);
                setup(&mut || driver.queue_packed(0, &memory, ring_at(0), 7))
            }
        };
        assert_eq!(guest.set_status(0xf), 0xf);
        for round in 0..20u32 {
            let id = ring.submit(&[Writable(0x8000, 3), Writable(0x9000, round)]);
            guest.run(0);
            let used = ring.take().unwrap();
            assert_eq!(
                (used.head, used.length),
                (id.into(), 3 + round),
                "{transport:?}"
            );
        }
    }
}
