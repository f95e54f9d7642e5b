// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fault records, their overflow, and the event that tells of them.

use hvkit_vtd_iommu::emulation::fake::Event;
use hvkit_vtd_iommu::emulation::{Access, Fate, Options, Request};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::interrupt::Message;

use super::machine::*;

const FSTS: u32 = 0x34;
const FECTL: u32 = 0x38;
const RECORDS: u32 = 0x220;

fn fault(machine: &mut Machine, device: u16, address: u64) -> Fate {
    let request = Request::new(RequesterId(device), address, Access::Read);
    machine.request(request).unwrap_err().fate
}

#[test]
fn a_record_says_who_what_and_why() {
    let mut machine = Machine::legacy(Options::new(39));
    assert_eq!(machine.read(0x7f_1234_5678), Err(6));
    assert_eq!(machine.unit.read64(RECORDS), 0x7f_1234_5000);
    assert_eq!(machine.unit.read64(RECORDS + 8), 0xc000_0006_0000_0018);
    assert_eq!(machine.unit.read32(FSTS), 2);
    // Clearing F clears PPF, and the record's content stays.
    machine.write32(RECORDS + 12, 1 << 31);
    assert_eq!(machine.unit.read32(FSTS), 0);
    assert_eq!(machine.unit.read64(RECORDS + 8), 0x4000_0006_0000_0018);
    // The next goes into the next place, and FRI says so.
    assert_eq!(machine.write(0x7f_0000_0000), Err(5));
    assert_eq!(machine.unit.read32(FSTS), 0x102);
    assert_eq!(machine.unit.read64(RECORDS + 24), 0x8000_0005_0000_0018);
}

#[test]
fn records_overflow() {
    let mut machine = Machine::legacy(Options::new(39));
    for device in 0..8 {
        assert_eq!(
            fault(&mut machine, device, 0x1000),
            Fate::Recorded(device as u8)
        );
    }
    // Another fault of a requester that has a record pending is in it.
    assert_eq!(fault(&mut machine, 3, 0x2000), Fate::Collapsed);
    assert_eq!(machine.unit.read32(FSTS), 2);
    assert_eq!(fault(&mut machine, 9, 0x2000), Fate::Overflowed);
    assert_eq!(machine.unit.read32(FSTS), 3);
    // Not before PFO is cleared is anything recorded again.
    machine.write32(RECORDS + 12, 1 << 31);
    assert_eq!(fault(&mut machine, 9, 0x2000), Fate::Overflowed);
    machine.write32(FSTS, 1);
    assert_eq!(machine.unit.read32(FSTS), 2);
    assert_eq!(fault(&mut machine, 9, 0x2000), Fate::Recorded(0));
}

#[test]
fn fpd_keeps_faults_to_itself() {
    let mut machine = Machine::legacy(Options::new(39));
    machine.ram.set(ENTRY, TOP | 3);
    assert_eq!(fault(&mut machine, 0x18, 0x7f_0000_0000), Fate::Disabled);
    // An entry that is not present may say so too.
    machine.ram.set(CONTEXT + 0x20 * 16, 2);
    assert_eq!(fault(&mut machine, 0x20, 0x1000), Fate::Disabled);
    assert_eq!(machine.unit.read32(FSTS), 0);
    // What was wrong before the entry was read is recorded all the same.
    machine.ram.set(ROOT + 8, 2);
    assert_eq!(fault(&mut machine, 0x28, 0x1000), Fate::Recorded(0));
}

#[test]
fn the_event_is_sent_once_and_waits_for_its_mask() {
    let mut machine = Machine::legacy(Options::new(39));
    assert_eq!(machine.unit.read32(FECTL), 1 << 31);
    machine.write32(FECTL + 4, 0x41);
    machine.write32(FECTL + 8, 0xfee0_1000);
    machine.write32(FECTL + 12, 0x200);
    assert_eq!(fault(&mut machine, 1, 0x1000), Fate::Recorded(0));
    assert!(machine.host.take().is_empty());
    assert_eq!(machine.unit.read32(FECTL), 3 << 30);
    machine.write32(FECTL, 0);
    let message = Message {
        address: 0x200_fee0_1000,
        data: 0x41,
    };
    assert_eq!(machine.host.take(), [Event::Message(message)]);
    assert_eq!(machine.unit.read32(FECTL), 0);
    // While a condition stands unserviced there is no second event.
    fault(&mut machine, 2, 0x1000);
    assert!(machine.host.take().is_empty());
    for record in 0..2 {
        machine.write32(RECORDS + 16 * record + 12, 1 << 31);
    }
    fault(&mut machine, 2, 0x1000);
    assert_eq!(machine.host.take(), [Event::Message(message)]);
    // What is serviced before it was sent is not sent.
    machine.write32(FECTL, 1 << 31);
    machine.write32(RECORDS + 2 * 16 + 12, 1 << 31);
    fault(&mut machine, 2, 0x1000);
    machine.write32(RECORDS + 3 * 16 + 12, 1 << 31);
    machine.write32(FECTL, 0);
    assert!(machine.host.take().is_empty());
}
