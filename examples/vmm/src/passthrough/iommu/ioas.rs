// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of iommufd's: an I/O address space. Linux, "IOMMUFD" and `include/uapi/linux/iommufd.h`.

use super::{done, memory, size};
use crate::machine::memory::GuestRam;
use hvkit_vtd_iommu::emulation::Mapping;
use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_TYPE, iommu_ioas_iova_ranges, iommu_ioas_map,
    iommu_ioas_unmap, iommu_iova_range, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
};
use iommufd_ioctls::{IommuFd, IommufdError};
use std::collections::BTreeSet;
use std::ffi::c_ulong;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vfio_ioctls::{VfioDeviceFd, VfioError, VfioIommufd, VfioOps};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// Ranges that are asked for: memory below and above the addresses of interrupts, and what firmware keeps.
const RANGES: usize = 64;

/// An address space, and a file of `/dev/iommu`'s for it alone.
pub(in super::super) struct Ioas {
    space: Arc<VfioIommufd>,
    /// The first addresses of pieces that are not mapped, and will be taken back as if they were: the kernel does not tell such a
    /// request from one that splits a piece, which leaves all of that mapped.
    refused: Mutex<BTreeSet<u64>>,
}

impl Ioas {
    /// An empty one, in a file of its own.
    pub(super) fn new(kvm: Arc<VfioDeviceFd>) -> Result<Self, VfioError> {
        let file = IommuFd::new().map_err(VfioError::NewVfioIommufd)?;
        let space = VfioIommufd::new(Arc::new(file), None, Some(kvm))?;
        Ok(Ioas {
            space: Arc::new(space),
            refused: Mutex::default(),
        })
    }

    pub(super) fn operations(&self) -> Arc<dyn VfioOps> {
        Arc::clone(&self.space) as _
    }

    fn refused(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps the memory of the guest that `piece` leads to.
    pub(super) fn map(&self, ram: &GuestRam, piece: Mapping) -> io::Result<()> {
        let mapped = memory(ram, piece)
            .and_then(|address| request(self.space.ioas().id(), piece, address))
            // As for a container: the range is inside one mapping of `ram`, of which the caller keeps a clone until this file is
            // closed; the memory is the guest's RAM and nothing else, and no reference of ours leads into it.
            .and_then(|request| self.space.iommufd().map_iommu_ioas(&request).map_err(said));
        if mapped.is_err() {
            self.refused().insert(piece.first);
        }
        mapped
    }

    /// Takes back what [`map`](Self::map) mapped, or refused. When it returns, no device reaches it.
    pub(super) fn unmap(&self, piece: Mapping) -> io::Result<()> {
        if self.refused().remove(&piece.first) {
            return Ok(());
        }
        let mut request = iommu_ioas_unmap {
            size: size_of::<iommu_ioas_unmap>() as u32,
            ioas_id: self.space.ioas().id(),
            iova: piece.first,
            length: size(piece)?,
        };
        let unmapped = self.space.iommufd().unmap_iommu_ioas(&mut request);
        unmapped.map_err(said)
    }

    /// The last address that the host translates for the devices that are attached; none if it does not say.
    pub(super) fn last_address(&self) -> io::Result<Option<u64>> {
        let mut ranges = [iommu_iova_range::default(); RANGES];
        let count = self.ranges(&mut ranges)?;
        Ok(ranges.iter().take(count).map(|range| range.last).max())
    }

    /// Fills `ranges`, and says how many.
    #[expect(unsafe_code, reason = "iommufd-ioctls lacks this request")]
    fn ranges(&self, ranges: &mut [iommu_iova_range]) -> io::Result<usize> {
        const REQUEST: c_ulong =
            (IOMMUFD_TYPE as c_ulong) << 8 | IOMMUFD_CMD_IOAS_IOVA_RANGES as c_ulong;
        let mut request = iommu_ioas_iova_ranges {
            size: size_of::<iommu_ioas_iova_ranges>() as u32,
            ioas_id: self.space.ioas().id(),
            num_iovas: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
            allowed_iovas: ranges.as_mut_ptr() as u64,
            ..Default::default()
        };
        let file = &**self.space.iommufd();
        // SAFETY: the kernel reads and writes the structure, whose size it is told, and writes up to `num_iovas` ranges where
        // `allowed_iovas` says: into the slice, which is borrowed until after the call.
        done(unsafe { ioctl_with_mut_ref(file, REQUEST, &mut request) })?;
        Ok(request.num_iovas as usize)
    }
}

/// The request that maps `piece`, which this process has at `address`.
fn request(ioas: u32, piece: Mapping, address: u64) -> io::Result<iommu_ioas_map> {
    let allowed = [
        (piece.reads, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE),
        (
            piece.writes,
            iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
        ),
    ];
    let flags = allowed.iter().filter(|(is, _)| *is).fold(
        iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
        |flags, (_, flag)| flags | flag,
    );
    Ok(iommu_ioas_map {
        size: size_of::<iommu_ioas_map>() as u32,
        flags,
        ioas_id: ioas,
        user_va: address,
        length: size(piece)?,
        iova: piece.first,
        ..Default::default()
    })
}

/// What the kernel said.
fn said(error: IommufdError) -> io::Error {
    match error {
        IommufdError::IommuIoasMap(error) | IommufdError::IommuIoasUnmap(error) => error.into(),
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_mapped_as_far_as_it_may_be_used() {
        let words = |reads, writes| {
            let piece = Mapping {
                first: 0x8000_0000_1000,
                last: 0x8000_0000_2fff,
                target: 0,
                reads,
                writes,
            };
            let request = request(7, piece, 0x7f00_0000_0000).unwrap();
            // `struct iommu_ioas_map`: size, flags, ioas_id, reserved; user_va, length, iova.
            assert_eq!(size_of_val(&request), 40);
            assert_eq!((request.size, request.ioas_id), (40, 7));
            assert_eq!(
                (request.user_va, request.length, request.iova),
                (0x7f00_0000_0000, 0x2000, 0x8000_0000_1000)
            );
            request.flags
        };
        // Fixed address 1, writeable 2, readable 4.
        assert_eq!(words(true, true), 7);
        assert_eq!(words(true, false), 5);
        assert_eq!(words(false, true), 3);
    }
}
