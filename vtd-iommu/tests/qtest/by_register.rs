// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit without a queue: the same, through registers.

use hvkit_vtd_iommu::driver::{Ability, DestinationMode, DriverError, Options, Unit};
use hvkit_vtd_iommu::spec::fault::FaultReason;

use crate::machine::{DATA, EDU, Lab, assert_fault, assert_no_fault, map, refused, with_domain};

#[test]
fn registers_invalidate_where_there_is_no_queue() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    // ECAP.QI
    lab.without_ecap.set(1 << 1);
    let mut unit = lab.legacy();
    assert!(unit.queue().is_none());
    let mut domain = with_domain(&mut unit);
    map(&mut unit, &mut domain, 0x1000, DATA, 0x4000);
    for page in [0x1000, 0x2000, 0x3000, 0x4000] {
        lab.dma_write(page, 8);
    }
    assert_no_fault(&mut unit);
    // One page, and a range that page selection cannot say in one.
    let stale = domain.unmap(0x1000..0x2000).unwrap();
    unit.settle(&domain, stale).unwrap();
    let stale = domain.unmap(0x2000..0x4000).unwrap();
    unit.settle(&domain, stale).unwrap();
    for page in [0x1000, 0x2000, 0x3000] {
        lab.dma_write(page, 8);
        assert_fault(&mut unit, FaultReason::NO_WRITE, page, EDU);
    }
    lab.dma_write(0x4000, 8);
    assert_no_fault(&mut unit);
    unit.detach(&mut domain, EDU, None).unwrap();
    lab.dma_write(0x4000, 8);
    assert_fault(&mut unit, FaultReason::CONTEXT_NOT_PRESENT, 0x4000, EDU);
    assert_eq!(lab.rings.get(), 0);
    // What has no register is refused.
    let table = unit
        .enable_interrupts(DestinationMode::XApic, None)
        .map(drop);
    assert_eq!(
        refused(table),
        DriverError::Unsupported(Ability::QueuedInvalidation)
    );
    let scalable = Unit::take(&lab, &lab, &lab, Options::scalable(39)).map(drop);
    assert!(matches!(refused(scalable), DriverError::Unsupported(_)));
}
