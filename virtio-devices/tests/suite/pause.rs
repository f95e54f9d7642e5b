// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A live device that is not to run: because it masters no bus, or because the VMM has paused it.

use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::Writable;
use hvkit_virtio_devices::pci::PciFunction;

use crate::support::guest::{Bus, Guest, TRANSPORTS, Transport};

fn guest(transport: Transport) -> Guest {
    Guest::new(Box::new(Entropy::new(std::io::repeat(7))), transport)
}

fn set_command(guest: &mut Guest, command: u16) {
    let Bus::Pci(driver) = &mut guest.bus else {
        panic!("a command register is PCI's");
    };
    driver.function.config_write(4, &command.to_le_bytes());
}

#[test]
fn without_bus_master_nothing_is_read_or_written() {
    let mut guest = guest(Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0]);
    assert_eq!(guest.workers.running(), 1);
    set_command(&mut guest, 2);
    assert_eq!(guest.workers.running(), 0);
    rings[0].submit(&[Writable(0x8000, 4)]);
    guest.run(0);
    assert_eq!(rings[0].take(), None);
    assert_eq!(guest.read(0x8000, 4), [0; 4]);
    set_command(&mut guest, 6);
    // Without another notification: the one that came is still there.
    guest.step();
    assert_eq!(rings[0].take().unwrap().length, 4);
    assert_eq!(guest.read(0x8000, 4), [7; 4]);
}

#[test]
fn a_device_that_goes_live_without_bus_master_waits() {
    let mut guest = guest(Transport::Pci);
    set_command(&mut guest, 2);
    let mut rings = guest.start(u64::MAX, &[0]);
    assert_eq!(guest.workers.running(), 0);
    rings[0].submit(&[Writable(0x8000, 4)]);
    guest.run(0);
    assert_eq!(rings[0].take(), None);
    // A reset forgets the workers that never ran.
    assert_eq!(guest.set_status(0), 0);
    set_command(&mut guest, 6);
    assert_eq!(guest.workers.running(), 0);
    let mut rings = guest.start(u64::MAX, &[0]);
    rings[0].submit(&[Writable(0x8000, 4)]);
    guest.run(0);
    assert_eq!(rings[0].take().unwrap().length, 4);
}

#[test]
fn without_bus_master_no_message_is_sent_and_none_is_lost() {
    let mut guest = guest(Transport::Pci);
    let mut rings = guest.start(u64::MAX, &[0]);
    guest.vectors.take();
    // The device finds that the driver broke the rules just when it may not say so.
    rings[0].offer(999);
    guest.kick(0);
    set_command(&mut guest, 2);
    guest.step();
    assert!(guest.vectors.delivered().is_empty());
    set_command(&mut guest, 6);
    guest.step();
    assert_eq!(guest.vectors.delivered(), [0], "the configuration's vector");
    assert_ne!(guest.status() & 0x40, 0);
}

#[test]
fn a_pause_holds_and_a_resume_goes_on() {
    for transport in TRANSPORTS {
        let mut guest = guest(transport);
        let mut rings = guest.start(u64::MAX, &[0]);
        guest.pause();
        guest.pause();
        rings[0].submit(&[Writable(0x8000, 4)]);
        guest.run(0);
        assert_eq!(rings[0].take(), None);
        guest.resume();
        guest.step();
        assert_eq!(rings[0].take().unwrap().length, 4);
        // A reset while paused is complete, and the pause goes on.
        guest.pause();
        assert_eq!(guest.set_status(0), 0);
        let mut rings = guest.start(u64::MAX, &[0]);
        rings[0].submit(&[Writable(0x8000, 4)]);
        guest.run(0);
        assert_eq!(rings[0].take(), None);
        guest.resume();
        guest.step();
        assert_eq!(rings[0].take().unwrap().length, 4);
    }
}

#[test]
fn both_reasons_must_end() {
    let mut guest = guest(Transport::Pci);
    guest.start(u64::MAX, &[0]);
    set_command(&mut guest, 2);
    let Bus::Pci(driver) = &mut guest.bus else {
        panic!("on PCI");
    };
    driver.function.pause();
    driver.function.resume();
    assert_eq!(guest.workers.running(), 0);
    set_command(&mut guest, 6);
    assert_eq!(guest.workers.running(), 1);
}

#[test]
fn a_worker_that_does_not_stop_is_no_worker_to_go_on_with() {
    let mut guest = guest(Transport::Pci);
    guest.start(u64::MAX, &[0]);
    guest.workers.set_stuck(true);
    set_command(&mut guest, 2);
    set_command(&mut guest, 6);
    assert_ne!(guest.status() & 0x40, 0);
    let told = guest.told.lock().unwrap().join("; ");
    assert!(
        told.contains("1 workers are in calls that do not return"),
        "{told}"
    );
    guest.workers.set_stuck(false);
    assert_eq!(guest.set_status(0), 0);
}
