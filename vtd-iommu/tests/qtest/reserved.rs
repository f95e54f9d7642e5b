// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reserved memory (RMRR) stays reachable for the life of its device, whatever it is attached to.

use hvkit_page_table::Span;
use hvkit_vtd_iommu::driver::{Attachment, DomainError, DriverError, Reach};
use hvkit_vtd_iommu::spec::fault::FaultReason;

use crate::machine::{DATA, EDU, Lab, RW, assert_fault, assert_no_fault, map, refused};

const REGION: Span = Span::new(DATA + 0x10_0000, 0x4000);

fn reachable(lab: &Lab) {
    lab.poke(REGION.start, b"firmware");
    lab.dma_read(REGION.start, 8);
    lab.fill_memory(REGION.start + 0x3000, 8, 0);
    lab.dma_write(REGION.start + 0x3000, 8);
    assert_eq!(lab.peek(REGION.start + 0x3000, 8), b"firmware");
}

#[test]
fn reserved_memory_is_never_out_of_reach() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    unit.reserve(EDU, &[REGION]).unwrap();
    // Blocked, but for this.
    assert_eq!(unit.reach(EDU), Reach::Blocked);
    reachable(&lab);
    assert_no_fault(&mut unit);
    lab.dma_write(DATA, 8);
    assert_fault(&mut unit, FaultReason::NO_WRITE, DATA, EDU);

    let mut domain = unit.new_domain().unwrap();
    unit.attach(&mut domain, Attachment::new(EDU)).unwrap();
    map(&mut unit, &mut domain, 0x5000, DATA, 0x1000);
    reachable(&lab);
    lab.dma_write(0x5000, 8);
    assert_no_fault(&mut unit);
    // It cannot be taken away, in whole or in part.
    for range in [REGION.start..REGION.start + 0x1000, 0..1 << 30] {
        let answer = domain.unmap(range);
        let Err(DomainError::Reserved { start, length }) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!((start, length), (REGION.start, REGION.length));
    }
    let answer = domain.protect(0..1 << 30, |to| to);
    assert!(matches!(answer, Err(DomainError::Reserved { .. })));

    unit.detach(&mut domain, EDU, None).unwrap();
    reachable(&lab);
    assert_no_fault(&mut unit);
    lab.dma_write(0x5000, 8);
    assert_fault(&mut unit, FaultReason::NO_WRITE, 0x5000, EDU);
    // Nobody needs it there now.
    let stale = domain.unmap(0..1 << 30).unwrap();
    unit.settle(&domain, stale).unwrap();
    reachable(&lab);
    unit.attach_pass_through(EDU).unwrap();
    reachable(&lab);
    unit.detach_pass_through(EDU).unwrap();
    reachable(&lab);
    assert_no_fault(&mut unit);
}

#[test]
fn a_domain_that_needs_the_place_does_not_take_the_device() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    unit.reserve(EDU, &[REGION]).unwrap();
    let mut domain = unit.new_domain().unwrap();
    map(&mut unit, &mut domain, REGION.start, DATA, 0x1000);
    let error = refused(unit.attach(&mut domain, Attachment::new(EDU)));
    let start = REGION.start;
    assert_eq!(
        error,
        DriverError::ReservedMemory {
            source_id: EDU,
            start
        }
    );
    assert_eq!(unit.reach(EDU), Reach::Blocked);
    reachable(&lab);
    // Mapped to itself already, it is no hindrance.
    let mut domain = unit.new_domain().unwrap();
    let fresh = domain.map(REGION, REGION.start, RW).unwrap();
    unit.publish(&domain, fresh).unwrap();
    unit.attach(&mut domain, Attachment::new(EDU)).unwrap();
    reachable(&lab);
    assert_eq!(
        refused(unit.reserve(EDU, &[REGION])),
        DriverError::Attached {
            source_id: EDU,
            pasid: None
        }
    );
    assert_no_fault(&mut unit);
}
