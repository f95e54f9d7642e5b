// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit in caching mode is told of what is new, too.

use hvkit_vtd_iommu::driver::DriverError;

use crate::machine::{DATA, Lab, RW, assert_no_fault, map, refused, with_domain};

#[test]
fn what_is_mapped_is_published() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on,caching-mode=on");
    let mut unit = lab.legacy();
    assert!(unit.capability().caching_mode());
    let mut domain = with_domain(&mut unit);
    let before = lab.rings.get();
    let fresh = domain.map(0x1000..0x3000, DATA, RW).unwrap();
    assert_eq!(lab.rings.get(), before, "mapping alone tells nobody");
    unit.publish(&domain, fresh).unwrap();
    assert_eq!(lab.rings.get(), before + 1);
    lab.dma_write(0x2000, 8);
    assert_no_fault(&mut unit);
    let mut other = unit.new_domain().unwrap();
    let fresh = other.map(0x1000..0x3000, DATA, RW).unwrap();
    let error = refused(unit.publish(&domain, fresh));
    assert_eq!(error, DriverError::ForeignDomain(other.id()));
    // Domain-id 0 is where absence is cached: nobody has it.
    assert!(domain.id() != 0 && other.id() != 0);
}

#[test]
fn others_are_not_told() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on,caching-mode=off");
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    let before = lab.rings.get();
    map(&mut unit, &mut domain, 0x1000, DATA, 0x1000);
    assert_eq!(lab.rings.get(), before);
    lab.dma_write(0x1000, 8);
    assert_no_fault(&mut unit);
}
