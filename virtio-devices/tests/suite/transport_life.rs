// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From DRIVER_OK to reset: what a device is given, what stops it, and what is left afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use hvkit_virtio_devices::device::Interrupts;
use hvkit_virtio_devices::fake::Event;
use hvkit_virtio_devices::pci::PciFunction;

use crate::support::probe::Bench;
use crate::support::{END, header};

const NEEDS_RESET: u8 = 0x4f;

#[test]
fn a_device_gets_what_was_settled() {
    let mut bench = Bench::new();
    bench.start();
    let seen = bench.seen.lock().unwrap();
    let activated = seen.activated.as_ref().unwrap();
    // The probe's own features and the transport's.
    let queues = 1 << 28 | 1 << 29 | 1 << 35;
    assert_eq!(
        activated.features,
        1 << 32 | 1 << 38 | queues | 1 << 55 | 1 << 7 | 1
    );
    assert_eq!(
        activated.queues,
        [(0, 8), (2, 64)],
        "enabled ones, with the driver's size"
    );
    assert_eq!((seen.activations, bench.workers.running()), (1, 1));
    assert!(seen.failures.is_empty());
}

#[test]
fn a_second_driver_ok_does_nothing() {
    let mut bench = Bench::new();
    bench.start();
    bench.driver.set_status(0xf);
    assert_eq!(bench.driver.set_status(0x4), 0xf);
    assert_eq!(bench.seen.lock().unwrap().activations, 1);
}

#[test]
fn a_queue_that_cannot_be_used_stops_the_device() {
    for (offset, value) in [
        (0x20, END),
        (0x20, 0x1008),
        (0x28, 0x1001),
        (0x30, 0x2002),
        (0x34, 1),
    ] {
        let mut bench = Bench::new();
        bench.driver.enable_msix();
        bench.driver.negotiate(u64::MAX);
        let common = bench.driver.common;
        bench.driver.put(common, 0x16, 2, 1);
        bench.driver.put(common, offset, 4, value);
        bench.driver.put(common, 0x1c, 2, 1);
        bench.vectors.take();
        assert_eq!(
            bench.driver.set_status(0xf),
            NEEDS_RESET,
            "{offset:#x} {value:#x}"
        );
        assert_eq!(bench.vectors.delivered(), [0], "the configuration's vector");
        let seen = bench.seen.lock().unwrap();
        assert_eq!((seen.activations, bench.workers.running()), (0, 0));
        assert_eq!(seen.failures, ["queue 1 is broken"]);
    }
}

#[test]
fn a_device_or_runner_that_fails_is_reported_and_can_be_reset() {
    let mut bench = Bench::new();
    bench.seen.lock().unwrap().refuse = true;
    bench.driver.negotiate(u64::MAX);
    assert_eq!(bench.driver.set_status(0xf), NEEDS_RESET);
    assert_eq!(
        bench.seen.lock().unwrap().failures,
        ["the device could not be activated"]
    );
    bench.seen.lock().unwrap().refuse = false;
    bench.start();

    let mut bench = Bench::new();
    bench.workers.refuse_after(0);
    bench.driver.negotiate(u64::MAX);
    assert_eq!(bench.driver.set_status(0xf), NEEDS_RESET);
    assert_eq!(
        bench.seen.lock().unwrap().failures,
        ["worker probe could not be started"]
    );
    assert_eq!(bench.driver.set_status(0), 0);
}

#[test]
fn half_a_device_does_not_run() {
    use hvkit_virtio_devices::block::Options;
    use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
    let file = crate::support::image(64);
    let options = Options::new(file.path()).with_queues(2);
    let mut machine = crate::support::Machine::with_disk(options);
    machine.workers.refuse_after(1);
    machine.driver.negotiate(u64::MAX);
    let mut ring = machine.driver.queue(0, &machine.memory, 0x1000, 256);
    machine.driver.queue(1, &machine.memory, 0x4000, 256);
    assert_eq!(machine.driver.set_status(0xf), NEEDS_RESET);
    machine.write(0x8000, &header(4, 0));
    ring.submit(&[Readable(0x8000, 16), Writable(0x9000, 1)]);
    machine.run();
    assert_eq!((ring.take(), machine.workers.running()), (None, 0));
    assert_eq!(machine.driver.set_status(0), 0);
}

#[test]
fn a_reset_stops_the_worker_and_forgets_everything() {
    let mut bench = Bench::new();
    bench.driver.enable_msix();
    bench.start();
    let old = bench.interrupts();
    bench.driver.kick(0);
    assert_eq!(bench.driver.set_status(0), 0);
    let resets = bench.seen.lock().unwrap().resets;
    assert_eq!(bench.workers.running(), 0);
    // MSI-X is PCI's: still enabled. But no vector is assigned, so an interrupt of old leads nowhere.
    bench.vectors.take();
    old.queue(0);
    old.config();
    assert_eq!(bench.vectors.take(), [] as [Event; 0]);
    bench.start();
    assert_eq!(
        bench.seen.lock().unwrap().resets,
        resets + 1,
        "start resets too"
    );
    bench.workers.step(1);
    assert!(
        bench.seen.lock().unwrap().kicked.is_empty(),
        "a kick from before the reset"
    );
}

#[test]
fn a_reset_is_not_complete_before_the_worker_has_stopped() {
    let mut bench = Bench::new();
    bench.start();
    let resets = bench.seen.lock().unwrap().resets;
    bench.workers.set_stuck(true);
    assert_eq!(bench.driver.set_status(0), 0xf, "not yet");
    // Nothing can be set up meanwhile: an old worker must never meet a new queue.
    let common = bench.driver.common;
    for status in [1, 3, 0xb, 0xf, 0x80] {
        assert_eq!(bench.driver.set_status(status), 0xf);
    }
    bench.driver.accept(0);
    bench.driver.put(common, 0x16, 2, 1);
    for (offset, width) in [(0x18, 2), (0x1c, 2), (0x20, 4), (0x0c, 4)] {
        let before = bench.driver.get(common, offset, width);
        bench.driver.put(common, offset, width, 1);
        assert_eq!(
            bench.driver.get(common, offset, width),
            before,
            "{offset:#x}"
        );
    }
    let device = bench.driver.device;
    bench.driver.put(device, 0, 4, 0x1234_5678);
    assert_eq!(bench.driver.get(device, 0, 4), 0);
    assert_eq!(bench.seen.lock().unwrap().resets, resets);
    bench.workers.set_stuck(false);
    assert_eq!(bench.driver.status(), 0, "the driver polls until it is");
    assert_eq!(bench.seen.lock().unwrap().resets, resets + 1);
    bench.start();
}

#[test]
fn a_failed_device_says_so_once_and_waits() {
    let mut bench = Bench::new();
    bench.driver.enable_msix();
    bench.start();
    let interrupts = bench.interrupts();
    bench.vectors.take();
    let why = hvkit_virtio_devices::device::Failure::Unanswerable { index: 2, head: 5 };
    interrupts.needs_reset(&why);
    assert_eq!(bench.driver.status(), NEEDS_RESET);
    assert_eq!(bench.vectors.delivered(), [0]);
    let failures = bench.seen.lock().unwrap().failures.clone();
    assert_eq!(failures, ["queue 2: chain 5 has no room for an answer"]);
    // A driver cannot clear it but by a reset.
    assert_eq!(bench.driver.set_status(0xf), NEEDS_RESET);
    assert_eq!(bench.driver.set_status(0), 0);
    bench.start();
    assert_eq!(bench.driver.status(), 0xf);
}

#[test]
fn a_notification_reaches_its_queue() {
    let mut bench = Bench::new();
    bench.start();
    let (notify, stride) = (bench.driver.notify, u64::from(bench.driver.notify_stride));
    let kicked = |bench: &Bench| {
        bench.workers.step(1);
        std::mem::take(&mut bench.seen.lock().unwrap().kicked)
    };
    assert!(kicked(&bench).is_empty());
    for (queue, expected) in [
        (0, vec![0]),
        (2, vec![2]),
        (1, vec![]),
        (3, vec![]),
        (1000, vec![]),
    ] {
        for width in [1, 2, 4, 8] {
            bench.driver.put(notify, queue * stride, width, queue);
            assert_eq!(kicked(&bench), expected, "queue {queue}");
        }
    }
    bench.driver.kick(2);
    assert_eq!(kicked(&bench), [2]);
    assert_eq!(bench.driver.get(notify, 0, 4), 0, "reads as nothing");
}

#[test]
fn a_doorbell_is_the_same_as_a_write_where_it_says() {
    let mut bench = Bench::new();
    let doorbells: Vec<_> = bench
        .driver
        .function
        .doorbells()
        .iter()
        .map(|d| (d.bar, d.offset, d.event.try_clone().unwrap()))
        .collect();
    let notify = bench.driver.notify;
    let stride = u64::from(bench.driver.notify_stride);
    let places: Vec<_> = doorbells
        .iter()
        .map(|(bar, offset, _)| (*bar, *offset))
        .collect();
    let expected: Vec<_> = (0..3)
        .map(|i| (notify.bar, notify.offset + i * stride))
        .collect();
    assert_eq!(places, expected);
    bench.start();
    for (queue, expected) in [(2, vec![2]), (1, vec![]), (0, vec![0])] {
        doorbells[queue].2.write(1).unwrap();
        bench.workers.step(1);
        assert_eq!(
            std::mem::take(&mut bench.seen.lock().unwrap().kicked),
            expected
        );
    }
}

#[test]
fn a_notification_before_driver_ok_is_not_lost() {
    // Not allowed to a driver; but what it announced is looked at once the device is live.
    let mut bench = Bench::new();
    bench.driver.negotiate(u64::MAX);
    bench.driver.queue(2, &bench.memory, 0x4000, 64);
    bench.driver.kick(2);
    bench.driver.set_status(0xf);
    bench.workers.step(1);
    assert_eq!(bench.seen.lock().unwrap().kicked, [2]);
}

#[test]
fn a_disk_comes_back_after_a_reset_in_the_middle_of_its_work() {
    use hvkit_virtio_devices::block::Options;
    use hvkit_virtio_devices::fake::Buffer::{Readable, Writable};
    let file = crate::support::image(64);
    let mut machine = crate::support::Machine::with_disk(Options::new(file.path()));
    for round in 0..3 {
        let mut ring = machine.start(u64::MAX);
        machine.write(0x8000, &header(4, 0));
        for _ in 0..100 {
            ring.submit(&[Readable(0x8000, 16), Writable(0x9000, 1)]);
        }
        machine.driver.kick(0);
        machine.workers.step(round);
        assert_eq!(machine.driver.set_status(0), 0);
        let used = std::iter::from_fn(|| ring.take()).count();
        assert_eq!(used, 32 * round, "whole batches");
    }
    let mut ring = machine.start(u64::MAX);
    ring.submit(&[Readable(0x8000, 16), Writable(0x9000, 1)]);
    machine.run();
    assert!(ring.take().is_some());
}

/// Reads a generation while configuration changes: whether the change was over by then.
pub(crate) fn is_read_after_the_change(
    interrupts: &Arc<dyn Interrupts>,
    read: impl FnOnce(),
) -> bool {
    let over = AtomicBool::new(false);
    let (begun, changing) = channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            interrupts.config_changes(&mut || {
                begun.send(()).unwrap();
                thread::sleep(Duration::from_millis(50));
                over.store(true, Ordering::SeqCst);
            });
        });
        changing.recv().unwrap();
        read();
        over.load(Ordering::SeqCst)
    })
}

/// No part of a change is seen with the generation of before (2.5.2).
#[test]
fn a_generation_is_read_before_a_change_or_after_all_of_it() {
    let mut bench = Bench::new();
    bench.start();
    let interrupts = bench.interrupts();
    let common = bench.driver.common;
    let before = bench.driver.get(common, 0x15, 1);
    let mut after = before;
    let read = || after = bench.driver.get(common, 0x15, 1);
    assert!(is_read_after_the_change(&interrupts, read));
    assert_ne!(after, before);
}
