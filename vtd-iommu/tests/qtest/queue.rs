// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The invalidation queue: wrap, overfull batches, refused descriptors, reset.

use hvkit_vtd_iommu::driver::{DriverError, Options, RingMemory, Unit};
use hvkit_vtd_iommu::spec::fault::FaultReason;
use hvkit_vtd_iommu::spec::invalidation::{Descriptor, Drain, IotlbScope, RawDescriptor};

use crate::machine::{DATA, EDU, Lab, assert_fault, assert_no_fault, map, refused, with_domain};

const GLOBAL: Descriptor = Descriptor::Iotlb {
    scope: IotlbScope::Global,
    drain: Drain::empty(),
};

#[test]
fn the_ring_wraps() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    // 255 descriptors fit. Each round uses three and a wait, so its places move on.
    for round in 0..100u64 {
        map(
            &mut unit,
            &mut domain,
            0x1000,
            DATA + 0x1000 * (round % 4),
            4096,
        );
        lab.dma_write(0x1000, 8);
        let queue = unit.queue().unwrap();
        queue.run(&&lab, [GLOBAL, GLOBAL]).unwrap();
        let stale = domain.unmap(0x1000..0x2000).unwrap();
        unit.settle(&domain, stale).unwrap();
    }
    assert_no_fault(&mut unit);
    lab.dma_write(0x1000, 8);
    assert_fault(&mut unit, FaultReason::NO_WRITE, 0x1000, EDU);
}

#[test]
fn more_than_the_ring_holds_is_done_in_pieces() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let queue = unit.queue().unwrap();
    assert_eq!(queue.capacity(), 255);
    for count in [254, 255, 256, 600] {
        queue.run(&&lab, (0..count).map(|_| GLOBAL)).unwrap();
    }
    queue.run(&&lab, []).unwrap();
}

#[test]
fn a_ring_may_be_larger_than_a_frame() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let ring = |address, size| Options {
        ring: Some(RingMemory { address, size }),
        ..Options::legacy(39)
    };
    for (address, size) in [(DATA + 8, 1), (DATA, 8)] {
        let unit = Unit::take(&lab, &lab, &lab, ring(address, size)).map(drop);
        assert_eq!(refused(unit), DriverError::BadTable { address, size });
    }
    assert_eq!(lab.frames_in_use(), 0);
    let mut unit = Unit::take(&lab, &lab, &lab, ring(DATA, 2)).unwrap();
    let queue = unit.queue().unwrap();
    assert_eq!(queue.capacity(), 1023);
    queue.run(&&lab, (0..1500).map(|_| GLOBAL)).unwrap();
}

#[test]
fn a_refused_descriptor_is_told_and_the_queue_goes_on() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let mut domain = with_domain(&mut unit);
    let bad: [[u64; 2]; 4] = [
        // No such type.
        [0x0000_0000_0000_000f, 0],
        // A wait with a reserved bit in the status address.
        [0x0000_0001_0000_0025, 3],
        // Global granularity is 1; 0 is reserved.
        [0x0000_0000_0000_0002, 0],
        // Reserved bits of an IOTLB invalidation.
        [0xffff_0000_0000_0012, 0],
    ];
    for (round, words) in bad.into_iter().enumerate() {
        let queue = unit.queue().unwrap();
        let answer = queue.run_raw(&&lab, RawDescriptor::from_narrow(words));
        let Err(DriverError::Queue { first, .. }) = answer else {
            panic!("{words:x?}: {answer:?}");
        };
        assert_eq!(first, words[0]);
        // What follows is done as if nothing had been.
        map(&mut unit, &mut domain, 0x1000, DATA, 4096);
        lab.dma_write(0x1000, 8);
        assert_no_fault(&mut unit);
        let stale = domain.unmap(0x1000..0x2000).unwrap();
        unit.settle(&domain, stale).unwrap();
        lab.dma_write(0x1000, 8);
        assert_fault(&mut unit, FaultReason::NO_WRITE, 0x1000, EDU);
        assert!(round < 4);
    }
    // A ring cleared by mistake is a queue of descriptors of type 0.
    let queue = unit.queue().unwrap();
    let words = [0x0000_0000_0000_0000, 0];
    queue.run(&&lab, [GLOBAL, GLOBAL]).unwrap();
    assert!(
        queue
            .run_raw(&&lab, RawDescriptor::from_narrow(words))
            .is_err()
    );
    queue.run(&&lab, [GLOBAL]).unwrap();
}

#[test]
fn a_queue_can_be_reset() {
    lab_kit::skip_if!(lab_kit::qtest::missing());
    let lab = Lab::new("aw-bits=48,intremap=on");
    let mut unit = lab.legacy();
    let queue = unit.queue().unwrap();
    queue.run(&&lab, [GLOBAL, GLOBAL]).unwrap();
    queue.reset(&&lab).unwrap();
    queue.run(&&lab, (0..300).map(|_| GLOBAL)).unwrap();
}
