// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory, found once for a batch of accesses.
//!
//! Finding where an address lies costs more than the access. So a batch begins by noting where the regions of
//! physical memory are ([`Reach`]). Behind an IOMMU nothing is kept from one access to the next: a driver may
//! change a translation between two chains.

use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    Permissions, VolatileSlice,
};

use super::Segment;
use super::words::Words;

/// Regions that are looked at first. Machines have two; what is in others is found the slow way.
const REGIONS: usize = 4;

/// A piece of guest memory in the host.
pub type Slice<'m, M> = VolatileSlice<'m, BS<'m, <M as GuestMemory>::Bitmap>>;

/// Guest memory within quick reach, for the length of a batch.
pub struct Reach<'m, M: GuestMemory + ?Sized> {
    memory: &'m M,
    regions: [Option<(u64, Slice<'m, M>)>; REGIONS],
}

impl<M: GuestMemory + ?Sized> std::fmt::Debug for Reach<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let starts = self.regions.iter().flatten().map(|(start, _)| start);
        f.debug_list().entries(starts).finish()
    }
}

impl<'m, M: GuestMemory + ?Sized> Reach<'m, M> {
    /// Notes where the regions of `memory` are, if its addresses are physical.
    pub fn new(memory: &'m M) -> Self {
        let mut regions = [const { None }; REGIONS];
        if let Some(physical) = memory.physical_memory() {
            let wholes = physical.iter().filter_map(|region| {
                let (start, length) = (region.start_addr(), usize::try_from(region.len()).ok()?);
                let mut slices = memory.get_slices(start, length, Permissions::ReadWrite);
                let whole = slices.as_mut().ok()?.next()?.ok()?;
                Some((start.0, whole))
            });
            // Without a gap: who looks for an address stops at the first that is none.
            for (place, whole) in regions.iter_mut().zip(wholes) {
                *place = Some(whole);
            }
        }
        Self { memory, regions }
    }

    /// The memory itself.
    pub fn memory(&self) -> &'m M {
        self.memory
    }

    /// `length` bytes at `address`, if they are in one of the known regions.
    #[inline(always)]
    pub(super) fn known(&self, address: u64, length: usize) -> Option<Slice<'m, M>> {
        let [first, others @ ..] = &self.regions;
        // Almost everything is in the first.
        if let found @ Some(_) = within(first.as_ref()?, address, length) {
            return found;
        }
        known_in::<M>(others, address, length)
    }

    /// Calls `each` with the pieces that `segment` has in the host, in order.
    #[inline(always)]
    pub fn for_each<E: From<GuestMemoryError>>(
        &self,
        segment: Segment,
        access: Permissions,
        mut each: impl FnMut(Slice<'m, M>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Segment { address, length } = segment;
        if let Some(slice) = self.known(address, length as usize) {
            return each(slice);
        }
        // Behind an IOMMU almost everything is found here, and so it is not out of the way.
        let (address, length) = (GuestAddress(address), length as usize);
        let mut slices = self.memory.get_slices(address, length, access)?;
        // The first by itself: it is mostly the only one.
        let Some(first) = slices.next() else {
            return Ok(());
        };
        each(first?)?;
        for slice in slices {
            each(slice?)?;
        }
        Ok(())
    }

    /// Copies out of guest memory.
    #[inline(always)]
    pub fn read(&self, data: &mut [u8], address: u64) -> Result<(), GuestMemoryError> {
        match self.known(address, data.len()) {
            Some(slice) => {
                // A header, mostly: two words, where it is known that it is one.
                if let Ok(header) = <&mut [u8; 16]>::try_from(&mut *data)
                    && let Ok(words) = slice.get::<u128>(0)
                {
                    *header = words.to_ne_bytes();
                } else {
                    slice.copy_to(data);
                }
                Ok(())
            }
            None => self.memory.read_slice(data, GuestAddress(address)),
        }
    }

    /// Copies out of guest memory what the device itself has just written there: a driver behind an IOMMU maps what a device
    /// writes so that it cannot be read. What the driver has changed since is what comes.
    pub(crate) fn read_back(&self, data: &mut [u8], address: u64) -> Result<(), GuestMemoryError> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut rest = data;
        self.for_each(Segment { address, length }, Permissions::Write, |slice| {
            let count = rest.len().min(slice.len());
            if let Some(here) = rest.split_off_mut(..count) {
                slice.copy_to(here);
            }
            Ok(())
        })
    }

    /// Copies into guest memory.
    #[inline(always)]
    pub fn write(&self, data: &[u8], address: u64) -> Result<(), GuestMemoryError> {
        match self.known(address, data.len()) {
            Some(slice) => {
                // A status, mostly.
                match data {
                    [status] if slice.put(0, *status).is_ok() => {}
                    _ => slice.copy_from(data),
                }
                Ok(())
            }
            None => self.memory.write_slice(data, GuestAddress(address)),
        }
    }
}

/// `length` bytes at `address`, if they are in that region.
#[inline(always)]
fn within<'m, B: BitmapSlice>(
    (start, whole): &(u64, VolatileSlice<'m, B>),
    address: u64,
    length: usize,
) -> Option<VolatileSlice<'m, B>> {
    // Below the region, the difference wraps and is far outside.
    let offset = address.wrapping_sub(*start) as usize;
    whole.subslice(offset, length).ok()
}

#[inline(never)]
fn known_in<'m, M: GuestMemory + ?Sized>(
    regions: &[Option<(u64, Slice<'m, M>)>],
    address: u64,
    length: usize,
) -> Option<Slice<'m, M>> {
    let regions = regions.iter().map_while(Option::as_ref);
    regions
        .filter_map(|region| within(region, address, length))
        .next()
}
