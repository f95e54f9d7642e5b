// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Giving back: a device that is unplugged, a unit that is let go.

use hvkit_page_table::{OwnEntries, Span, Width};
use hvkit_vtd_iommu::driver::{Attachment, DriverError, Reach, Registers, Waiting};
use hvkit_vtd_iommu::spec::invalidation::{ContextScope, Descriptor, Drain, IotlbScope};
use hvkit_vtd_iommu::spec::registers::{GSTS, RTADDR};
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use crate::puppet::{DEVICE, Failure, Puppet, PuppetUnit, cap, ecap, scalable_ecap};

const REGION: Span = Span {
    start: 0x8000,
    length: 0x2000,
};

/// The first word of the legacy context entry of 03:03.0, by the figures alone.
fn context(puppet: &Puppet, unit: &PuppetUnit<'_>) -> u64 {
    let word = |at| puppet.memory.load(at, Width::Eight);
    let root = word(unit.registers().get(RTADDR).table() + 3 * 16);
    assert_eq!(root & 0xfff, 1);
    word((root & !0xfff) + 0x18 * 16)
}

#[test]
fn an_unplugged_device_leaves_nothing_behind() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    // The context table stays, as the bus does.
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    unit.detach(&mut domain, DEVICE, None).unwrap();
    let before = puppet.memory.in_use();
    for _ in 0..3 {
        unit.reserve(DEVICE, &[REGION]).unwrap();
        assert_eq!(context(&puppet, &unit) & 1, 1);
        assert!(puppet.memory.in_use() > before);

        unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
        let attached = DriverError::Attached {
            source_id: DEVICE,
            pasid: None,
        };
        assert_eq!(unit.remove(DEVICE).unwrap_err(), attached);
        assert_eq!(unit.reach(DEVICE), Reach::Domain(domain.id()));
        unit.detach(&mut domain, DEVICE, None).unwrap();
        let stale = domain.unmap(REGION).unwrap();
        unit.settle(&domain, stale).unwrap();

        puppet.forget_asked();
        unit.remove(DEVICE).unwrap();
        assert_eq!(context(&puppet, &unit), 0);
        // The entry, its translations, and the table's before its frames are free.
        let asked = puppet.take_asked();
        let [
            Descriptor::Context(scope),
            Descriptor::Iotlb { .. },
            ..,
            Descriptor::Iotlb { scope: last, drain },
        ] = asked[..]
        else {
            panic!("{asked:?}");
        };
        let ContextScope::Device {
            domain: id, source, ..
        } = scope
        else {
            panic!("{scope:?}");
        };
        assert_eq!((source, last), (DEVICE, IotlbScope::Domain { domain: id }));
        assert_eq!(drain, Drain::all());
        assert_eq!(unit.reach(DEVICE), Reach::Blocked);
    }
    unit.destroy(domain).unwrap();
    // Nobody knows it: nothing to do.
    puppet.forget_asked();
    unit.remove(DEVICE).unwrap();
    unit.remove(RequesterId(0x0400)).unwrap();
    assert_eq!(puppet.take_asked(), []);
}

#[test]
fn a_device_that_cannot_be_forgotten_stays_known() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    unit.reserve(DEVICE, &[REGION]).unwrap();
    let before = puppet.memory.in_use();
    puppet.failure.set(Failure::DeafQueue);
    let deaf = unit.remove(DEVICE).unwrap_err();
    assert_eq!(deaf, DriverError::TimedOut(Waiting::InvalidationWait));
    // It reaches nothing, but its table may still be read.
    assert_eq!(context(&puppet, &unit) & 1, 0);
    assert_eq!(puppet.memory.in_use(), before);
    puppet.failure.set(Failure::None);
    unit.remove(DEVICE).unwrap();
    assert!(puppet.memory.in_use() < before);
}

/// A PASID that goes is no reason to take reserved memory from the requests without one (XSA-378).
#[test]
fn a_pasid_that_goes_leaves_reserved_memory_reserved() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    unit.reserve(DEVICE, &[REGION]).unwrap();
    let mut domain = unit.new_domain().unwrap();
    let pasid = Pasid::new(5).unwrap();
    let process = Attachment::new(DEVICE).with_pasid(pasid);
    unit.attach(&mut domain, process).unwrap();
    unit.detach(&mut domain, DEVICE, Some(pasid)).unwrap();
    // Into a domain and out of it: the device is back where its reserved memory is.
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    unit.detach(&mut domain, DEVICE, None).unwrap();
    let entry = crate::devices::pasid_entry(&puppet, &unit, 0x318, 0);
    assert_eq!(entry[0] & 1, 1, "still reachable");
    let own = entry[1] & 0xffff;
    assert!(
        own != 0 && own != u64::from(domain.id()),
        "in a domain of its own"
    );
}

#[test]
fn a_released_unit_gives_every_frame_back() {
    for scalable in [false, true] {
        let puppet = Puppet::new(cap(), scalable_ecap());
        let mut unit = if scalable {
            puppet.scalable()
        } else {
            puppet.legacy()
        };
        unit.enable().unwrap();
        unit.reserve(DEVICE, &[REGION]).unwrap();
        let mut domain = unit.new_domain().unwrap();
        let rw = SecondStageAttributes::READ_WRITE;
        let fresh = domain.map(0x10_0000..0x40_0000, 0, rw).unwrap();
        unit.publish(&domain, fresh).unwrap();
        // Both halves of a root entry, several buses, several tables of PASIDs.
        let others = [0x0310, 0x03f8, 0x7f00, 0xff08].map(RequesterId);
        for source in others {
            unit.attach(&mut domain, Attachment::new(source)).unwrap();
            if scalable {
                let far = Attachment::new(source).with_pasid(Pasid::new(0x1000).unwrap());
                unit.attach(&mut domain, far).unwrap();
            }
        }
        unit.attach_pass_through(RequesterId(0x0508)).unwrap();

        // Not while somebody is at work, nor while a domain is somebody's.
        let source_id = RequesterId(0x0310);
        let attached = DriverError::Attached {
            source_id,
            pasid: None,
        };
        let (back, error) = unit.release().unwrap_err();
        assert_eq!(error, attached);
        let mut unit = back;
        assert!(unit.is_enabled());
        unit.detach_pass_through(RequesterId(0x0508)).unwrap();
        for source in others {
            unit.detach(&mut domain, source, None).unwrap();
            if scalable {
                let far = Some(Pasid::new(0x1000).unwrap());
                let (back, error) = unit.release().unwrap_err();
                unit = back;
                let attached = DriverError::Attached {
                    source_id: source,
                    pasid: far,
                };
                assert_eq!(error, attached);
                unit.detach(&mut domain, source, far).unwrap();
            }
        }
        let (back, error) = unit.release().unwrap_err();
        assert_eq!(error, DriverError::DomainInUse(domain.id()));
        let mut unit = back;
        assert!(unit.is_enabled());
        unit.destroy(domain).unwrap();

        // Nor if hardware does not let go.
        puppet.deaf_to.set(1 << 31);
        let (back, error) = unit.release().unwrap_err();
        assert_eq!(error, DriverError::TimedOut(Waiting::Translation));
        puppet.deaf_to.set(0);
        let registers = back.release().unwrap();
        assert_eq!(registers.get(GSTS).unchanged().0, 0, "everything is off");
        assert_eq!(puppet.memory.in_use(), 0);
    }
}

/// The device's PASID stays where it is, and its memory can be declared again.
#[test]
fn reserved_memory_that_cannot_be_shown_is_taken_back_beside_a_pasid() {
    let late = DriverError::TimedOut(Waiting::InvalidationWait);
    let puppet = Puppet::new(cap().with_caching_mode(true), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    let process = Attachment::new(DEVICE).with_pasid(Pasid::new(5).unwrap());
    unit.attach(&mut domain, process).unwrap();
    puppet.failure.set(Failure::DeafQueue);
    assert_eq!(unit.reserve(DEVICE, &[REGION]), Err(late));
    puppet.failure.set(Failure::None);
    unit.reserve(DEVICE, &[REGION]).unwrap();
    let entry = crate::devices::pasid_entry(&puppet, &unit, 0x318, 0);
    assert_eq!(entry[0] & 1, 1, "reachable");

    // Where only the write buffer is deaf, the unit takes it back at once.
    let with = cap().with_write_buffer_flush(true);
    let puppet = Puppet::new(with, scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, process).unwrap();
    let before = puppet.memory.in_use();
    let done = puppet.write_buffer_flushes.get();
    // The region is flushed out, the entry never.
    puppet.flushes_done.set(done + 1);
    let late = DriverError::TimedOut(Waiting::WriteBuffer);
    assert_eq!(unit.reserve(DEVICE, &[REGION]), Err(late));
    let entry = crate::devices::pasid_entry(&puppet, &unit, 0x318, 0);
    assert_eq!(entry[0], 0);
    assert_eq!(puppet.memory.in_use(), before, "nothing is left");
    let entry = crate::devices::pasid_entry(&puppet, &unit, 0x318, 5);
    assert_eq!(entry[0] & 1, 1, "the PASID is where it was");
}
