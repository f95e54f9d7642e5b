// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several units: each translates, remaps and reports for its own devices and no others.

use std::fs;

use hvkit_vmm::config::{Scope, Vtd};
use hvkit_vtd_iommu::driver::{Attachment, DestinationMode};
use hvkit_vtd_iommu::spec::interrupt::{Irte, Message, SourceCheck, SourceQualifier};

use crate::disk::*;
use crate::machine::*;

/// Where the disks' data goes, for the disks.
const IOVA: u64 = 0x55_5555_5000;

fn unit(id: &str, segment: u16, scope: Scope) -> Vtd {
    Vtd {
        id: Some(id.to_owned()),
        segment,
        scope,
        ..Vtd::default()
    }
}

/// Uses the disk `device` of `segment`, which is behind unit `own`, beside another unit that has not heard of it.
fn apart(machine: &Machine, segment: u16, device: u8, own: usize, place: u64, content: &[u8]) {
    let mut mine = machine.drive_unit(own, legacy());
    let mut other = machine.drive_unit(1 - own, legacy());
    let mut domain = mine.new_domain().unwrap();
    mine.attach(&mut domain, Attachment::new(requester(device)))
        .unwrap();
    map(&mut mine, &mut domain, RING, RING, (RING_PAGES + 1) * PAGE);
    map(&mut mine, &mut domain, IOVA, place, PAGE);
    let mut disk = Disk::start(machine, machine.driver_at(segment, device));
    assert_eq!(disk.request(machine, READ, 3, IOVA), 0);
    assert_eq!(machine.bytes(place, 512), content[3 * 512..4 * 512]);

    // Astray: the device's own unit says so.
    let before = machine.everything(RING..STATUS + PAGE);
    assert_eq!(disk.request(machine, READ, 1, IOVA + PAGE), 1);
    assert!(machine.everything(RING..STATUS + PAGE) == before);
    let records = mine.take_faults().records;
    let [record] = records[..] else {
        panic!("{records:?}");
    };
    assert_eq!(record.source(), requester(device));
    assert_eq!(
        (record.reason().0, record.address()),
        (5, Some(IOVA + PAGE))
    );
    assert!(other.take_faults().records.is_empty());

    // An interrupt: by its own unit's table, though the other has an entry of the same number for the same requester.
    disk.driver.enable_msix();
    let mut tables = [&mut mine, &mut other].map(|unit| {
        let mode = DestinationMode::X2Apic;
        unit.enable_interrupts(mode, None).unwrap()
    });
    let blocks = tables.each_mut().map(|table| table.allocate(1).unwrap());
    assert_eq!(blocks[0].message(), blocks[1].message());
    let vector = 0x40 + own as u8;
    for (unit, (table, block), vector) in [
        (&mut mine, (&tables[0], blocks[0]), vector),
        (&mut other, (&tables[1], blocks[1]), 0x99),
    ] {
        let check = SourceCheck::Requester(requester(device), SourceQualifier::All);
        let entry = Irte::remapped(vector, 0).with_source_check(check);
        unit.set_interrupt(table, block, block.first(), entry)
            .unwrap();
    }
    let Message { address, data } = blocks[0].message();
    disk.sends(address, data);
    assert_eq!(disk.request(machine, READ, 3, IOVA), 0);
    until("its interrupt", || {
        machine.requested().contains(&usize::from(vector))
    });
    // What the other unit forgets is its own business; what this one forgets is blocked, and told here.
    other
        .set_interrupt(&tables[1], blocks[1], blocks[1].first(), Irte([0, 0]))
        .unwrap();
    mine.set_interrupt(&tables[0], blocks[0], blocks[0].first(), Irte([0, 0]))
        .unwrap();
    assert_eq!(disk.request(machine, READ, 3, IOVA), 0);
    let mut records = Vec::new();
    until("no fault was recorded", || {
        records = mine.take_faults().records;
        !records.is_empty()
    });
    assert_eq!(
        (records[0].source(), records[0].reason().0),
        (requester(device), 0x22)
    );
    assert!(other.take_faults().records.is_empty());
    assert!(!machine.requested().contains(&0x99));
    disk.driver.set_status(0);
    for (unit, table) in [&mut mine, &mut other].into_iter().zip(tables) {
        unit.disable_interrupts(table).unwrap();
    }
}

#[test]
fn each_segment_has_a_unit_and_devices_of_the_same_number() {
    let images = [image(), image()];
    let vtds = [0, 1].map(|segment| Vtd {
        segment,
        ..Vtd::default()
    });
    let Some(mut machine) = Machine::with(&vtds) else {
        return;
    };
    let content = images.each_ref().map(|image| fs::read(image).unwrap());
    for (segment, image) in images.iter().enumerate() {
        let device = machine.translated_disk_at(segment as u16, segment, image);
        assert_eq!(device, 1);
    }
    machine.chipset.describe(1).unwrap();
    for (segment, place) in [(0, DATA + 0x10_0000), (1, DATA + 0x20_0000)] {
        let content = &content[usize::from(segment)];
        apart(&machine, segment, 1, segment.into(), place, content);
    }
}

#[test]
fn a_unit_may_have_but_those_that_name_it() {
    let images = [image(), image()];
    let vtds = [unit("b", 0, Scope::Named), unit("a", 0, Scope::Segment)];
    let Some(mut machine) = Machine::with(&vtds) else {
        return;
    };
    let content = images.each_ref().map(|image| fs::read(image).unwrap());
    for (index, image) in images.iter().enumerate() {
        let device = machine.translated_disk_at(0, index, image);
        assert_eq!(usize::from(device), index + 1);
    }
    let tables = machine.chipset.describe(1).unwrap();
    // DRHD: no flag, segment 0, the first window; its scope is 00:01.0. Then the other: all of the segment, and the I/O APIC.
    let first = [
        &[0, 0, 24, 0, 0, 0, 0, 0][..],
        &0xfed9_0000u64.to_le_bytes(),
        &[1, 8, 0, 0, 0, 0, 1, 0],
    ];
    let second = [
        &[0, 0, 24, 0, 1, 0, 0, 0][..],
        &0xfed9_1000u64.to_le_bytes(),
        &[3, 8, 0, 0, 0, 0xff, 0, 0],
    ];
    let both = [first.concat(), second.concat()].concat();
    let found = |part: &[u8]| {
        tables
            .bytes
            .windows(part.len())
            .any(|window| window == part)
    };
    assert!(found(&both), "{:x?}", tables.bytes);
    for (index, place) in [(0, DATA + 0x10_0000), (1, DATA + 0x20_0000)] {
        apart(&machine, 0, index as u8 + 1, index, place, &content[index]);
    }
}

/// A destination that no byte can hold. VT-d, "Interrupt Remapping Table Entry (IRTE) for Remapped Interrupts"; KVM API,
/// "KVM_X2APIC_API_USE_32BIT_IDS".
#[test]
fn an_interrupt_reaches_a_processor_beyond_255() {
    let image = image();
    let Some(mut machine) = Machine::new(Vtd::default()) else {
        return;
    };
    // 0x2c is what is left of 0x12c in a byte.
    let [low, high] = [0x2c, 0x12c].map(|id| x2apic_processor(&machine.vm, id));
    let device = machine.translated_disk(&image);
    machine.chipset.describe(301).unwrap();
    let mut mine = machine.drive(legacy());
    let mut domain = mine.new_domain().unwrap();
    mine.attach(&mut domain, Attachment::new(requester(device)))
        .unwrap();
    map(&mut mine, &mut domain, RING, RING, (RING_PAGES + 1) * PAGE);
    map(&mut mine, &mut domain, IOVA, DATA + 0x10_0000, PAGE);
    let mut disk = Disk::start(&machine, machine.driver(device));
    disk.driver.enable_msix();
    let mut table = mine
        .enable_interrupts(DestinationMode::X2Apic, None)
        .unwrap();
    let block = table.allocate(1).unwrap();
    let Message { address, data } = block.message();
    disk.sends(address, data);
    for (destination, vector) in [(0x12c, 0x41), (0x2c, 0x42)] {
        let entry = Irte::remapped(vector, destination);
        mine.set_interrupt(&table, block, block.first(), entry)
            .unwrap();
        assert_eq!(disk.request(&machine, READ, 3, IOVA), 0);
        let target = if destination == 0x2c { &low } else { &high };
        until("the interrupt", || {
            requested_of(target) == [usize::from(vector)]
        });
    }
    assert_eq!([requested_of(&high), requested_of(&low)], [[0x41], [0x42]]);
    assert!(machine.requested().is_empty());
}
