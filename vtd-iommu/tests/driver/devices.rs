// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PASIDs, first stage and nesting: the words in the tables, and what is forgotten.

use hvkit_page_table::{OwnEntries, Width};
use hvkit_vtd_iommu::driver::{Ability, Attachment, DriverError, FirstTable, Reach};
use hvkit_vtd_iommu::spec::invalidation::{
    Descriptor, DeviceTlb, Drain, IotlbScope, Pages, PasidCacheScope, PasidIotlbScope,
};
use hvkit_vtd_iommu::spec::registers::RTADDR;
use hvkit_vtd_iommu::spec::{Pasid, RequesterId};
use hvkit_vtd_iommu::tables::FirstStageAttributes;

use crate::puppet::{DEVICE, Puppet, PuppetUnit, cap, scalable_ecap};

fn word(puppet: &Puppet, at: u64) -> u64 {
    puppet.memory.load(at, Width::Eight)
}

/// The PASID table entry of `source`, by the specification's figures alone.
pub(crate) fn pasid_entry(
    puppet: &Puppet,
    unit: &PuppetUnit<'_>,
    source: u16,
    pasid: u64,
) -> Vec<u64> {
    use hvkit_vtd_iommu::driver::Registers;
    let address = |word: u64| word & !0xfff;
    let root = unit.registers().get(RTADDR);
    assert_eq!(root.0 & 0xfff, 0x400, "scalable mode");
    let (bus, devfn) = (u64::from(source >> 8), u64::from(source & 0xff));
    let half = word(puppet, root.table() + bus * 16 + devfn / 128 * 8);
    assert_eq!(half & 0xfff, 1);
    let context = address(half) + devfn % 128 * 32;
    let low = word(puppet, context);
    assert_eq!(low & 1, 1);
    let directory = word(puppet, address(low) + (pasid >> 6) * 8);
    assert_eq!(directory & 0xfff, 1);
    let entry = address(directory) + (pasid & 63) * 64;
    (0..8).map(|i| word(puppet, entry + 8 * i)).collect()
}

#[test]
fn each_pasid_has_its_own_translation() {
    let puppet = Puppet::new(cap().with_first_stage_5_levels(true), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut second = unit.new_domain().unwrap();
    let mut first = unit.new_first_stage_domain(5).unwrap();
    let (one, two) = (Pasid::new(0x41).unwrap(), Pasid::new(0x7fff).unwrap());
    unit.attach(&mut second, Attachment::new(DEVICE)).unwrap();
    unit.attach(&mut first, Attachment::new(DEVICE).with_pasid(one))
        .unwrap();
    unit.attach(&mut second, Attachment::new(DEVICE).with_pasid(two))
        .unwrap();
    // P, AW 010 (48 bits), PGTT 010; DID and PWSNP.
    let plain = pasid_entry(&puppet, &unit, 0x318, 0);
    let snoop = 1u64 << 23;
    assert_eq!(plain[0], second.table().root() | 0x89);
    assert_eq!(
        plain[1..],
        [u64::from(second.id()) | snoop, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(pasid_entry(&puppet, &unit, 0x318, 0x7fff), plain);
    // PGTT 001; FSPM 01 and the table.
    let entry = pasid_entry(&puppet, &unit, 0x318, 0x41);
    assert_eq!(entry[0], 0x49);
    assert_eq!(entry[1], u64::from(first.id()) | snoop);
    assert_eq!(entry[2], first.table().root() | 4);

    assert_eq!(unit.reach(DEVICE), Reach::Domain(second.id()));
    let again = unit.attach(&mut second, Attachment::new(DEVICE).with_pasid(one));
    let source_id = DEVICE;
    assert_eq!(
        again.unwrap_err(),
        DriverError::Attached {
            source_id,
            pasid: Some(one)
        }
    );

    // The first stage's pages are a PASID's.
    let _ = first
        .map(0x7000..0x9000, 0x1000, FirstStageAttributes::READ_WRITE)
        .unwrap();
    let stale = first.unmap(0x7000..0x8000).unwrap();
    puppet.forget_asked();
    unit.settle(&first, stale).unwrap();
    let pages = Pages {
        address: 0x7000,
        order: 0,
        leaves_only: true,
    };
    let (domain, scope) = (first.id(), PasidIotlbScope::Pages(pages));
    assert_eq!(
        puppet.take_asked(),
        [Descriptor::PasidIotlb {
            domain,
            pasid: one,
            scope
        }]
    );

    unit.detach(&mut first, DEVICE, Some(one)).unwrap();
    let cache = Descriptor::PasidCache(PasidCacheScope::Pasid { domain, pasid: one });
    let scope = PasidIotlbScope::All;
    assert_eq!(
        puppet.take_asked(),
        [
            cache,
            Descriptor::PasidIotlb {
                domain,
                pasid: one,
                scope
            }
        ]
    );
    assert_eq!(pasid_entry(&puppet, &unit, 0x318, 0x41)[0], 0);
    let gone = unit.detach(&mut first, DEVICE, Some(one)).unwrap_err();
    assert_eq!(
        gone,
        DriverError::NotAttached {
            source_id,
            pasid: Some(one)
        }
    );
    unit.destroy(first).map_err(|(_, error)| error).unwrap();
}

#[test]
fn both_halves_of_a_root_entry_are_used() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    // Devices 3 and 31 of bus 3.
    for source in [RequesterId(0x0318), RequesterId(0x03ff)] {
        unit.attach(&mut domain, Attachment::new(source)).unwrap();
        assert_eq!(pasid_entry(&puppet, &unit, source.0, 0)[0] & 1, 1);
    }
}

#[test]
fn a_guests_first_stage_is_nested() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut second = unit.new_domain().unwrap();
    let pasid = Pasid::new(5).unwrap();
    let device = Attachment::new(DEVICE).with_pasid(pasid);
    let table = FirstTable {
        address: 0xabc_d000,
        levels: 4,
    };
    unit.attach_nested(&mut second, device, table).unwrap();
    // P, AW 010, PGTT 011.
    let entry = pasid_entry(&puppet, &unit, 0x318, 5);
    assert_eq!(entry[0], second.table().root() | 0xc9);
    assert_eq!(entry[2], 0xabc_d000);
    // DID: the first-stage table's own.
    let domain = entry[1] as u16;
    assert_ne!(domain, second.id());
    puppet.forget_asked();
    unit.forget_pasid(&second, Some(pasid), None).unwrap();
    let scope = PasidIotlbScope::All;
    let first = Descriptor::PasidIotlb {
        domain,
        pasid,
        scope,
    };
    assert_eq!(puppet.take_asked(), [first]);
    unit.detach(&mut second, DEVICE, Some(pasid)).unwrap();
    let cache = Descriptor::PasidCache(PasidCacheScope::Pasid { domain, pasid });
    let drain = Drain::READS | Drain::WRITES;
    let all = Descriptor::Iotlb {
        scope: IotlbScope::Domain { domain },
        drain,
    };
    assert_eq!(puppet.take_asked(), [cache, first, all]);
    let five = FirstTable {
        address: 0,
        levels: 5,
    };
    let refused = unit.attach_nested(&mut second, device, five).unwrap_err();
    assert_eq!(
        refused,
        DriverError::Unsupported(Ability::FirstStageLevels(5))
    );
}

#[test]
fn a_device_tlb_is_let_through_when_it_comes() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let tlb = DeviceTlb {
        source: DEVICE,
        physical_source: DEVICE,
        max_pending: 0,
    };
    let pasid = Pasid::new(1).unwrap();
    let device = Attachment::new(DEVICE).with_pasid(pasid).with_tlb(tlb);
    unit.attach(&mut domain, device).unwrap();
    // Context cache of the device, PASID cache and IOTLB of the domain it is in.
    let id = u64::from(domain.id()) << 16;
    let asked = puppet.take_words();
    let changed = [0x318 << 32 | 0x31, id | 0x07, id | 0xe2];
    assert_eq!(asked, changed.map(|word| [word, 0, 0, 0]));
    // DTE, PASIDE, PRE in the context entry; PDTS 2.
    use hvkit_vtd_iommu::driver::Registers;
    let root = unit.registers().get(RTADDR).table();
    let context = (word(&puppet, root + 3 * 16) & !0xfff) + 0x18 * 32;
    assert_eq!(word(&puppet, context) & 0xfff, 0x41d);
    // And without the capability it is refused.
    let plain = Puppet::new(
        cap(),
        hvkit_vtd_iommu::spec::registers::ExtendedCapability(2),
    );
    let mut unit = plain.legacy();
    let mut domain = unit.new_domain().unwrap();
    let refused = unit
        .attach(&mut domain, Attachment::new(DEVICE).with_tlb(tlb))
        .unwrap_err();
    assert_eq!(refused, DriverError::Unsupported(Ability::DeviceTlb));
    let refused = unit.attach_pass_through(DEVICE).unwrap_err();
    assert_eq!(refused, DriverError::Unsupported(Ability::PassThrough));
}

/// First-stage addresses are canonical: the upper half is as good as the lower one, though all its bits are set.
#[test]
fn a_first_stage_has_an_upper_half() {
    let puppet = Puppet::new(cap(), scalable_ecap());
    let mut unit = puppet.scalable();
    let mut first = unit.new_first_stage_domain(4).unwrap();
    let high = 0xffff_8000_0000_0000;
    let _ = first
        .map(
            high..high + 0x1000,
            0x5000,
            FirstStageAttributes::READ_WRITE,
        )
        .unwrap();
    assert_eq!(first.translate(high + 8).unwrap().target, 0x5008);
    let beyond = 0x8000_0000_0000..0x8000_0000_1000;
    assert!(
        first
            .map(beyond, 0x5000, FirstStageAttributes::READ_WRITE)
            .is_err()
    );
}
