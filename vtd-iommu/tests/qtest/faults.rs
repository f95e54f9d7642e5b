// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Fault records: overflow, clearing, the event's mask.

use hvkit_vtd_iommu::driver::{Attachment, Event, Registers, Switch};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::interrupt::Message;
use hvkit_vtd_iommu::spec::registers::{FECTL, FSTS};

use crate::machine::{DATA, EDU, Lab, assert_fault, assert_no_fault};

#[test]
fn more_faults_than_records_overflow_and_clear() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let second = "edu,addr=4,dma_mask=0xffffffffffffffff";
    let lab = Lab::with(lab_kit::qtest::QtestOptions::new().device(second));
    let mut unit = lab.legacy();
    let records = unit.capability().fault_records();
    assert_eq!(records, 1, "QEMU has one record");
    lab.dma_write(0x1000, 8);
    lab.other_dma_write(4, 0xe100_0000, 0x2000, 8);
    let faults = unit.take_faults();
    assert_eq!(faults.records.len(), 1);
    assert_eq!(faults.records[0].source(), EDU);
    assert!(faults.overflow);
    // Both are cleared, so the next one is recorded.
    assert_no_fault(&mut unit);
    lab.other_dma_write(4, 0xe100_0000, 0x3000, 8);
    let source = RequesterId(0x20);
    assert_fault(&mut unit, FaultReason::ROOT_NOT_PRESENT, 0x3000, source);
}

#[test]
fn an_event_waits_while_it_is_masked() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    unit.announce(Event::Fault, Message::compatible(0, 0x41));
    unit.set_announced(Event::Fault, Switch::Off);
    assert!(lab.get(FECTL).masked() && !lab.get(FECTL).pending());
    lab.dma_write(DATA, 8);
    assert!(lab.get(FECTL).pending(), "the message is owed");
    assert!(lab.get(FSTS).pending());
    unit.set_announced(Event::Fault, Switch::On);
    assert!(!lab.get(FECTL).pending(), "it was sent");
    assert_fault(&mut unit, FaultReason::ROOT_NOT_PRESENT, DATA, EDU);
}

#[test]
fn a_domain_switch_is_seen_at_once() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let mut one = unit.new_domain().unwrap();
    let mut two = unit.new_domain().unwrap();
    for (domain, to) in [(&mut one, DATA), (&mut two, DATA + 0x1000)] {
        let fresh = domain.map(0x1000..0x2000, to, crate::machine::RW).unwrap();
        unit.publish(domain, fresh).unwrap();
    }
    lab.poke(0x90_0000, b"to");
    lab.fill_memory(DATA, 0x2000, 0);
    unit.attach(&mut one, Attachment::new(EDU)).unwrap();
    let fresh = one
        .map(0x5000..0x6000, 0x90_0000, crate::machine::RW)
        .unwrap();
    unit.publish(&one, fresh).unwrap();
    lab.dma_read(0x5000, 2);
    lab.dma_write(0x1000, 2);
    assert_eq!(lab.peek(DATA, 2), b"to");
    unit.detach(&mut one, EDU, None).unwrap();
    unit.attach(&mut two, Attachment::new(EDU)).unwrap();
    lab.dma_write(0x1008, 2);
    assert_eq!(lab.peek(DATA + 0x1008, 2), b"to");
    assert_eq!(
        lab.peek(DATA + 8, 2),
        [0, 0],
        "the old domain's page is untouched"
    );
    assert_no_fault(&mut unit);
}
