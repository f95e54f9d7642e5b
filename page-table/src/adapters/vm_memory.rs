// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's memory as `vm-memory` has it: tables that the guest owns. Feature `vm-memory`.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, MS};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileMemory, VolatileSlice,
};

use crate::memory::{ReadEntry, UpdateEntry};
use crate::shape::Width;

/// Entries in a guest's memory, named by guest-physical address.
///
/// ```
/// use hvkit_page_table::{GuestTables, ReadEntry, UpdateEntry, Width};
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap();
/// memory.write_obj(0x2003_u64, GuestAddress(0x1008)).unwrap();
/// let tables = GuestTables(&memory);
/// assert_eq!(tables.read(0x1008, Width::Eight).unwrap(), 0x2003);
/// assert_eq!(tables.compare_exchange(0x1008, Width::Eight, 0x2003, 0x2023).unwrap(), 0x2003);
/// assert_eq!(tables.read(0x1008, Width::Eight).unwrap(), 0x2023);
/// assert!(tables.read(0x2000, Width::Eight).is_err());
/// ```
#[derive(Debug)]
pub struct GuestTables<'a, B: ?Sized>(pub &'a B);

impl<B: ?Sized> Clone for GuestTables<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: ?Sized> Copy for GuestTables<'_, B> {}

impl<B: GuestMemoryBackend + ?Sized> GuestTables<'_, B> {
    fn slice(
        &self,
        at: u64,
        width: Width,
    ) -> Result<VolatileSlice<'_, MS<'_, B>>, GuestMemoryError> {
        self.0.get_slice(GuestAddress(at), width.bytes() as usize)
    }
}

impl<B: GuestMemoryBackend + ?Sized> ReadEntry for GuestTables<'_, B> {
    type Error = GuestMemoryError;

    fn read(&self, at: u64, width: Width) -> Result<u64, GuestMemoryError> {
        let slice = self.slice(at, width)?;
        Ok(match width {
            Width::Eight => u64::from_le(
                slice
                    .get_atomic_ref::<AtomicU64>(0)?
                    .load(Ordering::Acquire),
            ),
            Width::Four => u32::from_le(
                slice
                    .get_atomic_ref::<AtomicU32>(0)?
                    .load(Ordering::Acquire),
            )
            .into(),
        })
    }
}

impl<B: GuestMemoryBackend + ?Sized> UpdateEntry for GuestTables<'_, B> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, GuestMemoryError> {
        let slice = self.slice(at, width)?;
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        let found = match width {
            Width::Eight => {
                let entry = slice.get_atomic_ref::<AtomicU64>(0)?;
                let (current, new) = (current.to_le(), new.to_le());
                let (Ok(found) | Err(found)) =
                    entry.compare_exchange(current, new, success, failure);
                u64::from_le(found)
            }
            Width::Four => {
                let entry = slice.get_atomic_ref::<AtomicU32>(0)?;
                let (current, new) = ((current as u32).to_le(), (new as u32).to_le());
                let (Ok(found) | Err(found)) =
                    entry.compare_exchange(current, new, success, failure);
                u32::from_le(found).into()
            }
        };
        if found == current {
            slice.bitmap().mark_dirty(0, width.bytes() as usize);
        }
        Ok(found)
    }
}
