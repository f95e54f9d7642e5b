// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts from the function's events to the guest's controllers.

use super::*;
use crate::interrupts::Target;
use crate::passthrough::fake::Told;
use hvkit_virtio_devices::pci::{MsiError, MsiMessage, MsiVectors};
use vmm_sys_util::eventfd::EventFd;

fn message(data: u32) -> Target {
    Target::Message(MsiMessage {
        address: 0xfee0_1000,
        data,
    })
}

/// Writes an entry of the MSI-X table, masked or not.
fn entry(bench: &mut Bench, vector: u64, data: u8, masked: u8) {
    let entry = [
        0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, data, 0, 0, 0, masked, 0, 0, 0,
    ];
    bench.function.bar_write(0, 0x2000 + 16 * vector, &entry);
}

fn pending(bench: &mut Bench) -> u64 {
    let mut bits = [0; 8];
    bench.function.bar_read(0, 0x3000, &mut bits);
    u64::from_le_bytes(bits)
}

fn told(bench: &Bench) -> Vec<Told> {
    std::mem::take(&mut bench.physical.device().told)
}

#[test]
fn the_pin_is_in_use_until_there_are_messages() {
    let mut bench = Bench::new();
    assert_eq!(told(&bench), [Told::Pin]);
    bench.physical.interrupt(0);
    assert_eq!(bench.kernel.delivered(), [Target::IoApic(17)]);
    bench.write_half(MSI + 2, 0x0001);
    assert_eq!(told(&bench), [Told::Msi(1)]);
    bench.write_half(MSIX + 2, 0x8000);
    assert_eq!(told(&bench), [Told::Msix(5)]);
    bench.write_half(MSI + 2, 0);
    assert_eq!(told(&bench), []);
    bench.write_half(MSIX + 2, 0);
    assert_eq!(told(&bench), [Told::Pin]);
}

#[test]
fn a_function_without_pin_has_none() {
    let mut config = config();
    config[0x3d] = 0;
    let mut bench = Bench::with(FakePhysical::new(config, LENGTHS)).unwrap();
    assert_eq!(told(&bench), []);
    assert_eq!(bench.read(0x3c), 0);
    assert_eq!(bench.kernel.listening(), 0);
    bench.write_half(MSIX + 2, 0x8000);
    bench.write_half(MSIX + 2, 0);
    assert_eq!(told(&bench), [Told::Msix(5), Told::Off]);
}

#[test]
fn msix_vectors_deliver_what_the_guest_wrote() {
    let mut bench = Bench::new();
    entry(&mut bench, 0, 0x31, 0);
    entry(&mut bench, 4, 0x35, 0);
    assert_eq!(bench.kernel.delivered(), []);
    bench.write_half(MSIX + 2, 0x8000);
    for vector in [4, 0, 1] {
        bench.physical.interrupt(vector);
    }
    assert_eq!(bench.kernel.delivered(), [message(0x31), message(0x35)]);
    // The function's own table was never written.
    assert_eq!(bench.physical.device().bar_writes, []);
}

#[test]
fn what_comes_while_masked_is_pending_and_delivered_later() {
    let mut bench = Bench::new();
    entry(&mut bench, 2, 0x33, 1);
    bench.write_half(MSIX + 2, 0x8000);
    bench.physical.interrupt(2);
    bench.physical.interrupt(2);
    assert_eq!(bench.kernel.delivered(), []);
    // To look at the bits does not change them.
    assert_eq!([pending(&mut bench), pending(&mut bench)], [4, 4]);
    let mut byte = [0xff; 3];
    bench.function.bar_read(0, 0x3000, &mut byte);
    assert_eq!(byte, [4, 0, 0]);
    entry(&mut bench, 2, 0x33, 0);
    assert_eq!(bench.kernel.delivered(), [message(0x33)]);
    assert_eq!(pending(&mut bench), 0);
    // All of them masked at once, by the function mask.
    bench.write_half(MSIX + 2, 0xc000);
    bench.physical.interrupt(2);
    assert_eq!(bench.kernel.delivered(), []);
    assert_eq!(pending(&mut bench), 4);
    bench.write_half(MSIX + 2, 0x8000);
    assert_eq!(bench.kernel.delivered(), [message(0x33)]);
}

#[test]
fn what_was_pending_ends_when_msix_does() {
    let mut bench = Bench::new();
    entry(&mut bench, 0, 0x31, 1);
    bench.write_half(MSIX + 2, 0x8000);
    bench.physical.interrupt(0);
    bench.write_half(MSIX + 2, 0);
    assert_eq!(pending(&mut bench), 0);
    bench.write_half(MSIX + 2, 0x8000);
    entry(&mut bench, 0, 0x31, 0);
    assert_eq!(bench.kernel.delivered(), []);
}

#[test]
fn msi_vectors_deliver_address_and_data() {
    let mut bench = Bench::new();
    told(&bench);
    bench.write(MSI + 4, 0xfee0_1000);
    bench.write(MSI + 8, 0);
    bench.write_half(MSI + 12, 0x40);
    // Two of its four vectors.
    bench.write_half(MSI + 2, 0x0011);
    assert_eq!(told(&bench), [Told::Msi(2)]);
    bench.physical.interrupt(1);
    bench.physical.interrupt(0);
    assert_eq!(bench.kernel.delivered(), [message(0x40), message(0x41)]);
    // More than it has: four.
    bench.write_half(MSI + 2, 0x0071);
    assert_eq!(told(&bench), [Told::Msi(4)]);
    bench.physical.interrupt(3);
    assert_eq!(bench.kernel.delivered(), [message(0x43)]);
    bench.write_half(MSI + 2, 0);
    assert_eq!(told(&bench), [Told::Pin]);
}

#[test]
fn a_reset_ends_messages_and_leaves_the_pin() {
    let mut bench = Bench::new();
    entry(&mut bench, 0, 0x31, 0);
    bench.write_half(MSIX + 2, 0x8000);
    told(&bench);
    bench.write_half(EXPRESS + 8, 0x8000);
    assert_eq!(told(&bench), [Told::Off, Told::Pin]);
    bench.physical.interrupt(0);
    assert_eq!(bench.kernel.delivered(), [Target::IoApic(17)]);
}

#[test]
fn a_host_that_refuses_leaves_a_guest_without_interrupts_and_nothing_else() {
    let mut bench = Bench::new();
    bench.physical.device().refuse = true;
    bench.write_half(MSIX + 2, 0x8000);
    assert_eq!(bench.read(MSIX) >> 16, 0x8004);
    bench.physical.device().refuse = false;
    bench.write_half(MSIX + 2, 0);
    bench.write_half(MSIX + 2, 0x8000);
    entry(&mut bench, 0, 0x31, 0);
    bench.physical.interrupt(0);
    assert_eq!(bench.kernel.delivered(), [message(0x31)]);
}

/// Vectors of a process that has no file descriptor left.
struct Eventless;

impl MsiVectors for Eventless {
    fn route(&self, _vector: u16, _message: MsiMessage) -> Result<(), MsiError> {
        Ok(())
    }
    fn mask(&self, _vector: u16) -> Result<(), MsiError> {
        Ok(())
    }
    fn deliver(&self, _vector: u16) -> Result<(), MsiError> {
        Ok(())
    }
    fn event(&self, _vector: u16) -> Option<EventFd> {
        None
    }
}

#[test]
fn vectors_without_events_are_hidden_with_all_that_is_theirs() {
    let physical = FakePhysical::new(config(), LENGTHS);
    let wiring = Wiring {
        vectors: &mut |_| Ok(Arc::new(Eventless)),
        pin: None,
        slots: Arc::new(FakeSlots::default()),
        windows: WINDOWS,
    };
    let mut function = Assigned::new(Box::new(physical.clone()), wiring).unwrap();
    let mut first = [0];
    function.config_read(0x34, &mut first);
    assert_eq!(u16::from(first[0]), EXPRESS);
    // The table is neither the guest's nor, by the guest, the function's.
    function.bar_write(0, 0x2000, &[0; 16]);
    function.bar_write(0, 0x3000, &[0; 8]);
    let mut entry = [0; 4];
    function.bar_read(0, 0x2000, &mut entry);
    assert_eq!(entry, [0xff; 4]);
    assert!(physical.device().bar_writes.is_empty());
}

#[test]
fn everything_is_given_back() {
    let mut bench = Bench::new();
    entry(&mut bench, 0, 0x31, 0);
    bench.write_half(MSIX + 2, 0x8000);
    let Bench {
        function,
        physical,
        kernel,
        ..
    } = bench;
    drop(function);
    assert_eq!(physical.device().told.last(), Some(&Told::Off));
    assert_eq!(kernel.listening(), 0);
}
