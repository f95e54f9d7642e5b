// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stretch of guest memory that is looked up once and accessed often.
//!
//! Finding where an address lies costs more than the access. Where a stretch is in one piece on the host it is
//! found once; where it is not, as it may be behind an IOMMU, each access finds its own place.

use std::sync::atomic::Ordering;

use vm_memory::bitmap::BS;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileMemory, VolatileSlice,
};

/// An access that failed: where, and why.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) address: u64,
    pub(super) source: GuestMemoryError,
}

/// `length` bytes of `memory` from `address`, the end of which does not wrap.
pub(super) struct View<'m, M: GuestMemory + ?Sized> {
    memory: &'m M,
    address: u64,
    whole: Option<VolatileSlice<'m, BS<'m, M::Bitmap>>>,
}

impl<'m, M: GuestMemory + ?Sized> View<'m, M> {
    pub(super) fn new(memory: &'m M, address: u64, length: u64, access: Permissions) -> Self {
        let find = || {
            let length = usize::try_from(length).ok()?;
            let mut slices = memory
                .get_slices(GuestAddress(address), length, access)
                .ok()?;
            let first = slices.next()?.ok()?;
            (first.len() == length).then_some(first)
        };
        Self {
            memory,
            address,
            whole: find(),
        }
    }

    /// Reads 16 bits at `offset`, which is even and inside.
    pub(super) fn load(&self, offset: u64, order: Ordering) -> Result<u16, Fault> {
        let value: Result<u16, _> = match &self.whole {
            Some(whole) => whole
                .load(offset as usize, order)
                .map_err(GuestMemoryError::from),
            None => self.memory.load(self.at(offset), order),
        };
        value
            .map(u16::from_le)
            .map_err(|source| self.fault(offset, source))
    }

    /// Writes 16 bits at `offset`, which is even and inside.
    pub(super) fn store(&self, offset: u64, value: u16, order: Ordering) -> Result<(), Fault> {
        match &self.whole {
            Some(whole) => whole
                .store(value.to_le(), offset as usize, order)
                .map_err(GuestMemoryError::from),
            None => self.memory.store(value.to_le(), self.at(offset), order),
        }
        .map_err(|source| self.fault(offset, source))
    }

    /// Reads 16 bytes at `offset`, which is inside. Not at once: each byte is read once, in no order.
    pub(super) fn read128(&self, offset: u64) -> Result<u128, Fault> {
        match &self.whole {
            Some(whole) => whole
                .get_ref::<u128>(offset as usize)
                .map(|place| place.load())
                .map_err(GuestMemoryError::from),
            None => {
                let mut raw = [0; 16];
                let read = self.memory.read_slice(&mut raw, self.at(offset));
                read.map(|()| u128::from_ne_bytes(raw))
            }
        }
        .map(u128::from_le)
        .map_err(|source| self.fault(offset, source))
    }

    /// Writes 8 bytes at `offset`, which is inside.
    pub(super) fn write64(&self, offset: u64, value: u64) -> Result<(), Fault> {
        match &self.whole {
            Some(whole) => whole
                .get_ref::<u64>(offset as usize)
                .map(|place| place.store(value.to_le()))
                .map_err(GuestMemoryError::from),
            None => self
                .memory
                .write_slice(&value.to_le_bytes(), self.at(offset)),
        }
        .map_err(|source| self.fault(offset, source))
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.address + offset)
    }

    fn fault(&self, offset: u64, source: GuestMemoryError) -> Fault {
        Fault {
            address: self.address + offset,
            source,
        }
    }
}
