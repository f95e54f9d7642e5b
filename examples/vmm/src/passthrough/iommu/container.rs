// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of VFIO's own: a container's. Linux, `include/uapi/linux/vfio.h`.
#![expect(
    unsafe_code,
    reason = "ioctls: devices are given ranges of this process's memory"
)]

use super::{done, memory, size};
use crate::machine::memory::GuestRam;
use hvkit_vtd_iommu::emulation::Mapping;
use std::ffi::c_ulong;
use std::io;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IOMMU_INFO_CAPS,
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_TYPE, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap,
};
use vfio_ioctls::VfioContainer;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

pub(super) const fn command(number: u32) -> c_ulong {
    (VFIO_TYPE as c_ulong) << 8 | VFIO_BASE.saturating_add(number) as c_ulong
}

const GET_INFO: c_ulong = command(12);
const MAP_DMA: c_ulong = command(13);
const UNMAP_DMA: c_ulong = command(14);

/// Maps the memory of the guest that `piece` leads to.
pub(super) fn map(container: &VfioContainer, ram: &GuestRam, piece: Mapping) -> io::Result<()> {
    let (size, vaddr) = (size(piece)?, memory(ram, piece)?);
    let read = if piece.reads {
        VFIO_DMA_MAP_FLAG_READ
    } else {
        0
    };
    let write = if piece.writes {
        VFIO_DMA_MAP_FLAG_WRITE
    } else {
        0
    };
    let request = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: read | write,
        vaddr,
        iova: piece.first,
        size,
    };
    // SAFETY: 1. The kernel reads the structure only, whose size it is told. 2. The range of memory is inside one mapping
    // of `ram`, of which the caller keeps a clone until the container is closed, which is the end of what is mapped in
    // it. 3. The memory is anonymous, used for nothing but the guest's RAM, and reached by vm-memory's volatile
    // accesses only: no reference of ours is broken by what a device writes.
    done(unsafe { ioctl_with_ref(container, MAP_DMA, &request) })
}

/// Takes back what [`map`] mapped. When it returns, no device reaches it.
pub(super) fn unmap(container: &VfioContainer, piece: Mapping) -> io::Result<()> {
    let mut request = vfio_iommu_type1_dma_unmap {
        argsz: size_of::<vfio_iommu_type1_dma_unmap>() as u32,
        flags: 0,
        iova: piece.first,
        size: size(piece)?,
        ..Default::default()
    };
    // SAFETY: the kernel reads and writes the structure only, whose size it is told. What it unmaps is the devices' view
    // of memory, not ours.
    done(unsafe { ioctl_with_mut_ref(container, UNMAP_DMA, &mut request) })
}

/// Words of the structure that the kernel fills, capabilities and all: a few ranges.
const INFO: usize = 512;

/// What the host says of the container: `vfio_iommu_type1_info`, and capabilities behind it.
pub(super) fn info(container: &VfioContainer) -> io::Result<Vec<u8>> {
    let mut info = [0u64; INFO];
    info[0] = (INFO * 8) as u64;
    // SAFETY: the kernel reads and writes the first `argsz` bytes (the low half of the first word), and these are the
    // array's.
    done(unsafe { ioctl_with_mut_ref(container, GET_INFO, &mut info) })?;
    Ok(info.iter().flat_map(|word| word.to_ne_bytes()).collect())
}

fn word(info: &[u8], at: usize) -> Option<u32> {
    let bytes = info.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn long(info: &[u8], at: usize) -> Option<u64> {
    let bytes = info.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

/// Where capability `id` is in `vfio_iommu_type1_info`: argsz:32, flags:32, page sizes:64, offset of the first
/// capability:32; each id:16, version:16, offset of the next:32.
pub(super) fn capability(info: &[u8], id: u32) -> Option<usize> {
    if word(info, 4)? & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let mut at = word(info, 16)? as usize;
    // No more than there is room for.
    for _ in 0..info.len() / 8 {
        if at == 0 {
            return None;
        }
        if word(info, at)? & 0xffff == id {
            return Some(at);
        }
        at = word(info, at.checked_add(4)?)? as usize;
    }
    None
}

/// The last address of the ranges that the host translates, as its `info` says; none if it does not say. Of the ranges,
/// count:32, padding:32, and first:64, last:64 of each.
pub(super) fn last_address(info: &[u8]) -> Option<u64> {
    let at = capability(info, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE)?;
    let count = (word(info, at.checked_add(8)?)? as usize).min(info.len() / 16);
    (0..count)
        .filter_map(|range| {
            let last = range.checked_mul(16)?.checked_add(24)?.checked_add(at)?;
            long(info, last)
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words in the kernel's order.
    fn info(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn the_last_address_is_that_of_the_last_range() {
        // A capability of another kind, then two ranges: up to 0xfedf_ffff, and from 0xfef0_0000 to 2^48 - 1.
        let words = [
            88,
            2,
            0x1000,
            0,
            24,
            0,
            0x0001_0003,
            40,
            0xffff,
            0,
            0x0001_0001,
            0,
            2,
            0,
            0,
            0,
            0xfedf_ffff,
            0,
            0xfef0_0000,
            0,
            0xffff_ffff,
            0xffff,
        ];
        assert_eq!(last_address(&info(&words)), Some((1 << 48) - 1));
    }

    #[test]
    fn what_is_not_said_or_not_there_is_none() {
        for words in [
            &[][..],
            &[24, 0, 0x1000, 0, 24],
            // Without capabilities, beyond the end, and in a circle.
            &[24, 2, 0x1000, 0, 0, 0],
            &[24, 2, 0x1000, 0, 4000, 0],
            &[32, 2, 0x1000, 0, 24, 0, 0x0001_0003, 24],
            // Fewer ranges than it says.
            &[40, 2, 0x1000, 0, 24, 0, 0x0001_0001, 0, u32::MAX, 0],
        ] {
            assert_eq!(last_address(&info(words)), None, "{words:x?}");
        }
    }
}
