// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt remapping and posting.

use hvkit_vtd_iommu::emulation::{Delivered, Options};
use hvkit_vtd_iommu::spec::interrupt::{Delivery, Message};

use super::machine::*;

const TABLE: u64 = 0x8000;
const DESCRIPTOR: u64 = 0x9000;

/// With a table of 256 entries, remapping on; EIME if `extended` is 1.
fn machine(extended: u64) -> Machine {
    let mut machine = Machine::new(Options::new(39).with_posted_interrupts());
    machine.write64(0xb8, TABLE | extended << 11 | 7);
    machine.write32(0x18, 1 << 24);
    machine.write32(0x18, 1 << 25);
    machine
}

fn send(machine: &mut Machine, address: u64, data: u32) -> Result<Delivered, u8> {
    let message = Message { address, data };
    let done = machine
        .unit
        .remap(&machine.ram, &mut machine.host, DEVICE, message);
    done.map_err(|refused| refused.reason.0)
}

/// What a request for entry 5 comes to, if its words are these.
fn with(low: u64, high: u64) -> Result<Delivered, u8> {
    let mut machine = machine(0);
    machine.ram.set_all(TABLE + 5 * 16, &[low, high]);
    send(&mut machine, 0xfee0_0010 | 5 << 5, 0)
}

#[test]
fn an_entry_says_where_it_goes() {
    let Ok(Delivered::Remapped(interrupt)) = with(0x0000_0300_0041_003d, 0) else {
        panic!("not remapped");
    };
    assert_eq!((interrupt.vector, interrupt.destination), (0x41, 3));
    assert_eq!(interrupt.delivery, Delivery::LOWEST_PRIORITY);
    assert!(interrupt.logical && interrupt.redirection_hint && interrupt.level_triggered);
    // In extended mode all 32 bits are the destination.
    let mut machine = machine(1);
    machine.ram.set_all(TABLE, &[0x1234_5678_0041_0001, 0]);
    let Ok(Delivered::Remapped(interrupt)) = send(&mut machine, 0xfee0_0010, 0) else {
        panic!("not remapped");
    };
    assert_eq!(interrupt.destination, 0x1234_5678);
}

#[test]
fn what_is_wrong_with_an_entry_has_its_reason() {
    assert_eq!(with(0, 0), Err(0x22));
    assert_eq!(with(0x0041_1001, 0), Err(0x24));
    assert_eq!(with(0x0041_0001, 1 << 20), Err(0x24));
    assert_eq!(with(0x0041_0001, 0xc_0000), Err(0x24));
    assert_eq!(with(0x0041_0001, 0x4_0019), Err(0x26));
    assert_eq!(with(0x0041_0001, 0x8_0105), Err(0x26));
    assert!(with(0x0041_0001, 0x4_0018).is_ok());
}

/// "Extended Interrupt Mode Enable": without it DST has an xAPIC id in its bits 15:8, and the others are reserved.
#[test]
fn an_xapic_id_has_eight_bits() {
    assert!(with(0x0000_ff00_0041_0001, 0).is_ok());
    for bit in (32..40).chain(48..64) {
        assert_eq!(with(0x0041_0001 | 1 << bit, 0), Err(0x24), "{bit}");
    }
    // Of an entry that posts they are the descriptor's address.
    assert_eq!(with(0x8000_0000_0041_8001, 0), Err(0x27));
    // A unit without extended mode has no such bit, and its ids are narrow whatever is written.
    let mut options = Options::new(39);
    options.extended = options.extended.with_extended_interrupt_mode(false);
    let mut machine = Machine::new(options);
    machine.write64(0xb8, TABLE | 1 << 11 | 7);
    assert_eq!(machine.unit.read64(0xb8), TABLE | 7);
    machine.write32(0x18, 1 << 24);
    machine.write32(0x18, 1 << 25);
    machine.ram.set_all(TABLE, &[0x1234_5678_0041_0001, 0]);
    assert_eq!(send(&mut machine, 0xfee0_0010, 0), Err(0x24));
}

#[test]
fn requests_that_are_refused_before_the_table() {
    let mut machine = machine(0);
    // Entry 256 of 256; by subhandle too.
    assert_eq!(send(&mut machine, 0xfee0_0010 | 256 << 5, 0), Err(0x21));
    assert_eq!(machine.unit.read64(0x220), 256 << 48);
    assert_eq!(machine.unit.read64(0x228) >> 32, 0x8000_0021);
    assert_eq!(send(&mut machine, 0xfee0_0018 | 255 << 5, 1), Err(0x21));
    assert_eq!(send(&mut machine, 0xfee0_0018, 0x1_0000), Err(0x20));
    // The compatibility format, unless it is let through.
    assert_eq!(send(&mut machine, 0xfee0_1000, 0x41), Err(0x25));
    machine.write32(0x18, 1 << 25 | 1 << 23);
    let message = Message {
        address: 0xfee0_1000,
        data: 0x41,
    };
    assert_eq!(
        send(&mut machine, 0xfee0_1000, 0x41),
        Ok(Delivered::Unchanged(message))
    );
    // A table that is nowhere.
    machine.write64(0xb8, 0x10_0007);
    machine.write32(0x18, 1 << 24 | 1 << 25);
    assert_eq!(send(&mut machine, 0xfee0_0010, 0), Err(0x23));
}

#[test]
fn extended_mode_blocks_the_compatibility_format_always() {
    let mut machine = machine(1);
    machine.write32(0x18, 1 << 25 | 1 << 23);
    assert_eq!(send(&mut machine, 0xfee0_1000, 0x41), Err(0x25));
}

#[test]
fn fpd_keeps_the_fault_unrecorded() {
    assert_eq!(with(2, 0), Err(0x22));
    let mut machine = machine(0);
    machine.ram.set_all(TABLE, &[3, 0x4_0019]);
    assert_eq!(send(&mut machine, 0xfee0_0010, 0), Err(0x26));
    assert_eq!(machine.unit.read32(0x34), 0);
}

#[test]
fn entries_are_kept_until_they_are_invalidated() {
    let mut machine = machine(0);
    machine.queue_on(0);
    machine.ram.set_all(TABLE + 5 * 16, &[0x0041_0001, 0]);
    let vector = |machine: &mut Machine| match send(machine, 0xfee0_0010 | 5 << 5, 0) {
        Ok(Delivered::Remapped(interrupt)) => u32::from(interrupt.vector),
        other => panic!("{other:?}"),
    };
    assert_eq!(vector(&mut machine), 0x41);
    machine.ram.set(TABLE + 5 * 16, 0x0042_0001);
    machine.submit(&[[0x6_0000_0014, 0]]);
    assert_eq!(vector(&mut machine), 0x41);
    // Index 4 with IM 1: entries 4 and 5.
    machine.submit(&[[0x4_0000_0014 | 1 << 27, 0]]);
    assert_eq!(vector(&mut machine), 0x42);
    machine.ram.set(TABLE + 5 * 16, 0x0043_0001);
    machine.submit(&[[0x4, 0]]);
    assert_eq!(vector(&mut machine), 0x43);
}

#[test]
fn posting_sets_the_bit_and_notifies_once() {
    let mut machine = machine(0);
    // Vector 0xa1 into the descriptor; NV 0xf2, NDST 2.
    machine
        .ram
        .set_all(TABLE, &[DESCRIPTOR << 32 | 0x00a1_8001, 0]);
    machine.ram.set(DESCRIPTOR + 32, 0x0000_0200_00f2_0000);
    let Ok(Delivered::Posted { notification }) = send(&mut machine, 0xfee0_0010, 0) else {
        panic!("not posted");
    };
    let notification = notification.unwrap();
    assert_eq!((notification.vector, notification.destination), (0xf2, 2));
    assert_eq!(machine.ram.get(DESCRIPTOR + 16), 1 << 33);
    assert_eq!(machine.ram.get(DESCRIPTOR + 32), 0x0000_0200_00f2_0001);
    // ON is set: posted, and nobody is told again.
    let silent = Ok(Delivered::Posted { notification: None });
    assert_eq!(send(&mut machine, 0xfee0_0010, 0), silent);
    // SN: no notification, and ON stays clear.
    machine.ram.set(DESCRIPTOR + 32, 2);
    assert_eq!(send(&mut machine, 0xfee0_0010, 0), silent);
    assert_eq!(machine.ram.get(DESCRIPTOR + 32), 2);
    // URG notifies all the same.
    machine
        .ram
        .set_all(TABLE + 16, &[DESCRIPTOR << 32 | 0x00a1_c001, 0]);
    let urgent = send(&mut machine, 0xfee0_0030, 0);
    assert!(matches!(
        urgent,
        Ok(Delivered::Posted {
            notification: Some(_)
        })
    ));
    // Reserved bits of the descriptor; a descriptor that is nowhere.
    machine.ram.set(DESCRIPTOR + 40, 1);
    assert_eq!(send(&mut machine, 0xfee0_0010, 0), Err(0x28));
    machine
        .ram
        .set_all(TABLE + 32, &[0x10_0000 << 32 | 0x00a1_8001, 0]);
    assert_eq!(send(&mut machine, 0xfee0_0050, 0), Err(0x27));
}
