// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of a ring, wherever the ring is.
//!
//! Almost always an area is in one piece on the host: [`Slice`]. Behind an IOMMU it may not be, and then each
//! access finds its own place: [`Scattered`]. An access outside of the area fails, in either.

use std::sync::atomic::Ordering;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileMemory,
    VolatileMemoryError, VolatileSlice,
};

use super::reach::{Reach, Slice};

/// An access that failed: where, and why.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) address: Option<u64>,
    pub(super) source: GuestMemoryError,
}

/// Words at offsets.
pub(super) trait Words {
    /// Reads 16 bits at an even offset.
    fn load(&self, offset: u64, order: Ordering) -> Result<u16, Fault>;

    /// Reads 64 bits at a multiple of 8, at once, and all else after them.
    fn acquire(&self, offset: u64) -> Result<u64, Fault>;

    /// Writes 16 bits at an even offset.
    fn store(&self, offset: u64, value: u16, order: Ordering) -> Result<(), Fault>;

    /// Reads a value. Not at once: each byte is read once, in no order.
    fn get<T: ByteValued>(&self, offset: u64) -> Result<T, Fault>;

    /// Writes a value, not at once.
    fn put<T: ByteValued>(&self, offset: u64, value: T) -> Result<(), Fault>;
}

/// An access outside of the area.
#[cold]
#[inline(never)]
fn outside(error: VolatileMemoryError) -> Fault {
    Fault {
        address: None,
        source: error.into(),
    }
}

impl<B: BitmapSlice> Words for VolatileSlice<'_, B> {
    #[inline(always)]
    fn load(&self, offset: u64, order: Ordering) -> Result<u16, Fault> {
        match Bytes::load(self, offset as usize, order) {
            Ok(value) => Ok(u16::from_le(value)),
            Err(error) => Err(outside(error)),
        }
    }

    #[inline(always)]
    fn acquire(&self, offset: u64) -> Result<u64, Fault> {
        match Bytes::load(self, offset as usize, Ordering::Acquire) {
            Ok(value) => Ok(u64::from_le(value)),
            Err(error) => Err(outside(error)),
        }
    }

    #[inline(always)]
    fn store(&self, offset: u64, value: u16, order: Ordering) -> Result<(), Fault> {
        match Bytes::store(self, value.to_le(), offset as usize, order) {
            Ok(()) => Ok(()),
            Err(error) => Err(outside(error)),
        }
    }

    #[inline(always)]
    fn get<T: ByteValued>(&self, offset: u64) -> Result<T, Fault> {
        match self.get_ref::<T>(offset as usize) {
            Ok(place) => Ok(place.load()),
            Err(error) => Err(outside(error)),
        }
    }

    #[inline(always)]
    fn put<T: ByteValued>(&self, offset: u64, value: T) -> Result<(), Fault> {
        match self.get_ref::<T>(offset as usize) {
            Ok(place) => {
                place.store(value);
                Ok(())
            }
            Err(error) => Err(outside(error)),
        }
    }
}

/// An area that is in several pieces on the host.
pub(super) struct Scattered<'m, M: GuestMemory + ?Sized> {
    memory: &'m M,
    address: u64,
    length: u64,
}

impl<M: GuestMemory + ?Sized> Scattered<'_, M> {
    /// Has `access` reach `size_of::<S>()` bytes at `offset`.
    fn access<S, T>(
        &self,
        offset: u64,
        access: impl FnOnce(&M, GuestAddress) -> Result<T, GuestMemoryError>,
    ) -> Result<T, Fault> {
        let address = self.address.saturating_add(offset);
        let end = offset.checked_add(size_of::<S>() as u64);
        if end.is_none_or(|end| end > self.length) {
            return Err(outside(VolatileMemoryError::OutOfBounds {
                addr: address as usize,
            }));
        }
        access(self.memory, GuestAddress(address)).map_err(|source| Fault {
            address: Some(address),
            source,
        })
    }
}

impl<M: GuestMemory + ?Sized> Words for Scattered<'_, M> {
    fn load(&self, offset: u64, order: Ordering) -> Result<u16, Fault> {
        self.access::<u16, _>(offset, |memory, at| memory.load(at, order))
            .map(u16::from_le)
    }

    fn acquire(&self, offset: u64) -> Result<u64, Fault> {
        self.access::<u64, _>(offset, |memory, at| memory.load(at, Ordering::Acquire))
            .map(u64::from_le)
    }

    fn store(&self, offset: u64, value: u16, order: Ordering) -> Result<(), Fault> {
        self.access::<u16, _>(offset, |memory, at| memory.store(value.to_le(), at, order))
    }

    fn get<T: ByteValued>(&self, offset: u64) -> Result<T, Fault> {
        self.access::<T, _>(offset, |memory, at| memory.read_obj(at))
    }

    fn put<T: ByteValued>(&self, offset: u64, value: T) -> Result<(), Fault> {
        self.access::<T, _>(offset, |memory, at| memory.write_obj(value, at))
    }
}

/// Where a stretch of memory is.
pub(super) enum Place<'m, M: GuestMemory + ?Sized> {
    /// In one piece.
    Whole(Slice<'m, M>),
    /// In several, or not there.
    Scattered(Scattered<'m, M>),
}

impl<'m, M: GuestMemory + ?Sized> Place<'m, M> {
    /// Finds `length` bytes from `address`, the end of which does not wrap.
    #[inline(always)]
    pub(super) fn find(
        reach: &Reach<'m, M>,
        address: u64,
        length: u64,
        access: Permissions,
    ) -> Self {
        match reach.known(address, length as usize) {
            Some(slice) => Self::Whole(slice),
            None => Self::find_slowly(reach, address, length, access),
        }
    }

    #[inline(never)]
    fn find_slowly(reach: &Reach<'m, M>, address: u64, length: u64, access: Permissions) -> Self {
        let memory = reach.memory();
        let whole = usize::try_from(length).ok().and_then(|length| {
            let mut slices = memory
                .get_slices(GuestAddress(address), length, access)
                .ok()?;
            let first = slices.next()?.ok()?;
            (first.len() == length).then_some(first)
        });
        match whole {
            Some(slice) => Self::Whole(slice),
            None => Self::Scattered(Self::scattered(reach, address, length)),
        }
    }

    pub(super) fn scattered(reach: &Reach<'m, M>, address: u64, length: u64) -> Scattered<'m, M> {
        Scattered {
            memory: reach.memory(),
            address,
            length,
        }
    }
}
