// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A whole device behind an IOMMU: vm-memory's own seam, by which any emulated unit can be put in front of it.

use std::sync::{Arc, RwLock, RwLockReadGuard};

use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::Buffer::Writable;
use hvkit_virtio_devices::fake::{ByHand, Driver, Ring, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use vm_memory::iommu::{Error, Iommu, IommuMemory, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Permissions};

/// Translations that a test changes while the device runs.
#[derive(Debug)]
struct Unit(RwLock<Iotlb>);

impl Iommu for Unit {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, Error> {
        Iotlb::lookup(self.0.read().unwrap(), iova, length, access).map_err(|_| {
            Error::CannotResolve {
                iova_range: IovaRange { base: iova, length },
                reason: String::new(),
            }
        })
    }
}

/// What the device's addresses are above the guest's.
const AWAY: u64 = 0x1_0000_0000;

#[test]
fn a_device_sees_what_the_unit_lets_it_see() {
    let memory = crate::support::memory();
    let mut iotlb = Iotlb::new();
    let map = |iotlb: &mut Iotlb, page: u64, to: u64, access| {
        let (from, to) = (GuestAddress(AWAY + page), GuestAddress(to));
        iotlb.set_mapping(from, to, 0x1000, access).unwrap();
    };
    // The ring, page by page; a buffer in two pages that are not neighbours; one that may not be written.
    for page in (0x1000..0x4000).step_by(0x1000) {
        map(&mut iotlb, page, page, Permissions::ReadWrite);
    }
    map(&mut iotlb, 0x8000, 0x2_0000, Permissions::Write);
    map(&mut iotlb, 0x9000, 0x3_0000, Permissions::Write);
    map(&mut iotlb, 0xa000, 0x4_0000, Permissions::Read);
    let view = IommuMemory::new(
        GuestMemoryMmap::clone(&memory),
        Unit(RwLock::new(iotlb)),
        true,
        (),
    );
    let view: Arc<IommuMemory<GuestMemoryMmap, Unit>> = Arc::new(view);
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
    let mut ring = Ring::new(Arc::clone(&memory), 0x1000, 16);
    driver.put(driver.common, 0x16, 2, 0);
    driver.put(driver.common, 0x18, 2, 16);
    for (offset, at) in [
        (0x20, ring.table),
        (0x28, ring.available),
        (0x30, ring.used),
    ] {
        driver.put(driver.common, offset, 4, (AWAY + at) & 0xffff_ffff);
        driver.put(driver.common, offset + 4, 4, (AWAY + at) >> 32);
    }
    driver.put(driver.common, 0x1c, 2, 1);
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
    view.iommu()
        .0
        .write()
        .unwrap()
        .invalidate_mapping(GuestAddress(AWAY + 0x8000), 0x1000);
    memory.write_obj(0u64, GuestAddress(0x2_0000)).unwrap();
    assert_eq!(fill(Writable(AWAY + 0x8000, 8)), 0);
    assert_eq!(read(0x2_0000), 0);
    assert_eq!(driver.status() & 0x40, 0);
}
