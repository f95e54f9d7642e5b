// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attach, map, DMA reaches; unmap and wait, DMA faults; detach; superpages; policies.

use hvkit_page_table::Frames;
use hvkit_vtd_iommu::driver::{
    Ability, Attachment, Deferred, DeferredFlush, DomainError, DriverError, Options, Reach,
    StillOwed, Unit,
};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::fault::{FaultReason, RequestKind};
use hvkit_vtd_iommu::tables::SecondStageAttributes;

use crate::machine::{
    DATA, EDU, Lab, assert_fault, assert_no_fault, map, refused, the_fault, with_domain,
};

const PAGE: u64 = 4096;

#[test]
fn everything_is_blocked_until_it_is_attached() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    lab.fill_memory(DATA, 64, 0xaa);
    assert!(unit.is_enabled());
    lab.dma_write(DATA, 64);
    assert_fault(&mut unit, FaultReason::ROOT_NOT_PRESENT, DATA, EDU);
    assert_eq!(lab.peek(DATA, 64), [0xaa; 64]);
    // With another device of the bus attached, the context entry is what is missing.
    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(RequesterId(0x20)))
        .unwrap();
    lab.dma_read(DATA, 64);
    let fault = the_fault(&mut unit);
    assert_eq!(fault.reason(), FaultReason::CONTEXT_NOT_PRESENT);
    assert_eq!((fault.kind(), fault.source()), (RequestKind::Read, EDU));
    assert_eq!(unit.reach(EDU), Reach::Blocked);
    assert_eq!(unit.reach(RequesterId(0x20)), Reach::Domain(domain.id()));
}

#[test]
fn dma_reaches_what_is_mapped_and_nothing_after_unmap_and_wait() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, 0x7000_0000_0000, DATA, 4 * PAGE);
    let pattern: Vec<u8> = (0..=255).collect();
    lab.poke(DATA + PAGE + 0x10, &pattern);
    lab.dma_read(0x7000_0000_1010, 256);
    lab.dma_write(0x7000_0000_3008, 256);
    assert_eq!(lab.peek(DATA + 3 * PAGE + 8, 256), pattern);
    assert_no_fault(&mut unit);

    let stale = domain.unmap(0x7000_0000_3000..0x7000_0000_4000).unwrap();
    unit.settle(&domain, stale).unwrap();
    lab.fill_memory(DATA + 3 * PAGE, 4096, 0);
    lab.dma_write(0x7000_0000_3008, 256);
    assert_fault(&mut unit, FaultReason::NO_WRITE, 0x7000_0000_3000, EDU);
    assert_eq!(lab.peek(DATA + 3 * PAGE, 4096), [0; 4096]);
    lab.dma_read(0x7000_0000_3008, 8);
    assert_fault(&mut unit, FaultReason::NO_READ, 0x7000_0000_3000, EDU);
    // The rest is as it was.
    lab.dma_write(0x7000_0000_2000, 256);
    assert_eq!(lab.peek(DATA + 2 * PAGE + 8, 248), pattern[8..]);
    assert_eq!(
        lab.peek(DATA + 2 * PAGE, 8),
        [0; 8],
        "what the refused read yielded"
    );
    assert_no_fault(&mut unit);
}

#[test]
fn detaching_blocks_and_frees_nothing_early() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let before = lab.frames_in_use();
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, 0x10_0000, DATA, PAGE);
    lab.dma_write(0x10_0000, 64);
    assert_no_fault(&mut unit);

    let (domain, error) = unit.destroy(domain).unwrap_err();
    assert_eq!(error, DriverError::DomainInUse(domain.id()));
    let mut domain = domain;
    assert_eq!(
        refused(unit.attach(&mut domain, Attachment::new(EDU))),
        DriverError::Attached {
            source_id: EDU,
            pasid: None
        }
    );
    unit.detach(&mut domain, EDU, None).unwrap();
    lab.dma_write(0x10_0000, 64);
    assert_fault(&mut unit, FaultReason::CONTEXT_NOT_PRESENT, 0x10_0000, EDU);
    assert_eq!(
        refused(unit.detach(&mut domain, EDU, None)),
        DriverError::NotAttached {
            source_id: EDU,
            pasid: None
        }
    );
    unit.destroy(domain).map_err(|(_, error)| error).unwrap();
    // What is left is the context table.
    assert_eq!(lab.frames_in_use(), before + 1);
    // And the next domain works.
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, 0x20_0000, DATA, PAGE);
    lab.dma_write(0x20_0000, 64);
    assert_no_fault(&mut unit);
}

#[test]
fn large_pages_are_used_where_they_fit() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=39,intremap=on");
    let mut unit = lab.legacy();
    assert_eq!(unit.second_stage_levels(), Ok(3));
    let mut domain = with_domain(&mut unit);
    // 2 MiB at 2 MiB, and a page after it.
    map(
        &mut unit,
        &mut domain,
        0x4000_0000,
        0xa0_0000,
        (2 << 20) + PAGE,
    );
    assert_eq!(domain.translate(0x4000_0000).unwrap().level, 2);
    assert_eq!(domain.translate(0x4020_0000).unwrap().level, 1);
    lab.fill_memory(0xa0_0000, 3 << 20, 0x55);
    lab.poke(0xa1_2345, b"large");
    lab.dma_read(0x4001_2345, 5);
    lab.dma_write(0x401f_fff0, 5);
    lab.dma_write(0x4020_0800, 5);
    assert_eq!(lab.peek(0xbf_fff0, 5), b"large");
    assert_eq!(lab.peek(0xc0_0800, 5), b"large");
    assert_no_fault(&mut unit);
    // Cut out of the middle: the rest of the large page stays.
    let stale = domain.unmap(0x4010_0000..0x4010_1000).unwrap();
    unit.settle(&domain, stale).unwrap();
    lab.dma_write(0x4010_0000, 5);
    assert_fault(&mut unit, FaultReason::NO_WRITE, 0x4010_0000, EDU);
    lab.dma_write(0x4010_1000, 5);
    lab.dma_write(0x400f_f000, 5);
    assert_no_fault(&mut unit);
    assert_eq!(lab.peek(0xaf_f000, 5), b"large");
}

#[test]
fn rights_are_the_mappings() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    let fresh = domain
        .map(0x1000..0x2000, DATA, SecondStageAttributes::READ)
        .unwrap();
    unit.publish(&domain, fresh).unwrap();
    lab.dma_read(0x1000, 64);
    assert_no_fault(&mut unit);
    let stale = domain
        .protect(0x1000..0x2000, |_| SecondStageAttributes::WRITE)
        .unwrap();
    unit.settle(&domain, stale).unwrap();
    lab.dma_write(0x1000, 64);
    assert_no_fault(&mut unit);
    let stale = domain
        .protect(0x1000..0x2000, |_| SecondStageAttributes::READ)
        .unwrap();
    unit.settle(&domain, stale).unwrap();
    lab.dma_write(0x1000, 64);
    assert_fault(&mut unit, FaultReason::NO_WRITE, 0x1000, EDU);
}

#[test]
fn two_devices_share_a_domain_and_not_each_others() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let second = "edu,addr=4,dma_mask=0xffffffffffffffff";
    let lab = Lab::with(lab_kit::qtest::QtestOptions::new().device(second));
    let other = RequesterId(0x20);
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    unit.attach(&mut domain, Attachment::new(other)).unwrap();
    map(&mut unit, &mut domain, 0x1000, DATA, PAGE);
    lab.fill_memory(DATA, 4096, 1);
    lab.other_dma_write(4, 0xe100_0000, 0x1000, 16);
    assert_eq!(
        lab.peek(DATA, 17)[15..],
        [0, 1],
        "an edu's buffer starts as zeroes"
    );
    assert_eq!(domain.attached().len(), 2);
    unit.detach(&mut domain, other, None).unwrap();
    lab.other_dma_write(4, 0xe100_0000, 0x1000, 32);
    assert_fault(&mut unit, FaultReason::CONTEXT_NOT_PRESENT, 0x1000, other);
    assert_eq!(lab.peek(DATA, 32)[16..], [1; 16]);
    lab.dma_write(0x1000, 32);
    assert_no_fault(&mut unit);
}

#[test]
fn pass_through_reaches_memory_untranslated() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    unit.attach_pass_through(EDU).unwrap();
    assert_eq!(unit.reach(EDU), Reach::PassThrough);
    lab.poke(DATA, b"pass");
    lab.dma_read(DATA, 4);
    lab.dma_write(DATA + 0x100, 4);
    assert_eq!(lab.peek(DATA + 0x100, 4), b"pass");
    assert_no_fault(&mut unit);
    unit.detach_pass_through(EDU).unwrap();
    lab.dma_write(DATA + 0x200, 4);
    assert_fault(&mut unit, FaultReason::CONTEXT_NOT_PRESENT, DATA, EDU);
    assert_eq!(
        refused(unit.detach_pass_through(EDU)),
        DriverError::NotAttached {
            source_id: EDU,
            pasid: None
        }
    );
}

#[test]
fn many_tokens_need_one_wait() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, 0, DATA, 32 * PAGE);
    let owed: Vec<_> = (0..8)
        .map(|i| domain.unmap(4 * i * PAGE..(4 * i + 1) * PAGE).unwrap())
        .collect();
    let before = lab.rings.get();
    unit.settle_all(owed.into_iter().map(|stale| (&domain, stale)))
        .unwrap();
    assert_eq!(lab.rings.get() - before, 1);
    for i in 0..8 {
        lab.dma_write(4 * i * PAGE, 8);
        assert_fault(&mut unit, FaultReason::NO_WRITE, 4 * i * PAGE, EDU);
    }
    lab.dma_write(PAGE, 8);
    assert_no_fault(&mut unit);
}

#[test]
fn deferred_unmappings_are_settled_together() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, 0, DATA, 32 * PAGE);
    for page in 0..8 {
        // Have every translation cached.
        lab.dma_write(page * PAGE, 8);
    }
    let mut deferred = Deferred::new(&domain, 4);
    let before = lab.rings.get();
    for page in 0..4 {
        let stale = domain.unmap(page * PAGE..(page + 1) * PAGE).unwrap();
        let flushed = deferred.defer(&mut unit, &domain, stale).unwrap();
        let last = if page == 3 {
            DeferredFlush::Yes
        } else {
            DeferredFlush::NotYet
        };
        assert_eq!(flushed, last);
    }
    assert_eq!((lab.rings.get() - before, deferred.owed()), (1, 0));
    lab.dma_write(2 * PAGE, 8);
    assert_fault(&mut unit, FaultReason::NO_WRITE, 2 * PAGE, EDU);

    let stale = domain.unmap(5 * PAGE..6 * PAGE).unwrap();
    deferred.defer(&mut unit, &domain, stale).unwrap();
    deferred.flush(&mut unit, &domain).unwrap();
    lab.dma_write(5 * PAGE, 8);
    assert_fault(&mut unit, FaultReason::NO_WRITE, 5 * PAGE, EDU);

    // Another domain's token is given back.
    let mut other = unit.new_domain().unwrap();
    let _ = other.map(0..PAGE, DATA, crate::machine::RW).unwrap();
    let stale = other.unmap(0..PAGE).unwrap();
    let StillOwed::NotTaken(owed) = deferred.defer(&mut unit, &domain, stale).unwrap_err() else {
        panic!("it was never this domain's");
    };
    unit.settle(&other, owed.stale).unwrap();
}

#[test]
fn what_a_unit_cannot_do_is_refused() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let scalable = Unit::take(&lab, &lab, &lab, Options::scalable(39)).map(drop);
    assert_eq!(
        refused(scalable),
        DriverError::Unsupported(Ability::ScalableMode)
    );
    let mut unit = lab.legacy();
    let first = unit.new_first_stage_domain(4).map(drop);
    assert_eq!(
        refused(first),
        DriverError::Unsupported(Ability::FirstStage)
    );
    let requests = unit.enable_page_requests(None).map(drop);
    assert_eq!(
        refused(requests),
        DriverError::Unsupported(Ability::PageRequests)
    );
    let mut domain = unit.new_domain().unwrap();
    let beyond = domain.map(1 << 48..(1 << 48) + PAGE, DATA, crate::machine::RW);
    assert!(
        matches!(beyond, Err(DomainError::BeyondWidth { bits: 48, .. })),
        "{beyond:?}"
    );
    let interrupts = domain.map(0xfeef_f000..0xfef0_1000, DATA, crate::machine::RW);
    assert!(
        matches!(interrupts, Err(DomainError::Interrupts { .. })),
        "{interrupts:?}"
    );
    // A second unit's domain is not this one's.
    let second = Lab::new("aw-bits=48");
    // A frame taken, so that their root tables are not at the same address.
    assert!(second.allocate().is_some());
    let mut second_unit = second.legacy();
    let mut foreign = second_unit.new_domain().unwrap();
    let error = refused(unit.attach(&mut foreign, Attachment::new(EDU)));
    assert_eq!(error, DriverError::ForeignDomain(foreign.id()));
}

#[test]
fn a_unit_is_taken_over_from_an_earlier_owner() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut first = lab.legacy();
    let _domain = with_domain(&mut first);
    lab.dma_write(0x5000, 8);
    drop(first);
    // Faults pending, translation and queue on.
    let mut unit = Unit::take(&lab, &lab, &lab, Options::legacy(39)).unwrap();
    assert!(!unit.is_enabled());
    assert_no_fault(&mut unit);
    unit.enable().unwrap();
    lab.dma_write(0x5000, 8);
    assert_fault(&mut unit, FaultReason::ROOT_NOT_PRESENT, 0x5000, EDU);
    unit.disable().unwrap();
    lab.dma_write(DATA, 8);
    assert_no_fault(&mut unit);
}
