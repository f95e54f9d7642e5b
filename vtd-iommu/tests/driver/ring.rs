// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An invalidation queue in memory that the caller gives.

use hvkit_page_table::{Frames, ReadEntry, Width};
use hvkit_vtd_iommu::driver::{
    Attachment, DescriptorWidth, DriverError, InvalidationQueue, Mmio, Options, RingMemory, Unit,
};
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::spec::invalidation::{AtsRange, ContextScope, Descriptor, DeviceTlb};

use crate::puppet::{DEVICE, Failure, Puppet, cap, ecap};

/// Invalidation Queue Tail Register, and Invalidation Queue Address Register.
const IQT: u32 = 0x88;
const IQA: u32 = 0x90;

fn with(address: u64, size: u8) -> Options {
    Options {
        ring: Some(RingMemory { address, size }),
        ..Options::legacy(46)
    }
}

/// Two pages hold 512 descriptors of 16 bytes, one after another from the first byte, and then the first again.
#[test]
fn a_ring_of_two_pages_goes_round_behind_its_last_descriptor() {
    let puppet = Puppet::new(cap(), ecap());
    let ring = puppet.memory.allocate().unwrap();
    let second = puppet.memory.allocate().unwrap();
    assert_eq!(second, ring + 0x1000);
    let mut unit = Unit::take(&puppet, &puppet.memory, &puppet.memory, with(ring, 1)).unwrap();
    assert_eq!(puppet.read64(IQA), ring | 1);
    let mut domain = unit.new_domain().unwrap();
    let mut behind = 0;
    for _ in 0..200 {
        let before = puppet.read64(IQT);
        unit.attach(&mut domain, Attachment::new(DEVICE)).unwrap();
        unit.detach(&mut domain, DEVICE, None).unwrap();
        let after = puppet.read64(IQT);
        assert!(after < 0x2000 && after.is_multiple_of(16));
        behind += u32::from(after < before);
    }
    assert!(behind > 0, "the ring was left behind its end");
    // Type 1 is a context-cache invalidation, 2 the IOTLB's, 5 a wait: nothing else is anywhere in it.
    for at in (ring..ring + 0x2000).step_by(16) {
        let Ok(word) = puppet.memory.words().read(at, Width::Eight);
        assert!(matches!(word & 0xf, 1 | 2 | 5), "{word:#x} at {at:#x}");
    }
}

/// One slot stays free: 255 descriptors fit into a page. More go in as they are done, and all are, in order.
#[test]
fn more_descriptors_than_the_ring_has_room_for_wait_for_it() {
    let puppet = Puppet::new(cap(), ecap());
    let (memory, width) = (&puppet.memory, DescriptorWidth::Narrow);
    let queue = InvalidationQueue::enable(&&puppet, memory, &memory, width, None);
    let mut queue = queue.unwrap();
    assert_eq!(queue.capacity(), 255);
    let domain = |domain| Descriptor::Context(ContextScope::Domain { domain });
    queue.run(&&puppet, (0..600).map(domain)).unwrap();
    assert!(puppet.take_asked().into_iter().eq((0..600).map(domain)));
}

#[test]
fn what_cannot_be_a_ring_is_refused_and_nothing_is_lost() {
    let puppet = Puppet::new(cap(), ecap());
    let free = puppet.memory.in_use();
    // Not on a page; 256 pages.
    for (address, size) in [(0x7_0800, 0), (0x7_0fff, 0), (0x7_0000, 8)] {
        let unit = Unit::take(&puppet, &puppet.memory, &puppet.memory, with(address, size));
        let bad = DriverError::BadTable { address, size };
        assert_eq!(unit.err(), Some(bad));
        assert_eq!(puppet.memory.in_use(), free);
    }
}

/// "Invalidation Time-out Error" stands until software clears it, and then it is about what was asked: one that a ring
/// that is full brings up is not lost in that of an invalidation before.
#[test]
fn a_time_out_in_the_middle_of_many_is_told() {
    let puppet = Puppet::new(cap(), ecap());
    let (memory, width) = (&puppet.memory, DescriptorWidth::Narrow);
    let queue = InvalidationQueue::enable(&&puppet, memory, &memory, width, None);
    let mut queue = queue.unwrap();
    let device = DeviceTlb {
        source: DEVICE,
        physical_source: RequesterId(0),
        max_pending: 0,
    };
    let range = AtsRange::ALL;
    let tlb = || Descriptor::DeviceTlb { device, range };
    let others = || (0..400).map(|domain| Descriptor::Context(ContextScope::Domain { domain }));
    let silent = Err(DriverError::DeviceTlbTimedOut { source_id: DEVICE });
    puppet.failure.set(Failure::DeviceTlbTimesOut);
    assert_eq!(queue.run(&&puppet, [tlb()]), silent);
    // Again, and now with more behind it than the ring holds: no more is asked than that.
    puppet.forget_asked();
    let many = [tlb()].into_iter().chain(others());
    assert_eq!(queue.run(&&puppet, many), silent);
    assert!(puppet.take_asked().len() < 256);
    // The unit repeats it of what was given up: that is nobody's any more.
    puppet.set32(0x34, 0x40);
    assert_eq!(queue.run(&&puppet, others()), Ok(()));
    assert_eq!(puppet.read32(0x34), 0);
}
