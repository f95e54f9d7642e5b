// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory behind an IOMMU whose every lookup hits its cache.

use std::sync::{RwLock, RwLockReadGuard};

use vm_memory::iommu::{Error, Iommu, IommuMemory, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, GuestMemoryMmap, Permissions};

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

/// `memory`, its first 64 MiB at the same addresses.
pub fn behind(memory: &GuestMemoryMmap) -> IommuMemory<GuestMemoryMmap, Cached> {
    let mut cache = Iotlb::new();
    let zero = GuestAddress(0);
    cache
        .set_mapping(zero, zero, 64 << 20, Permissions::ReadWrite)
        .unwrap();
    IommuMemory::new(memory.clone(), Cached(RwLock::new(cache)), true, ())
}
