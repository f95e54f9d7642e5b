// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory behind an IOMMU whose every lookup hits its cache: an emulated VT-d unit's, and vm-memory's own.

use std::sync::{RwLock, RwLockReadGuard};

use hvkit_vtd_iommu::emulation::{DeviceIommu, DeviceMemory, Nobody, Options, SharedUnit, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use vm_memory::iommu::{Error, Iommu, IommuMemory, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Permissions};

/// Where the unit's tables are, out of the driver's way.
const TABLES: u64 = (1 << 32) + (32 << 20);
const DEVICE: RequesterId = RequesterId(0x18);

/// Translations that are all there.
#[derive(Debug)]
pub struct Cached(RwLock<Iotlb>);

impl Iommu for Cached {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, Error> {
        let cached = self.0.read().unwrap();
        Iotlb::lookup(cached, iova, length, access).map_err(|_| Error::CannotResolve {
            iova_range: IovaRange { base: iova, length },
            reason: String::new(),
        })
    }
}

/// `memory` behind an emulated unit, its first 64 MiB at the same addresses in pages of 4 KiB.
pub fn behind_unit(memory: &GuestMemoryMmap) -> DeviceMemory<GuestMemoryMmap, Nobody> {
    let set = |at: u64, word: u64| memory.write_obj(word, GuestAddress(at)).unwrap();
    let [root, contexts, top, middle, leaves] = [0, 1, 2, 3, 4].map(|i| TABLES + 0x1000 * i);
    set(root, contexts | 1);
    set(contexts + 16 * 0x18, top | 1);
    // Domain 7, three levels.
    set(contexts + 16 * 0x18 + 8, 0x0701);
    set(top, middle | 3);
    for page in 0..(64 << 20) / 0x1000 {
        set(
            middle + 8 * (page / 512),
            (leaves + 0x1000 * (page / 512)) | 3,
        );
        set(leaves + 8 * page, page << 12 | 3);
    }
    let shared = SharedUnit::new(Unit::new(Options::new(48)).unwrap(), memory.clone(), Nobody);
    shared.write(0x20, &root.to_le_bytes());
    for command in [1u32 << 30, 1 << 31] {
        shared.write(0x18, &command.to_le_bytes());
    }
    DeviceMemory::new(DeviceIommu::new(shared, DEVICE))
}

/// `memory`, its first 64 MiB at the same addresses.
pub fn behind(memory: &GuestMemoryMmap) -> IommuMemory<GuestMemoryMmap, Cached> {
    let mut cache = Iotlb::new();
    let zero = GuestAddress(0);
    cache
        .set_mapping(zero, zero, 64 << 20, Permissions::ReadWrite)
        .unwrap();
    IommuMemory::new(memory.clone(), Cached(RwLock::new(cache)), true, ())
}
