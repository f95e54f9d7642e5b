// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio-mmio's registers, by the table of 4.2.2.

use std::sync::{Arc, Mutex};

use hvkit_virtio_devices::fake::{ByHand, Line, MmioDriver};
use hvkit_virtio_devices::pci::Level;
use hvkit_virtio_devices::transport::mmio::{MmioError, NOTIFY, VirtioMmio};

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
    b.driver.put(0x030, 0);
    b.driver.put(0x044, 0);
    assert_eq!(b.driver.get(0x044), 1, "a live queue");
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
