// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A whole device behind an IOMMU: vm-memory's own seam, by which any emulated unit can be put in front of it.

use std::sync::Arc;

use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::Writable;
use hvkit_virtio_devices::fake::{ByHand, Driver, Tables, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::{Bytes, GuestAddress, Permissions};

/// What the device's addresses are above the guest's.
const AWAY: u64 = 0x1_0000_0000;

#[test]
fn a_device_sees_what_the_unit_lets_it_see() {
    let memory = crate::support::memory();
    let view = Tables::before(&memory);
    let map = |page: u64, to: u64, access| view.iommu().map(AWAY + page, 0x1000, to, access);
    // The ring, page by page; a buffer in two pages that are not neighbours; one that may not be written.
    for page in (0x1000..0x4000).step_by(0x1000) {
        map(page, page, Permissions::ReadWrite);
    }
    map(0x8000, 0x2_0000, Permissions::Write);
    map(0x9000, 0x3_0000, Permissions::Write);
    map(0xa000, 0x4_0000, Permissions::Read);
    let workers = ByHand::default();
    let vectors = Arc::new(Vectors::default());
    let entropy = Box::new(Entropy::new(std::io::repeat(7)));
    let runner = Box::new(workers.clone());
    let function = VirtioPci::new(entropy, Arc::clone(&view), vectors, runner).unwrap();
    let mut driver = Driver::probe(function.with_access_platform());
    // A driver that has not heard of the unit cannot use the device.
    driver.set_status(3);
    driver.accept(1 << 32);
    assert_eq!(driver.set_status(0xb), 3);

    assert_ne!(driver.negotiate(u64::MAX) & 1 << 33, 0);
    let mut ring = driver.queue_behind(0, &memory, 0x1000, 16, AWAY);
    assert_eq!(driver.set_status(0xf), 0xf);

    let mut fill = |buffer| {
        ring.submit(&[buffer]);
        driver.kick(0);
        workers.step(10);
        ring.take().expect("the chain was used").length
    };
    let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
    assert_eq!(fill(Writable(AWAY + 0x8ff8, 16)), 16);
    assert_eq!(read(0x2_0ff8), 0x0707_0707_0707_0707);
    assert_eq!(read(0x3_0000), 0x0707_0707_0707_0707);
    // Reading only; not at all; the guest's own address, which is none of the device's.
    assert_eq!(fill(Writable(AWAY + 0xa000, 8)), 0);
    assert_eq!(fill(Writable(AWAY + 0xb000, 8)), 0);
    assert_eq!(fill(Writable(0x5_0000, 8)), 0);
    assert_eq!((read(0x4_0000), read(0x5_0000)), (0, 0));

    // A translation that is taken away between two chains is not used again.
    view.iommu().unmap(AWAY + 0x8000, 0x1000);
    memory.write_obj(0u64, GuestAddress(0x2_0000)).unwrap();
    assert_eq!(fill(Writable(AWAY + 0x8000, 8)), 0);
    assert_eq!(read(0x2_0000), 0);
    assert_eq!(driver.status() & 0x40, 0);
}
