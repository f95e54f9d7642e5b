// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The memory that a back end is given: whole regions of the guest's, each a piece of a file that it maps.
//!
//! Nothing less can be given: a back end reads rings and buffers by itself, wherever the driver puts them. So it
//! reaches all of these regions, for reading and writing, until its process ends; an IOMMU of the guest's does not
//! stop it. What should stay out of its reach has to be in a region of its own, and not given.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, bitmap::Bitmap};

use super::error::VhostUserError;
use super::message::{MOST_REGIONS, Payload};
use super::translation::Mapped;

/// Memory shared with a back end.
#[derive(Clone, Debug)]
pub struct SharedMemory {
    regions: Vec<Region>,
}

#[derive(Clone, Debug)]
struct Region {
    /// The guest's first address.
    guest: u64,
    length: u64,
    /// This process's first address: by such addresses the protocol says where queues are.
    ours: u64,
    file: Arc<File>,
    /// Where it begins in the file.
    offset: u64,
}

impl SharedMemory {
    /// All of `memory`, each region of which must be mapped from a file, shared.
    pub fn of<B: Bitmap, M>(memory: &M) -> Result<Self, VhostUserError>
    where
        M: GuestMemoryBackend<R = GuestRegionMmap<B>>,
    {
        let region = |region: &GuestRegionMmap<B>| {
            let start = region.start_addr().0;
            let file = region.file_offset().filter(|_| {
                // A private mapping has a file, but not the guest's bytes in it.
                region.flags() & libc::MAP_SHARED != 0
            });
            let file = file.ok_or(VhostUserError::Private { start })?;
            Ok::<_, VhostUserError>(Region {
                guest: start,
                length: region.len(),
                ours: region.as_ptr() as u64,
                file: Arc::clone(file.arc()),
                offset: file.start(),
            })
        };
        let regions: Vec<_> = memory.iter().map(region).collect::<Result<_, _>>()?;
        if !(1..=MOST_REGIONS).contains(&regions.len()) {
            return Err(VhostUserError::Regions {
                regions: regions.len(),
            });
        }
        Ok(Self { regions })
    }

    /// Guest addresses and lengths of what is shared.
    pub fn ranges(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.regions.iter().map(|r| (r.guest, r.length))
    }

    /// As SET_MEM_TABLE has it.
    pub(super) fn table(&self) -> (Payload, Vec<BorrowedFd<'_>>) {
        // At most `MOST_REGIONS`.
        let mut payload = Payload::default().u32(self.regions.len() as u32).u32(0);
        for region in &self.regions {
            payload = payload.u64(region.guest).u64(region.length);
            payload = payload.u64(region.ours).u64(region.offset);
        }
        let files = self.regions.iter().map(|region| region.file.as_fd());
        (payload, files.collect())
    }

    /// The parts of `mapped` that lead into one region each; what leads into none is left out.
    pub(super) fn within_regions(&self, mapped: &Mapped) -> impl Iterator<Item = Mapped> {
        let length = mapped.range.end.saturating_sub(mapped.range.start);
        let end = mapped.target.saturating_add(length);
        let (start, target, access) = (mapped.range.start, mapped.target, mapped.access);
        self.regions.iter().filter_map(move |region| {
            let first = target.max(region.guest);
            let last = end.min(region.guest.saturating_add(region.length));
            let at = |to: u64| start.checked_add(to.checked_sub(target)?);
            (first < last).then_some(())?;
            Some(Mapped {
                range: at(first)?..at(last)?,
                target: first,
                access,
            })
        })
    }

    /// This process's address of `length` bytes at the guest's `address`, if one region has them.
    pub(super) fn ours(&self, address: u64, length: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.guest)?;
            let end = offset.checked_add(length)?;
            (end <= region.length).then_some(region.ours.wrapping_add(offset))
        })
    }
}
