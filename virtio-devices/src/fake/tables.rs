// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An IOMMU of the guest's: translations that a test changes while a device runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use vm_memory::iommu::{Error, Iommu, IommuMemory, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, GuestMemoryMmap, Permissions};

/// Memory as a device behind [`Tables`] has it.
pub type Behind = Arc<IommuMemory<GuestMemoryMmap, Tables>>;

/// Translations, and the accesses that they did not let through.
#[derive(Debug, Default)]
pub struct Tables {
    iotlb: RwLock<Iotlb>,
    faults: Mutex<Vec<(u64, Permissions)>>,
}

impl Tables {
    /// `memory` behind tables that are empty: [`IommuMemory::iommu`] leads to them.
    pub fn before(memory: &GuestMemoryMmap) -> Behind {
        let view = IommuMemory::new(memory.clone(), Self::default(), true, ());
        Arc::new(view)
    }

    /// From now on the `length` bytes at the device's `address` lead to `target`. Panics if they are none, or go beyond the end.
    pub fn map(&self, address: u64, length: u64, target: u64, access: Permissions) {
        assert!(length > 0 && address.checked_add(length).is_some());
        let (from, to) = (GuestAddress(address), GuestAddress(target));
        let mut iotlb = self.iotlb.write().unwrap_or_else(PoisonError::into_inner);
        iotlb
            .set_mapping(from, to, length as usize, access)
            .expect("vm-memory's table takes any mapping");
    }

    /// From now on they lead nowhere. Panics as [`map`](Self::map) does.
    pub fn unmap(&self, address: u64, length: u64) {
        assert!(length > 0 && address.checked_add(length).is_some());
        let mut iotlb = self.iotlb.write().unwrap_or_else(PoisonError::into_inner);
        iotlb.invalidate_mapping(GuestAddress(address), length as usize);
    }

    /// What was not let through since this was asked last: the address that was asked for, and to do what there.
    pub fn take_faults(&self) -> Vec<(u64, Permissions)> {
        std::mem::take(&mut *self.faults())
    }

    fn faults(&self) -> MutexGuard<'_, Vec<(u64, Permissions)>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Iommu for Tables {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, Error> {
        // vm-memory's own adds without a look.
        let fits = u64::try_from(length).is_ok_and(|length| iova.0.checked_add(length).is_some());
        let iotlb = self.iotlb.read().unwrap_or_else(PoisonError::into_inner);
        let found = fits.then(|| Iotlb::lookup(iotlb, iova, length, access).ok());
        found.flatten().ok_or_else(|| {
            self.faults().push((iova.0, access));
            Error::CannotResolve {
                iova_range: IovaRange { base: iova, length },
                reason: "the guest has not mapped it".to_owned(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemory;

    #[test]
    fn what_is_not_let_through_is_noted() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let view = Tables::before(&memory);
        let tables = view.iommu();
        tables.map(0x7000_0000, 0x2000, 0x3000, Permissions::Read);
        let ask = |address, length, access| view.check_range(GuestAddress(address), length, access);
        assert!(ask(0x7000_0ff0, 0x20, Permissions::Read));
        assert!(!ask(0x7000_0000, 1, Permissions::Write));
        assert!(!ask(0x7000_1fff, 2, Permissions::Read));
        assert!(!ask(u64::MAX, 2, Permissions::Read));
        tables.unmap(0x7000_0000, 0x1000);
        assert!(!ask(0x7000_0000, 1, Permissions::Read));
        assert!(ask(0x7000_1000, 0x1000, Permissions::Read));
        assert_eq!(
            tables.take_faults(),
            [
                (0x7000_0000, Permissions::Write),
                (0x7000_1fff, Permissions::Read),
                (u64::MAX, Permissions::Read),
                (0x7000_0000, Permissions::Read),
            ]
        );
        assert_eq!(tables.take_faults(), []);
    }
}
