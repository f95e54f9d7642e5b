// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! DMA of virtio devices behind the unit: where it is mapped it goes, and nowhere else.

use std::fs;
use std::sync::Arc;

use hvkit_vmm::config::Vtd;
use hvkit_vtd_iommu::driver::Attachment;

use crate::disk::*;
use crate::machine::*;

#[test]
fn a_disk_reads_and_writes_where_it_is_mapped() {
    let image = image();
    let Some(mut machine) = Machine::new(Vtd::default()) else {
        return;
    };
    let device = machine.translated_disk(&image);
    machine.chipset.describe(1).unwrap();
    let mut unit = machine.drive(legacy());
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(requester(device)))
        .unwrap();
    map(&mut unit, &mut domain, RING, RING, (RING_PAGES + 1) * PAGE);
    let mut disk = Disk::start(&machine, machine.driver(device));

    // The device's address is nowhere near memory.
    let (iova, place) = (0x55_5555_5000, DATA + 0x10_0000);
    map(&mut unit, &mut domain, iova, place, PAGE);
    let content = fs::read(image.path()).unwrap();
    assert_eq!(disk.request(&machine, READ, 3, iova + 0x200), 0);
    assert_eq!(machine.bytes(place + 0x200, 512), content[3 * 512..4 * 512]);
    machine.fill(place, &[0xab; 512]);
    assert_eq!(disk.request(&machine, WRITE, 5, iova), 0);
    assert_eq!(
        fs::read(image.path()).unwrap()[5 * 512..6 * 512],
        [0xab; 512]
    );

    // The same page elsewhere, from the invalidation on.
    let stale = domain.unmap(iova..iova + PAGE).unwrap();
    unit.settle(&domain, stale).unwrap();
    let other = DATA + 0x20_0000;
    map(&mut unit, &mut domain, iova, other, PAGE);
    assert_eq!(disk.request(&machine, READ, 3, iova), 0);
    assert_eq!(machine.bytes(other, 512), content[3 * 512..4 * 512]);
    assert_eq!(machine.bytes(place, 512), [0xab; 512]);
    assert!(unit.take_faults().records.is_empty());
}

#[test]
fn astray_it_changes_nothing_and_the_guest_is_told() {
    let image = image();
    let Some(mut machine) = Machine::new(Vtd::default()) else {
        return;
    };
    let device = machine.translated_disk(&image);
    machine.chipset.describe(1).unwrap();
    let mut unit = machine.drive(legacy());
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(requester(device)))
        .unwrap();
    map(&mut unit, &mut domain, RING, RING, (RING_PAGES + 1) * PAGE);
    let mut disk = Disk::start(&machine, machine.driver(device));
    let content = fs::read(image.path()).unwrap();

    let mapped = 0x40_0000_0000;
    map(&mut unit, &mut domain, mapped, DATA + 0x10_0000, PAGE);
    // A guest-physical address that is no address of the device's, a hole behind a page, a page that is gone, and one
    // beyond the tables; to write and to read. "Fault Reason Encodings": 5 no write permission, 6 no read permission, 4
    // beyond the width.
    let gone = 0x40_0010_0000;
    map(&mut unit, &mut domain, gone, DATA + 0x10_0000, PAGE);
    let stale = domain.unmap(gone..gone + PAGE).unwrap();
    unit.settle(&domain, stale).unwrap();
    let queue = RING..STATUS + PAGE;
    for (address, at, kind, reason) in [
        (DATA + 0x30_0000, DATA + 0x30_0000, READ, 5),
        (DATA + 0x30_0000, DATA + 0x30_0000, WRITE, 6),
        (mapped + PAGE - 256, mapped + PAGE, READ, 5),
        (gone, gone, READ, 5),
        (gone, gone, WRITE, 6),
        (1 << 48, 1 << 48, READ, 4),
    ] {
        let what = format!("{address:#x} {kind}");
        let before = machine.everything(queue.clone());
        // VIRTIO_BLK_S_IOERR.
        assert_eq!(disk.request(&machine, kind, 1, address), 1, "{what}");
        assert!(
            machine.everything(queue.clone()) == before,
            "{what}: memory changed"
        );
        let records = unit.take_faults().records;
        let [record] = records[..] else {
            panic!("{what}: {records:?}");
        };
        assert_eq!(record.source(), requester(device), "{what}");
        assert_eq!(
            (record.reason().0, record.address()),
            (reason, Some(at & !0xfff)),
            "{what}"
        );
    }
    assert!(
        fs::read(image.path()).unwrap() == content,
        "the disk changed"
    );
    // It goes on.
    assert_eq!(disk.request(&machine, READ, 3, mapped), 0);
}

#[test]
fn without_iommu_a_disk_is_before_the_unit_and_says_so() {
    let image = image();
    let Some(mut machine) = Machine::new(Vtd::default()) else {
        return;
    };
    let device = machine.direct_disk(&image);
    machine.chipset.describe(1).unwrap();
    let mut unit = machine.drive(legacy());
    let mut driver = machine.driver(device);
    assert_eq!(driver.offered() & ACCESS_PLATFORM, 0);
    driver.negotiate(VERSION_1);
    let ring = driver.queue(0, &Arc::new(machine.ram().clone()), RING, 16);
    assert_eq!(driver.set_status(0xf), 0xf);
    let mut disk = Disk { driver, ring };
    assert_eq!(disk.request(&machine, READ, 3, DATA + 0x10_0000), 0);
    let content = fs::read(image.path()).unwrap();
    assert_eq!(
        machine.bytes(DATA + 0x10_0000, 512),
        content[3 * 512..4 * 512]
    );
    assert!(unit.take_faults().records.is_empty());
}
