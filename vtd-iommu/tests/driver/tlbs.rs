// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Device-TLBs that come and go: what the context entry lets through, and what is forgotten when it changes.

use hvkit_page_table::{OwnEntries, Span, Width};
use hvkit_vtd_iommu::driver::{Attachment, DriverError, Registers, Waiting};
use hvkit_vtd_iommu::spec::invalidation::DeviceTlb;
use hvkit_vtd_iommu::spec::registers::RTADDR;
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use crate::puppet::{DEVICE, Failure, Puppet, PuppetDomain, PuppetUnit, cap, ecap, scalable_ecap};

const TLB: DeviceTlb = DeviceTlb {
    source: DEVICE,
    physical_source: RequesterId(0),
    max_pending: 0,
};
/// DTE and PRE of a scalable-mode context entry.
const LET_THROUGH: u64 = 0x14;

/// The first word of the scalable-mode context entry of the device, by the figures.
fn context(puppet: &Puppet, unit: &PuppetUnit<'_>) -> u64 {
    let word = |at| puppet.memory.load(at, Width::Eight);
    let root = unit.registers().get(RTADDR).table();
    word((word(root + 3 * 16) & !0xfff) + 0x18 * 32)
}

fn with_tlb(pasid: u32) -> Attachment {
    let pasid = Pasid::new(pasid).unwrap();
    Attachment::new(DEVICE).with_pasid(pasid).with_tlb(TLB)
}

#[test]
fn the_last_device_tlb_that_goes_is_let_through_no_more() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    for _ in 0..2 {
        unit.attach(&mut domain, with_tlb(1)).unwrap();
        assert_eq!(context(&puppet, &unit) & LET_THROUGH, LET_THROUGH);
        puppet.forget_asked();
        unit.attach(&mut domain, with_tlb(2)).unwrap();
        assert!(puppet.take_words().is_empty(), "nothing changed above it");
        unit.detach(&mut domain, DEVICE, Pasid::new(1)).unwrap();
        assert_eq!(context(&puppet, &unit) & LET_THROUGH, LET_THROUGH);
        puppet.forget_asked();
        unit.detach(&mut domain, DEVICE, Pasid::new(2)).unwrap();
        assert_eq!(context(&puppet, &unit) & LET_THROUGH, 0);
        assert_eq!(context(&puppet, &unit) & 9, 9, "P and PASIDE stay");
        // Behind what the PASID owes: device-selective context cache, the domain's PASID cache and IOTLB, all of the
        // device-TLB.
        let id = u64::from(domain.id()) << 16;
        let asked = puppet.take_words();
        let changed = [
            [0x318_0000_0031, 0],
            [id | 0x07, 0],
            [id | 0xe2, 0],
            [0x318_0000_0003, 0x7fff_ffff_ffff_f001],
        ];
        let changed = changed.map(|[low, high]| [low, high, 0, 0]);
        assert_eq!(asked[asked.len() - 4..], changed);
    }
}

/// The unit may have seen the entry with DTE: it is asked to forget it again.
#[test]
fn a_device_tlb_that_could_not_come_is_asked_for_again() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    puppet.failure.set(Failure::DeafQueue);
    let late = DriverError::TimedOut(Waiting::InvalidationWait);
    assert_eq!(unit.attach(&mut domain, with_tlb(1)), Err(late));
    assert_eq!(context(&puppet, &unit) & LET_THROUGH, 0);
    puppet.failure.set(Failure::None);
    unit.forget_everything().unwrap();
    puppet.forget_asked();
    unit.attach(&mut domain, with_tlb(1)).unwrap();
    let asked = puppet.take_words();
    assert_eq!(asked.first(), Some(&[0x318_0000_0031, 0, 0, 0]));
}

/// PD of an invalidation wait: page requests that the unit has received are in the queue before the wait is done.
#[test]
fn page_requests_of_a_pasid_that_goes_are_drained() {
    const DRAIN: u64 = 1 << 7;
    let drained = |extended| {
        let puppet = Puppet::new(cap(), extended);
        let mut unit = puppet.scalable();
        let mut domain = unit.new_domain().unwrap();
        unit.attach(&mut domain, with_tlb(1)).unwrap();
        puppet.forget_asked();
        unit.detach(&mut domain, DEVICE, Pasid::new(1)).unwrap();
        let waits = puppet.wait_words.take();
        waits.iter().filter(|word| *word & DRAIN != 0).count()
    };
    assert_eq!(drained(scalable_ecap().with_page_request_drain(true)), 1);
    // Reserved where the unit has no PDS.
    assert_eq!(drained(scalable_ecap()), 0);
}

#[test]
fn reserved_memory_that_cannot_be_shown_is_taken_back() {
    let regions = [Span::new(0x8000, 0x1000)];
    let with = cap().with_write_buffer_flush(true);
    let puppet = Puppet::new(with, ecap());
    let mut unit = puppet.legacy();
    let entry = |unit: &PuppetUnit<'_>| {
        let word = |at| puppet.memory.load(at, Width::Eight);
        let root = unit.registers().get(RTADDR).table();
        word((word(root + 3 * 16) & !0xfff) + 0x18 * 16)
    };
    // The region is flushed out, the entry never.
    puppet.flushes_done.set(1);
    let late = DriverError::TimedOut(Waiting::WriteBuffer);
    assert_eq!(unit.reserve(DEVICE, &regions), Err(late));
    assert_eq!(entry(&unit), 0);
    puppet.flushes_done.set(u32::MAX);
    puppet.set32(0x1c, 0x4400_0000);
    unit.reserve(DEVICE, &regions).unwrap();
    assert_eq!(entry(&unit) & 1, 1);

    // And where the unit does not even take that: it is removed when it answers.
    let puppet = Puppet::new(cap().with_caching_mode(true), ecap());
    let mut unit = puppet.legacy();
    puppet.failure.set(Failure::DeafQueue);
    let late = DriverError::TimedOut(Waiting::InvalidationWait);
    assert_eq!(unit.reserve(DEVICE, &regions), Err(late));
    puppet.failure.set(Failure::None);
    unit.remove(DEVICE).unwrap();
    unit.reserve(DEVICE, &regions).unwrap();
}

/// An attachment that is refused for want of a frame lets nothing through: nobody would have the device-TLB forget.
#[test]
fn a_device_tlb_whose_pasid_has_no_table_is_not_let_through() {
    for present in [false, true] {
        let puppet = Puppet::new(cap(), scalable_ecap());
        let mut unit = puppet.scalable();
        let mut domain = unit.new_domain().unwrap();
        // The context table of the bus, and nothing in it for the device.
        let neighbour = RequesterId(DEVICE.0 + 1);
        unit.attach(&mut domain, Attachment::new(neighbour))
            .unwrap();
        if present {
            unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
        }
        // Of a directory and a table of PASIDs, room for all but the table.
        let room = usize::from(!present);
        puppet.memory.limit(puppet.memory.in_use() + room);
        let refused = unit.attach(&mut domain, with_tlb(64));
        assert_eq!(refused, Err(DriverError::OutOfFrames));
        assert_eq!(context(&puppet, &unit) & LET_THROUGH, 0, "{present}");
        puppet.memory.unlimit();
        let pasid = Pasid::new(64).unwrap();
        let without = Attachment::new(DEVICE).with_pasid(pasid);
        unit.attach(&mut domain, without).unwrap();
        assert_eq!(context(&puppet, &unit) & LET_THROUGH, 0, "{present}");
        unit.detach(&mut domain, DEVICE, Some(pasid)).unwrap();
        unit.attach(&mut domain, with_tlb(64)).unwrap();
        assert_eq!(context(&puppet, &unit) & LET_THROUGH, LET_THROUGH);
    }
}

/// Unmaps the page at `at` and settles that; only what the settling asks for is left in the puppet.
fn settled<'a>(
    puppet: &'a Puppet,
    unit: &mut PuppetUnit<'a>,
    domain: &mut PuppetDomain<'a>,
    at: u64,
) {
    let stale = domain.unmap(at..at + 0x1000).unwrap();
    puppet.forget_asked();
    unit.settle(domain, stale).unwrap();
}

/// DTE is of all requests of a device: its translation requests without PASID are answered, though the attachment of these
/// named no device-TLB.
#[test]
fn what_a_device_tlb_keeps_of_other_attachments_is_forgotten() {
    let rw = SecondStageAttributes::READ_WRITE;
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut plain = unit.new_domain().unwrap();
    let mut other = unit.new_domain().unwrap();
    let mut process = unit.new_domain().unwrap();
    let _ = plain.map(0x1000..0x9000, 0x1000, rw).unwrap();
    unit.reserve(DEVICE, &[Span::new(0x10_0000, 0x1000)])
        .unwrap();
    let two = Pasid::new(2);
    unit.attach(&mut plain, Attachment::new(DEVICE)).unwrap();
    unit.attach(
        &mut process,
        Attachment::new(DEVICE).with_pasid(two.unwrap()),
    )
    .unwrap();
    let tells = |puppet: &Puppet, told: [u64; 2]| {
        let asked = puppet.take_words();
        let [low, high, ..] = *asked.last().unwrap();
        assert_eq!([low, high], told, "{asked:x?}");
    };
    // dev_tlb_inv_dsc and p_dev_tlb_inv_dsc of 03:03.0: everything, and a page.
    let all = [0x318_0000_0003, 0x7fff_ffff_ffff_f001];
    let page = |page: u64| [0x318_0000_0003, page];
    let of_two = |high| [0x2_0318_0008, high];

    // No device-TLB is on.
    settled(&puppet, &mut unit, &mut plain, 0x1000);
    tells(&puppet, [u64::from(plain.id()) << 16 | 0xf2, 0x1040]);

    unit.attach(&mut other, with_tlb(1)).unwrap();
    settled(&puppet, &mut unit, &mut plain, 0x2000);
    tells(&puppet, page(0x2000));
    let _ = process.map(0x5000..0x6000, 0x1000, rw).unwrap();
    settled(&puppet, &mut unit, &mut process, 0x5000);
    tells(&puppet, of_two(0x5000));
    puppet.forget_asked();
    unit.forget_pasid(&process, two, None).unwrap();
    tells(&puppet, of_two(0x7fff_ffff_ffff_f800));
    // Into the holding domain, into pass-through, and back; the device kept what it was told of each.
    unit.detach(&mut plain, DEVICE, None).unwrap();
    tells(&puppet, all);
    unit.attach_pass_through(DEVICE).unwrap();
    tells(&puppet, all);
    unit.detach_pass_through(DEVICE).unwrap();
    tells(&puppet, all);
    unit.attach(&mut plain, Attachment::new(DEVICE)).unwrap();
    tells(&puppet, all);

    // The last that named it goes: all that it kept of the others is forgotten, and then nobody asks it any more.
    unit.detach(&mut other, DEVICE, Pasid::new(1)).unwrap();
    let asked = puppet.take_words();
    let told: Vec<_> = asked.iter().map(|[low, high, ..]| [*low, *high]).collect();
    assert!(
        told.ends_with(&[all, of_two(0x7fff_ffff_ffff_f800)]),
        "{told:x?}"
    );
    settled(&puppet, &mut unit, &mut plain, 0x3000);
    tells(&puppet, [u64::from(plain.id()) << 16 | 0xf2, 0x3040]);
    unit.detach(&mut process, DEVICE, two).unwrap();
    let asked = puppet.take_words();
    assert!(asked.iter().all(|[low, ..]| ![3, 8].contains(&(low & 0xf))));
}

/// A unit that did not answer when translation requests were let through may let them through still: what it is asked
/// next for the device is to stop.
#[test]
fn a_device_tlb_that_could_not_come_is_closed_with_the_next_attachment() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    puppet.failure.set(Failure::DeafQueue);
    let late = DriverError::TimedOut(Waiting::InvalidationWait);
    assert_eq!(unit.attach(&mut domain, with_tlb(1)), Err(late));
    puppet.failure.set(Failure::None);
    unit.forget_everything().unwrap();
    puppet.forget_asked();
    let without = Attachment::new(DEVICE).with_pasid(Pasid::new(1).unwrap());
    unit.attach(&mut domain, without).unwrap();
    let asked = puppet.take_words();
    assert_eq!(asked.first(), Some(&[0x318_0000_0031, 0, 0, 0]));
    assert!(asked.iter().any(|[low, ..]| *low == 0x318_0000_0003));
    assert_eq!(context(&puppet, &unit) & LET_THROUGH, 0);
    // Once.
    unit.detach(&mut domain, DEVICE, Pasid::new(1)).unwrap();
    let asked = puppet.take_words();
    assert!(asked.iter().all(|[low, ..]| ![3, 8].contains(&(low & 0xf))));
}
