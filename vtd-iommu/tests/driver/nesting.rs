// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guests' first-stage tables above a domain: whose translations are whose, on the words that the unit is asked with.

use hvkit_page_table::Span;
use hvkit_vtd_iommu::driver::{Attachment, DriverError, FirstTable};
use hvkit_vtd_iommu::spec::invalidation::{DeviceTlb, Pages};
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use crate::devices::pasid_entry;
use crate::puppet::{DEVICE, Puppet, PuppetUnit, cap, scalable_ecap};

const RW: SecondStageAttributes = SecondStageAttributes::READ_WRITE;
/// Another device, on the same bus.
const OTHER: RequesterId = RequesterId(0x0320);
const PASID: u64 = 5;

fn table(address: u64) -> FirstTable {
    FirstTable { address, levels: 4 }
}

fn tlb(source: RequesterId) -> DeviceTlb {
    DeviceTlb {
        source,
        physical_source: RequesterId(0),
        max_pending: 0,
    }
}

fn with_tlb(source: RequesterId) -> Attachment {
    let pasid = Pasid::new(PASID as u32).unwrap();
    Attachment::new(source)
        .with_pasid(pasid)
        .with_tlb(tlb(source))
}

/// DID of a PASID table entry, by the figure.
fn did(puppet: &Puppet, unit: &PuppetUnit<'_>, source: RequesterId, pasid: u64) -> u64 {
    pasid_entry(puppet, unit, source.0, pasid)[1] & 0xffff
}

/// PASID-based-IOTLB invalidation, all of a PASID.
fn pasid_iotlb(domain: u64) -> [u64; 4] {
    [PASID << 32 | domain << 16 | 0x26, 0, 0, 0]
}

/// PASID-based-device-TLB invalidation, of the address and size in `high`.
fn pasid_tlb(source: RequesterId, high: u64) -> [u64; 4] {
    [PASID << 32 | u64::from(source.0) << 16 | 8, high, 0, 0]
}

/// S, and all ones below bit 63: everything.
const EVERYTHING: u64 = 0x7fff_ffff_ffff_f800;

#[test]
fn a_change_of_the_second_stage_reaches_what_is_above_it() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut second = unit.new_domain().unwrap();
    let plain = Attachment::new(OTHER).with_tlb(tlb(OTHER));
    unit.attach(&mut second, plain).unwrap();
    unit.attach_nested(&mut second, with_tlb(DEVICE), table(0xa000))
        .unwrap();
    let (own, nested) = (u64::from(second.id()), did(&puppet, &unit, DEVICE, PASID));
    let _ = second.map(0x1000..0x3000, 0x1000, RW).unwrap();
    let stale = second.unmap(0x1000..0x2000).unwrap();
    puppet.forget_asked();
    unit.settle(&second, stale).unwrap();
    // Page-selective, leaves only, drained: of each domain-id. The guest's device knows the page by another address.
    let page = |domain: u64| [domain << 16 | 0xf2, 0x1040, 0, 0];
    let told = [
        page(own),
        page(nested),
        [0x320_0000_0003, 0x1000, 0, 0],
        pasid_tlb(DEVICE, EVERYTHING),
    ];
    assert_eq!(puppet.take_words(), told);
    // With the guest's device alone, nobody is left under the domain's own id.
    unit.detach(&mut second, OTHER, None).unwrap();
    let stale = second.unmap(0x2000..0x3000).unwrap();
    puppet.forget_asked();
    unit.settle(&second, stale).unwrap();
    let asked = puppet.take_words();
    assert_eq!(asked.len(), 2, "{asked:x?}");
    assert_eq!(asked[0][0] >> 16 & 0xffff, nested);
}

#[test]
fn a_guests_invalidation_reaches_its_devices() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut second = unit.new_domain().unwrap();
    let pasid = Pasid::new(PASID as u32);
    for source in [DEVICE, OTHER] {
        unit.attach_nested(&mut second, with_tlb(source), table(0xa000))
            .unwrap();
    }
    let id = did(&puppet, &unit, DEVICE, PASID);
    let mut told = |order| {
        puppet.forget_asked();
        let pages = Pages {
            address: 0x4000_0000,
            order,
            leaves_only: true,
        };
        unit.forget_pasid(&second, pasid, Some(pages)).unwrap();
        puppet.take_words()
    };
    // Two pages: AM 1 and IH; S, and a zero in bit 12.
    let some = [PASID << 32 | id << 16 | 0x36, 0x4000_0041, 0, 0];
    let two = 0x4000_0800;
    let both = |high| [pasid_tlb(DEVICE, high), pasid_tlb(OTHER, high)];
    assert_eq!(told(1), [&[some][..], &both(two)].concat());
    // MAMV is 18: beyond it, all; devices are told what they can be told.
    let large = 0x3fff_f800;
    assert_eq!(told(19), [&[pasid_iotlb(id)][..], &both(large)].concat());
    let all = told(60);
    assert_eq!(all, [&[pasid_iotlb(id)][..], &both(EVERYTHING)].concat());
    // Nobody has it: nothing is kept of it.
    unit.forget_pasid(&second, Pasid::new(9), None).unwrap();
    assert!(puppet.take_words().is_empty());
    let elsewhere = Puppet::new(cap(), scalable_ecap());
    // Another root table.
    hvkit_page_table::Frames::allocate(&&elsewhere.memory).unwrap();
    let refused = elsewhere.scalable().forget_pasid(&second, pasid, None);
    let foreign = DriverError::ForeignDomain(second.id());
    assert_eq!(refused, Err(foreign));
}

/// "Scalable-Mode PASID-Table Entry Programming Considerations": entries of one PASID with one domain-id have the same
/// tables.
#[test]
fn each_first_stage_table_has_an_id_and_gives_it_back() {
    let puppet = Puppet::new(cap().with_nd(0), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut second = unit.new_domain().unwrap();
    for _ in 0..20 {
        let third = RequesterId(0x0328);
        for (source, address) in [(DEVICE, 0xa000), (OTHER, 0xb000), (third, 0xa000)] {
            unit.attach_nested(&mut second, with_tlb(source), table(address))
                .unwrap();
        }
        let ids = [DEVICE, OTHER, third].map(|source| did(&puppet, &unit, source, PASID));
        assert_eq!(ids[0], ids[2], "one table");
        assert_ne!(ids[0], ids[1], "two tables");
        assert!(!ids.contains(&second.id().into()));
        for source in [DEVICE, OTHER, third] {
            let id = did(&puppet, &unit, source, PASID);
            puppet.forget_asked();
            unit.detach(&mut second, source, Pasid::new(PASID as u32))
                .unwrap();
            // PASID cache of the PASID, its translations, the domain's, the device's.
            let asked = puppet.take_words();
            let [cache, first, second, device] = [0, 1, 2, 3].map(|at| asked[at]);
            assert_eq!(cache[0], PASID << 32 | id << 16 | 0x17);
            assert_eq!(first, pasid_iotlb(id));
            assert_eq!(second[0], id << 16 | 0xe2);
            assert_eq!(device, pasid_tlb(source, EVERYTHING));
        }
    }
    unit.destroy(second).map_err(|(_, error)| error).unwrap();
    // Fifteen ids, and the sixteenth is nobody's.
    let mut domains: Vec<_> = (0..15).map(|_| unit.new_domain().unwrap()).collect();
    let attached = unit.attach_nested(&mut domains[0], with_tlb(DEVICE), table(0xa000));
    assert_eq!(attached, Err(DriverError::OutOfDomains { count: 16 }));
}

/// "Host software must check all first-stage table related fields".
#[test]
fn a_first_stage_table_that_cannot_be_is_refused() {
    let with_five = cap().with_first_stage_5_levels(true);
    let puppet = Puppet::new(with_five, scalable_ecap());
    let mut unit = puppet.scalable();
    let mut second = unit.new_domain().unwrap();
    unit.attach_nested(&mut second, with_tlb(OTHER), table(0xa000))
        .unwrap();
    // Not on a page; beyond the host's 46 bits; one table with four levels and five.
    for (address, levels) in [
        (0xb008, 4),
        (0xb800, 4),
        (1 << 46, 4),
        (!0xfff, 4),
        (0xa000, 5),
    ] {
        let first = FirstTable { address, levels };
        let refused = unit.attach_nested(&mut second, with_tlb(DEVICE), first);
        let bad = DriverError::BadFirstTable { address, levels };
        assert_eq!(refused, Err(bad));
        assert_eq!(second.attached().len(), 1);
    }
    // The last page that there is.
    unit.attach_nested(&mut second, with_tlb(DEVICE), table((1 << 46) - 0x1000))
        .unwrap();
}

#[test]
fn reserved_memory_is_not_left_to_a_guests_table() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut second = unit.new_domain().unwrap();
    let region = Span::new(0x8000, 0x1000);
    unit.reserve(DEVICE, &[region]).unwrap();
    let held = pasid_entry(&puppet, &unit, DEVICE.0, 0);
    let refused = unit.attach_nested(&mut second, Attachment::new(DEVICE), table(0xa000));
    let reserved = DriverError::ReservedMemory {
        source_id: DEVICE,
        start: region.start,
    };
    assert_eq!(refused, Err(reserved));
    assert_eq!(pasid_entry(&puppet, &unit, DEVICE.0, 0), held);
    // Requests with a PASID never had it.
    unit.attach_nested(&mut second, with_tlb(DEVICE), table(0xa000))
        .unwrap();
}

#[test]
fn a_pasid_that_goes_leaves_reserved_memory_protected() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    let region = Span::new(0x8000, 0x1000);
    unit.reserve(DEVICE, &[region]).unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let pasid = Pasid::new(PASID as u32).unwrap();
    let process = Attachment::new(DEVICE).with_pasid(pasid);
    unit.attach(&mut domain, process).unwrap();
    unit.detach(&mut domain, DEVICE, Some(pasid)).unwrap();
    assert!(domain.unmap(region).is_err(), "its owner may use it still");
    unit.detach(&mut domain, DEVICE, None).unwrap();
    let stale = domain.unmap(region).unwrap();
    unit.settle(&domain, stale).unwrap();
}
