// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-mmio's registers, by the table of 4.2.2.

use std::sync::{Arc, Mutex};

use hvkit_virtio_devices::balloon::{self, Balloon};
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
use hvkit_virtio_devices::fake::{ByHand, Line, MmioDriver, Ring};
use hvkit_virtio_devices::pci::Level;
use hvkit_virtio_devices::queue::Position;
use hvkit_virtio_devices::reclaim::HostPages;
use hvkit_virtio_devices::transport::mmio::{MmioError, NOTIFY, VirtioMmio};

use crate::moved::moved;
use crate::net_pairs::card;
use crate::support::guest::{Bus, Guest, Transport};
use crate::support::memory;
use crate::support::probe::{Memory, Probe, Seen};
use crate::transport_life::is_read_after_the_change;

struct Bench {
    driver: MmioDriver<Memory>,
    memory: Memory,
    line: Arc<Line>,
    workers: ByHand,
    seen: Arc<Mutex<Seen>>,
}

fn bench() -> Bench {
    let (memory, line) = (memory(), Arc::new(Line::default()));
    let (workers, seen) = (ByHand::default(), Arc::<Mutex<Seen>>::default());
    let probe = Probe {
        seen: seen.clone(),
        sizes: vec![8, 16, 256],
    };
    let runner = Box::new(workers.clone());
    let device = VirtioMmio::new(Box::new(probe), memory.clone(), line.clone(), runner).unwrap();
    Bench {
        driver: MmioDriver::probe(device),
        memory,
        line,
        workers,
        seen,
    }
}

impl Bench {
    fn start(&mut self) {
        self.driver.negotiate(u64::MAX);
        self.driver.queue(0, &self.memory, 0x1000, 8);
        self.driver.queue(2, &self.memory, 0x4000, 64);
        assert_eq!(self.driver.set_status(0xf), 0xf);
    }
}

#[test]
fn the_device_says_what_it_is() {
    let mut b = bench();
    assert_eq!(b.driver.get(0x000), 0x7472_6976);
    assert_eq!(b.driver.get(0x004), 2);
    assert_eq!(b.driver.get(0x008), 42, "the probe's type");
    // INDIRECT_DESC, EVENT_IDX, the probe's; VERSION_1, RING_PACKED, IN_ORDER, NOTIFICATION_DATA, the probe's.
    for (word, features) in [(0, 0x3000_0081), (1, 0x0080_004d), (2, 0), (u32::MAX, 0)] {
        b.driver.put(0x014, word);
        assert_eq!(b.driver.get(0x010), features, "word {word}");
    }
    for (queue, max) in [
        (0, 8),
        (1, 16),
        (2, 256),
        (3, 0),
        (0x1_0000, 0),
        (u32::MAX, 0),
    ] {
        b.driver.put(0x030, queue);
        assert_eq!(b.driver.get(0x034), max, "queue {queue}");
    }
    // "If the memory region does not exist [...] reads as all ones" (SHMLen, SHMBase).
    for offset in [0x0b0, 0x0b4, 0x0b8, 0x0bc] {
        assert_eq!(b.driver.get(offset), u32::MAX);
    }
    // Write-only and unassigned ones.
    for offset in [0x020, 0x038, 0x050, 0x064, 0x080, 0x0a4, 0x018, 0x0c8] {
        assert_eq!(b.driver.get(offset), 0, "{offset:#x}");
    }
}

#[test]
fn registers_are_words_and_configuration_is_bytes() {
    let mut b = bench();
    b.seen.lock().unwrap().config = [1, 2, 3, 4, 5, 6, 7, 8];
    let device = &mut b.driver.device;
    for length in [1, 2, 3, 5, 8] {
        let mut data = vec![0xee; length];
        device.read(0, &mut data);
        assert_eq!(data, vec![0; length], "a read of {length} bytes");
        device.write(0x070, &vec![1; length]);
    }
    let mut data = [0; 4];
    device.read(2, &mut data);
    assert_eq!(data, [0; 4], "not aligned");
    let mut data = [0; 3];
    device.read(0x102, &mut data);
    assert_eq!(data, [3, 4, 5]);
    device.write(0x107, &[9]);
    device.read(0x106, &mut data);
    assert_eq!(data, [7, 9, 0]);
    assert_eq!(b.driver.status(), 0, "a status of another width was taken");
}

#[test]
fn a_queue_is_ready_until_it_is_not_or_the_device_is_live() {
    let mut b = bench();
    b.driver.negotiate(u64::MAX);
    b.driver.put(0x030, 1);
    b.driver.put(0x044, 2);
    assert_eq!(b.driver.get(0x044), 0, "only 1 makes it ready");
    b.driver.put(0x044, 1);
    assert_eq!(b.driver.get(0x044), 1);
    b.driver.put(0x044, 0);
    assert_eq!(b.driver.get(0x044), 0);
    b.start();
    // "Reading from this register returns the last value written to it" (4.2.2), of a live queue, too.
    b.driver.put(0x030, 0);
    b.driver.put(0x044, 0);
    assert_eq!(b.driver.get(0x044), 0, "a live queue");
    assert_eq!(
        b.workers.running(),
        0,
        "one that does not say what it serves"
    );
    let seen = b.seen.lock().unwrap();
    let activated = seen.activated.as_ref().unwrap();
    assert_eq!(activated.queues, [(0, 8), (2, 64)]);
}

#[test]
fn the_line_is_up_until_all_is_acknowledged() {
    let mut b = bench();
    b.start();
    let interrupts = {
        let seen = b.seen.lock().unwrap();
        Arc::clone(&seen.activated.as_ref().unwrap().interrupts)
    };
    assert_eq!(
        (b.driver.get(0x060), b.line.level()),
        (0, Level::Deasserted)
    );
    interrupts.queue(2);
    assert_eq!((b.driver.get(0x060), b.line.level()), (1, Level::Asserted));
    let generation = b.driver.get(0x0fc);
    interrupts.config();
    assert_eq!(b.driver.get(0x060), 3);
    assert_ne!(b.driver.get(0x0fc), generation);
    b.driver.put(0x064, 1);
    assert_eq!((b.driver.get(0x060), b.line.level()), (2, Level::Asserted));
    b.driver.put(0x064, 2);
    assert_eq!(
        (b.driver.get(0x060), b.line.level()),
        (0, Level::Deasserted)
    );
    interrupts.queue(0);
    assert_eq!(b.driver.set_status(0), 0);
    assert_eq!(
        (b.driver.get(0x060), b.line.level()),
        (0, Level::Deasserted)
    );
}

#[test]
fn a_notification_names_its_queue() {
    let mut b = bench();
    b.start();
    b.workers.step(10);
    b.seen.lock().unwrap().kicked.clear();
    b.driver.put(NOTIFY, 2);
    b.workers.step(10);
    assert_eq!(std::mem::take(&mut b.seen.lock().unwrap().kicked), [2]);
    // With NOTIFICATION_DATA the upper half says how far the driver is.
    b.driver.put(NOTIFY, 0x8123_0000);
    b.driver.put(NOTIFY, 77);
    b.workers.step(10);
    assert_eq!(std::mem::take(&mut b.seen.lock().unwrap().kicked), [0]);
    assert_eq!(b.driver.device.doorbells().len(), 3);
    b.driver.device.doorbells()[2].write(1).unwrap();
    b.workers.step(10);
    assert_eq!(b.seen.lock().unwrap().kicked, [2]);
}

#[test]
fn a_device_that_no_driver_could_use() {
    let new = |sizes: Vec<u16>| {
        let probe = Probe {
            seen: Arc::default(),
            sizes,
        };
        let line = Arc::new(Line::default());
        VirtioMmio::new(Box::new(probe), memory(), line, Box::<ByHand>::default())
    };
    assert!(matches!(
        new(vec![8; 0x1_0000]),
        Err(MmioError::Queues { count: 0x1_0000 })
    ));
    for size in [0, 3, 0xffff] {
        let error = new(vec![8, size]).unwrap_err();
        assert!(matches!(error, MmioError::QueueSize { index: 1, size: s } if s == size));
    }
}

/// "The device MUST NOT access virtual queue contents when QueueReady is zero" (4.2.2.1); "To stop using the queue the driver
/// MUST write zero (0x0) to this QueueReady and MUST read the value back to ensure synchronization" (4.2.2.2).
#[test]
fn a_live_queue_is_stopped_when_it_reads_as_not_ready() {
    let balloon = || Balloon::new(balloon::Options::new(), Arc::new(HostPages::new(memory())));
    let mut guest = Guest::new(Box::new(balloon().unwrap()), Transport::Mmio);
    let mut rings = guest.start(1 << 32, &[0, 1]);
    let deflate = |guest: &mut Guest, value| {
        let Bus::Mmio(driver) = &mut guest.bus else {
            unreachable!("it is on MMIO");
        };
        driver.put(0x030, 1);
        if let Some(value) = value {
            driver.put(0x044, value);
        }
        driver.get(0x044)
    };
    let serves = |guest: &mut Guest, rings: &mut [Ring], queue: usize| {
        rings[queue].submit(&[Readable(0x8000, 4)]);
        guest.run(queue as u16);
        rings[queue].take().is_some()
    };
    for queue in [0, 1] {
        assert!(serves(&mut guest, &mut rings, queue));
    }
    // A worker in a call that has not returned has the queue still, and all wait for it.
    guest.workers.set_stuck(true);
    assert_eq!(deflate(&mut guest, Some(0)), 1);
    assert_eq!(deflate(&mut guest, None), 1);
    guest.workers.set_stuck(false);
    assert_eq!(deflate(&mut guest, None), 0);
    assert!(!serves(&mut guest, &mut rings, 1));
    // The others go on; what was stopped stays stopped, until a reset.
    assert!(serves(&mut guest, &mut rings, 0));
    assert_eq!(deflate(&mut guest, Some(1)), 0);
    assert!(!serves(&mut guest, &mut rings, 1));
    assert_eq!(guest.status(), 0xf);

    // And so it is in a machine that goes on elsewhere, and elsewhere again.
    let mut guest = moved(&mut guest, Box::new(balloon().unwrap()));
    let mut guest = moved(&mut guest, Box::new(balloon().unwrap()));
    assert_eq!(deflate(&mut guest, None), 0);
    assert!(!serves(&mut guest, &mut rings, 1));
    assert_eq!(guest.set_status(0), 0);
    let mut rings = guest.start(1 << 32, &[0, 1]);
    for queue in [0, 1] {
        assert!(serves(&mut guest, &mut rings, queue));
    }
}

/// While it is paused, too; and one that was being stopped when the machine was saved is not started where it goes on.
#[test]
fn a_queue_is_stopped_whatever_holds_the_device() {
    let entropy = || Box::new(Entropy::new(std::io::repeat(7)));
    for paused in [true, false] {
        let mut guest = Guest::new(entropy(), Transport::Mmio);
        let mut rings = guest.start(1 << 32, &[0]);
        let ready = |guest: &mut Guest, value: Option<u32>| {
            let Bus::Mmio(driver) = &mut guest.bus else {
                unreachable!("it is on MMIO");
            };
            value.inspect(|value| driver.put(0x044, *value));
            driver.get(0x044)
        };
        if paused {
            guest.pause();
            assert_eq!(ready(&mut guest, Some(0)), 0);
            guest.resume();
        } else {
            guest.workers.set_stuck(true);
            assert_eq!(ready(&mut guest, Some(0)), 1);
            guest.workers.set_stuck(false);
            guest = moved(&mut guest, entropy());
            assert_eq!(ready(&mut guest, None), 0);
        }
        rings[0].submit(&[Writable(0x8000, 4)]);
        guest.run(0);
        assert_eq!(rings[0].take(), None);
        assert_eq!(guest.status(), 0xf);
        // A write to what is stopped stops nothing more.
        assert_eq!(ready(&mut guest, Some(0)), 0);
    }
}

/// A card's receive and transmit queue have one worker: the one stops with the other, and is saved as it stands.
#[test]
fn a_queue_stops_with_what_is_served_beside_it() {
    let (card, _wires) = card();
    let mut guest = Guest::new(card, Transport::Mmio);
    let mut rings = guest.start(1 << 32, &[0, 1]);
    let mut sends = |guest: &mut Guest| {
        rings[1].submit(&[Readable(0x9000, 72)]);
        guest.run(1);
        rings[1].take().is_some()
    };
    assert!(sends(&mut guest));
    let Bus::Mmio(driver) = &mut guest.bus else {
        unreachable!("it is on MMIO");
    };
    driver.put(0x030, 0);
    driver.put(0x044, 0);
    assert_eq!(driver.get(0x044), 0);
    driver.put(0x030, 1);
    assert_eq!(driver.get(0x044), 1, "the driver has not stopped it");
    assert!(!sends(&mut guest));
    guest.pause();
    let Bus::Mmio(driver) = &mut guest.bus else {
        unreachable!("it is on MMIO");
    };
    let saved = driver.device.save().unwrap().session.queues;
    assert_eq!([saved[0].enabled, saved[1].enabled], [false, true]);
    let one = Position {
        available: 1,
        used: 1,
    };
    assert_eq!(saved[1].position, Some(one));
}

/// "ConfigGeneration" (4.2.2.1): no part of a change is seen with the number of before.
#[test]
fn a_generation_is_read_before_a_change_or_after_all_of_it() {
    let mut b = bench();
    b.start();
    let activated = b.seen.lock().unwrap().activated.take().unwrap();
    let before = b.driver.get(0x0fc);
    let mut after = before;
    let read = || after = b.driver.get(0x0fc);
    assert!(is_read_after_the_change(&activated.interrupts, read));
    assert_ne!(after, before);
}
