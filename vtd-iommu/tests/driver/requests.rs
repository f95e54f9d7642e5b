// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the unit is asked, for each thing that the driver does.

use hvkit_vtd_iommu::driver::{Attachment, DomainError, RingMemory};
use hvkit_vtd_iommu::spec::invalidation::{
    AtsRange, ContextScope, Descriptor, DeviceTlb, Drain, IotlbScope, Pages,
};
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use crate::puppet::{DEVICE, Puppet, PuppetDomain, PuppetUnit, cap, ecap};

const RW: SecondStageAttributes = SecondStageAttributes::READ_WRITE;
const TLB: DeviceTlb = DeviceTlb {
    source: DEVICE,
    physical_source: DEVICE,
    max_pending: 4,
};

fn pages(domain: u16, address: u64, order: u8, leaves_only: bool) -> Descriptor {
    let pages = Pages {
        address,
        order,
        leaves_only,
    };
    Descriptor::Iotlb {
        scope: IotlbScope::Pages { domain, pages },
        drain: Drain::READS | Drain::WRITES,
    }
}

fn all(domain: u16) -> Descriptor {
    Descriptor::Iotlb {
        scope: IotlbScope::Domain { domain },
        drain: Drain::READS | Drain::WRITES,
    }
}

fn unmap<'a>(
    puppet: &Puppet,
    unit: &mut PuppetUnit<'a>,
    domain: &mut PuppetDomain<'a>,
    at: u64,
    bytes: u64,
) -> Vec<Descriptor> {
    let stale = domain.unmap(at..at + bytes).unwrap();
    puppet.forget_asked();
    unit.settle(domain, stale).unwrap();
    assert_eq!(puppet.waits.get(), 1);
    puppet.take_asked()
}

#[test]
fn a_range_is_one_descriptor_as_narrow_as_the_unit_allows() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let id = domain.id();
    let _ = domain.map(0..0x20_0000, 0x4000_1000, RW).unwrap();
    let _ = domain.map(1 << 40..(1 << 40) + (4 << 30), 0, RW).unwrap();
    // A page of many: no table goes.
    let asked = unmap(&puppet, &mut unit, &mut domain, 0x5000, 0x1000);
    assert_eq!(asked, [pages(id, 0x5000, 0, true)]);
    // Three pages: the aligned four that hold them.
    let asked = unmap(&puppet, &mut unit, &mut domain, 0x9000, 0x3000);
    assert_eq!(asked, [pages(id, 0x8000, 2, true)]);
    // All of a leaf table: the table goes.
    let asked = unmap(&puppet, &mut unit, &mut domain, 0, 0x20_0000);
    assert_eq!(asked, [pages(id, 0, 9, false)]);
    // 2^20 pages are more than MAMV allows.
    let asked = unmap(&puppet, &mut unit, &mut domain, 1 << 40, 4 << 30);
    assert_eq!(asked, [all(id)]);
}

#[test]
fn units_without_page_selection_or_draining_are_asked_for_neither() {
    let plain = cap()
        .with_page_selective(false)
        .with_drain_reads(false)
        .with_drain_writes(false);
    let puppet = Puppet::new(plain, ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
    let _ = domain.map(0..0x2000, 0x4000_1000, RW).unwrap();
    let asked = unmap(&puppet, &mut unit, &mut domain, 0, 0x1000);
    let scope = IotlbScope::Domain {
        domain: domain.id(),
    };
    assert_eq!(
        asked,
        [Descriptor::Iotlb {
            scope,
            drain: Drain::empty()
        }]
    );
}

#[test]
fn a_domain_that_nobody_uses_owes_nothing_to_the_unit() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    let _ = domain.map(0..0x2000, 0x4000_1000, RW).unwrap();
    let frames = puppet.memory.in_use();
    let stale = domain.unmap(0..0x2000).unwrap();
    unit.settle(&domain, stale).unwrap();
    assert_eq!((puppet.take_asked(), puppet.waits.get()), (vec![], 0));
    assert!(puppet.memory.in_use() <= frames);
}

#[test]
fn device_tlbs_are_told_after_the_unit() {
    let puppet = Puppet::new(cap(), ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    let device = Attachment::new(DEVICE).with_tlb(TLB);
    unit.attach(&mut domain, device).unwrap();
    let id = domain.id();
    let _ = domain.map(0..0x40_0000, 0x4000_1000, RW).unwrap();
    let range = |address, order| Descriptor::DeviceTlb {
        device: TLB,
        range: AtsRange { address, order },
    };
    let asked = unmap(&puppet, &mut unit, &mut domain, 0x5000, 0x1000);
    assert_eq!(asked, [pages(id, 0x5000, 0, true), range(0x5000, 0)]);
    let asked = unmap(&puppet, &mut unit, &mut domain, 0x20_0000, 0x20_0000);
    assert_eq!(asked, [pages(id, 0x20_0000, 9, false), range(0x20_0000, 9)]);
    // Detaching: the caches in the order in which they are filled.
    puppet.forget_asked();
    unit.detach(&mut domain, DEVICE, None).unwrap();
    let context = Descriptor::Context(ContextScope::Device {
        domain: id,
        source: DEVICE,
        function_mask: 0,
    });
    let everything = Descriptor::DeviceTlb {
        device: TLB,
        range: AtsRange::ALL,
    };
    assert_eq!(puppet.take_asked(), [context, all(id), everything]);
}

#[test]
fn attaching_is_free_unless_absence_is_cached_or_writes_are_buffered() {
    for (capability, asked, flushes) in [
        (cap(), 0, 0),
        (cap().with_write_buffer_flush(true), 0, 1),
        (cap().with_caching_mode(true), 2, 0),
    ] {
        let puppet = Puppet::new(capability, ecap());
        let mut unit = puppet.legacy();
        let mut domain = unit.new_domain().unwrap();
        unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
        let seen = puppet.take_asked();
        assert_eq!(
            (seen.len(), puppet.write_buffer_flushes.get()),
            (asked, flushes)
        );
        if asked > 0 {
            let context = Descriptor::Context(ContextScope::Device {
                domain: 0,
                source: DEVICE,
                function_mask: 0,
            });
            assert_eq!(seen, [context, all(domain.id())]);
        }
        let fresh = domain.map(0x1000..0x2000, 0x1000, RW).unwrap();
        assert_eq!(fresh.span().length, 0x1000);
        unit.publish(&domain, fresh).unwrap();
        let seen = puppet.take_asked();
        assert_eq!(seen.len(), usize::from(asked > 0));
        assert_eq!(puppet.write_buffer_flushes.get(), 2 * flushes);
    }
}

#[test]
fn widths_are_chosen_by_what_the_unit_reaches() {
    let levels = |sagaw, mgaw| {
        let puppet = Puppet::new(cap().with_sagaw(sagaw).with_mgaw(mgaw), ecap());
        let unit = puppet.legacy();
        unit.second_stage_levels().unwrap()
    };
    assert_eq!(levels(0b00010, 38), 3);
    assert_eq!(levels(0b00110, 38), 3);
    assert_eq!(levels(0b00100, 38), 4, "a desktop's: 39 bits in 4 levels");
    assert_eq!(levels(0b00110, 47), 4);
    assert_eq!(levels(0b01110, 56), 5);
    assert_eq!(levels(0b00110, 56), 4, "the widest there is");
    // MGAW below the table's width is a limit of its own.
    let puppet = Puppet::new(cap().with_sagaw(0b00100).with_mgaw(38), ecap());
    let mut unit = puppet.legacy();
    let mut domain = unit.new_domain().unwrap();
    let beyond = domain.map(1 << 39..(1 << 39) + 0x1000, 0, RW).unwrap_err();
    assert!(matches!(beyond, DomainError::BeyondWidth { bits: 39, .. }));
    let _ = domain.map((1 << 39) - 0x1000..1 << 39, 0, RW).unwrap();
}

#[test]
fn interrupt_tables_may_be_large() {
    let puppet = Puppet::new(
        cap(),
        ecap()
            .with_interrupt_remapping(true)
            .with_max_handle_mask(2),
    );
    let mut unit = puppet.legacy();
    let first = hvkit_page_table::Frames::allocate(&&puppet.memory).unwrap();
    let second = hvkit_page_table::Frames::allocate(&&puppet.memory).unwrap();
    assert_eq!(second, first + 0x1000);
    let table = Some(RingMemory {
        address: first,
        size: 1,
    });
    let mode = hvkit_vtd_iommu::driver::DestinationMode::XApic;
    let mut table = unit.enable_interrupts(mode, table).unwrap();
    // 512 entries: S is 8.
    assert_eq!(
        hvkit_vtd_iommu::driver::Mmio::read64(&puppet, 0xb8),
        first | 8
    );
    let block = table.allocate(16).unwrap();
    puppet.forget_asked();
    unit.free_interrupts(&mut table, block).unwrap();
    // 16 entries are more than the handle mask allows at once.
    let global = hvkit_vtd_iommu::spec::invalidation::InterruptScope::Global;
    assert_eq!(puppet.take_asked(), [Descriptor::Interrupt(global)]);
    assert!(table.allocate(1024).is_err());
}
