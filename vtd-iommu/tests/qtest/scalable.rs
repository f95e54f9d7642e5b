// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scalable mode: PASID tables, 256-bit descriptors, second stage; and the first stage of a newer QEMU.

use hvkit_page_table::Span;
use hvkit_vtd_iommu::driver::{Attachment, DriverError, Options, Unit};
use hvkit_vtd_iommu::spec::Pasid;
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::tables::FirstStageAttributes;

use crate::machine::{
    DATA, EDU, Lab, LabUnit, NO_QEMU_11, assert_fault, assert_no_fault, map, refused, the_fault,
    with_domain,
};

fn scalable(lab: &Lab) -> LabUnit<'_> {
    let mut unit = Unit::take(lab, lab, lab, Options::scalable(39)).unwrap();
    unit.enable().unwrap();
    unit
}

/// The PASID entry is absent. QEMU 7.2 says that it could not be accessed, 11 that it is invalid.
fn assert_no_pasid(unit: &mut LabUnit<'_>, page: u64) {
    let fault = the_fault(unit);
    assert_eq!((fault.address(), fault.source()), (Some(page), EDU));
    let absent = [
        FaultReason::SM_PASID_NOT_PRESENT,
        FaultReason::SM_PASID_TABLE_ACCESS,
        FaultReason::SM_PASID_INVALID,
    ];
    assert!(absent.contains(&fault.reason()), "{fault:x?}");
}

fn second_stage_works(lab: &Lab) {
    let mut unit = scalable(lab);
    assert_eq!(unit.queue().unwrap().capacity(), 127, "256-bit descriptors");
    // QEMU names absent root and context entries as in legacy mode.
    lab.dma_write(0x1000, 8);
    assert_fault(&mut unit, FaultReason::ROOT_NOT_PRESENT, 0x1000, EDU);
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, 0x1000, DATA, 0x2000);
    lab.poke(DATA, b"scalable");
    lab.dma_read(0x1000, 8);
    lab.dma_write(0x2100, 8);
    assert_eq!(lab.peek(DATA + 0x1100, 8), b"scalable");
    assert_no_fault(&mut unit);
    let stale = domain.unmap(0x2000..0x3000).unwrap();
    unit.settle(&domain, stale).unwrap();
    lab.fill_memory(DATA + 0x1000, 4096, 0);
    lab.dma_write(0x2100, 8);
    // And so its second stage's refusals.
    assert_fault(&mut unit, FaultReason::NO_WRITE, 0x2000, EDU);
    assert_eq!(lab.peek(DATA + 0x1100, 8), [0; 8]);
    // The queue of wide descriptors wraps too.
    for _ in 0..200 {
        unit.forget_everything().unwrap();
    }
    unit.detach(&mut domain, EDU, None).unwrap();
    lab.dma_write(0x1000, 8);
    assert_no_pasid(&mut unit, 0x1000);
    unit.destroy(domain).map_err(|(_, error)| error).unwrap();
}

#[test]
fn second_stage() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    second_stage_works(&Lab::new("aw-bits=48,intremap=on,x-scalable-mode=on"));
}

#[test]
fn pass_through_and_reserved_memory() {
    // QEMU 7.2 ignores invalidations of the PASID cache.
    let lab = Lab::newer("aw-bits=48,intremap=on,scalable-mode=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = lab.unwrap();
    let mut unit = scalable(&lab);
    let region = Span::new(DATA + 0x8000, 0x1000);
    unit.reserve(EDU, &[region]).unwrap();
    lab.poke(region.start, b"held");
    lab.dma_read(region.start, 4);
    unit.attach_pass_through(EDU).unwrap();
    lab.dma_write(DATA, 4);
    assert_eq!(lab.peek(DATA, 4), b"held");
    unit.detach_pass_through(EDU).unwrap();
    lab.dma_write(region.start + 8, 4);
    assert_eq!(lab.peek(region.start + 8, 4), b"held");
    assert_no_fault(&mut unit);
    // QEMU notices that an entry passes nothing through any more when the context is invalidated, not before.
    unit.forget_everything().unwrap();
    lab.dma_write(DATA, 4);
    assert_fault(&mut unit, FaultReason::NO_WRITE, DATA, EDU);
}

#[test]
fn pasids_that_cannot_be_are_refused() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on,x-scalable-mode=on");
    let mut unit = scalable(&lab);
    let mut domain = unit.new_domain().unwrap();
    let limit = 1 << unit.extended_capability().pasid_bits().min(15);
    for pasid in [Pasid::ZERO, Pasid::new(limit).unwrap()] {
        let device = Attachment::new(EDU).with_pasid(pasid);
        let error = refused(unit.attach(&mut domain, device));
        assert_eq!(error, DriverError::BadPasid(pasid));
    }
}

#[test]
fn second_stage_of_qemu_11() {
    let lab = Lab::newer("aw-bits=48,intremap=on,scalable-mode=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    second_stage_works(&lab.unwrap());
}

#[test]
fn first_stage_of_qemu_11() {
    let lab = Lab::newer("aw-bits=48,intremap=on,scalable-mode=on,fsts=on");
    lab_kit::skip_newer_if!(lab.is_none().then(|| NO_QEMU_11.to_owned()));
    let lab = lab.unwrap();
    let mut unit = scalable(&lab);
    let mut domain = unit.new_first_stage_domain(4).unwrap();
    unit.attach(&mut domain, Attachment::new(EDU)).unwrap();
    let fresh = domain
        .map(
            0x7fff_0000_0000..0x7fff_0000_2000,
            DATA,
            FirstStageAttributes::READ_WRITE,
        )
        .unwrap();
    unit.publish(&domain, fresh).unwrap();
    // 2 MiB.
    let fresh = domain
        .map(
            0x4000_0000..0x4020_0000,
            0xa0_0000,
            FirstStageAttributes::READ,
        )
        .unwrap();
    unit.publish(&domain, fresh).unwrap();
    assert_eq!(domain.translate(0x4000_0000).unwrap().level, 2);
    lab.poke(0xa1_0000, b"first");
    lab.dma_read(0x4001_0000, 5);
    assert_no_fault(&mut unit);
    lab.dma_write(0x7fff_0000_1008, 5);
    assert_no_fault(&mut unit);
    assert_eq!(lab.peek(DATA + 0x1008, 5), b"first");
    assert_no_fault(&mut unit);

    // A page that was not read before: QEMU records nothing for a cached one without the right.
    let fresh = domain
        .map(0x5000_0000..0x5000_1000, DATA, FirstStageAttributes::READ)
        .unwrap();
    unit.publish(&domain, fresh).unwrap();
    lab.dma_write(0x5000_0000, 5);
    assert_fault(&mut unit, FaultReason::SM_NO_WRITE, 0x5000_0000, EDU);
    lab.dma_write(0x8000_0000_0000, 5);
    assert_fault(
        &mut unit,
        FaultReason::SM_NOT_CANONICAL,
        0x8000_0000_0000,
        EDU,
    );
    let stale = domain.unmap(0x7fff_0000_1000..0x7fff_0000_2000).unwrap();
    unit.settle(&domain, stale).unwrap();
    lab.dma_write(0x7fff_0000_1008, 5);
    assert_fault(
        &mut unit,
        FaultReason::SM_FIRST_STAGE_NOT_PRESENT,
        0x7fff_0000_1000,
        EDU,
    );
    lab.dma_write(0x7fff_0000_0008, 5);
    assert_no_fault(&mut unit);
    unit.detach(&mut domain, EDU, None).unwrap();
    lab.dma_write(0x7fff_0000_0008, 5);
    assert_no_pasid(&mut unit, 0x7fff_0000_0000);
}
