// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which pages a container's devices may have written: `VFIO_IOMMU_DIRTY_PAGES`. Linux, `include/uapi/linux/vfio.h`.
//!
//! Where a device's IOMMU does not tell, and none of VFIO type 1 does, the kernel says that everything mapped was
//! written; that of a device which pins its pages itself, these.
#![expect(
    unsafe_code,
    reason = "ioctls: the kernel is given memory for a bitmap"
)]

use super::container::{capability, command, info};
use super::done;
use crate::machine::memory::PAGE;
use std::ffi::c_ulong;
use std::io;
use std::ops::Range;
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
    VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
    vfio_iommu_type1_dirty_bitmap_get,
};
use vfio_ioctls::VfioContainer;
use vmm_sys_util::ioctl::ioctl_with_ref;

const DIRTY_PAGES: c_ulong = command(17);

/// `vfio_iommu_type1_dirty_bitmap` without data.
#[repr(C)]
struct Switch {
    argsz: u32,
    flags: u32,
}

/// `vfio_iommu_type1_dirty_bitmap` with what a question has.
#[repr(C)]
struct Question {
    head: Switch,
    get: vfio_iommu_type1_dirty_bitmap_get,
}

/// Whether the host has such a log for the container.
pub(super) fn is_offered(container: &VfioContainer) -> io::Result<bool> {
    Ok(offers(&info(container)?))
}

fn offers(info: &[u8]) -> bool {
    capability(info, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION).is_some()
}

/// Begins, or goes on.
pub(super) fn start(container: &VfioContainer) -> io::Result<()> {
    switch(container, VFIO_IOMMU_DIRTY_PAGES_FLAG_START)
}

/// Ends.
pub(super) fn stop(container: &VfioContainer) -> io::Result<()> {
    switch(container, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP)
}

fn switch(container: &VfioContainer, flags: u32) -> io::Result<()> {
    let request = Switch {
        argsz: size_of::<Switch>() as u32,
        flags,
    };
    // SAFETY: the kernel reads the structure only, whose size it is told.
    done(unsafe { ioctl_with_ref(container, DIRTY_PAGES, &request) })
}

/// The bits of pages in `range`, which ends and begins where what is mapped does; bit 0 of the first word is its first page.
pub(in crate::passthrough) fn written(
    container: &VfioContainer,
    range: Range<u64>,
) -> io::Result<Vec<u64>> {
    let (mut question, mut bits) = question(range);
    question.get.bitmap.data = bits.as_mut_ptr();
    // SAFETY: the kernel reads the structure only, whose size it is told, and writes `bitmap.size` bytes at `bitmap.data` at
    // most, which are those of `bits`.
    done(unsafe { ioctl_with_ref(container, DIRTY_PAGES, &question) })?;
    Ok(bits)
}

/// A question without a place for the answer, and that place.
fn question(range: Range<u64>) -> (Question, Vec<u64>) {
    let size = range.end.saturating_sub(range.start);
    let words = (size / PAGE).div_ceil(64);
    let mut get = vfio_iommu_type1_dirty_bitmap_get {
        iova: range.start,
        size,
        ..Default::default()
    };
    get.bitmap.pgsize = PAGE;
    let head = Switch {
        argsz: size_of::<Question>() as u32,
        flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
    };
    // A guest's memory, of which each word is 256 KiB.
    let bits = vec![0u64; usize::try_from(words).unwrap_or(0)];
    // Of what there is, whatever was asked: so much the kernel writes.
    get.bitmap.size = size_of_val(bits.as_slice()) as u64;
    (Question { head, get }, bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_spelled_as_the_kernel_has_it() {
        // argsz:32, flags:32 (4: the bitmap), iova, size, size of a page, bytes of the bitmap, its address.
        let (question, bits) = question(0x1_0000_0000..0x1_0004_1000);
        assert_eq!((question.head.argsz, question.head.flags), (48, 4));
        assert_eq!(std::mem::offset_of!(Question, get), 8);
        let get = question.get;
        assert_eq!((get.iova, get.size), (0x1_0000_0000, 0x4_1000));
        // 65 pages: two words.
        assert_eq!((get.bitmap.pgsize, get.bitmap.size), (4096, 16));
        assert_eq!(bits.len(), 2);
        assert_eq!(size_of::<Switch>(), 8);
        assert_eq!(DIRTY_PAGES, 0x3b75);
    }

    #[test]
    fn the_log_is_there_if_the_host_says_so() {
        // Capabilities 1 (ranges) and 2 (migration), and the first only.
        let bytes = |words: [u32; 10]| words.map(u32::to_ne_bytes).concat();
        let both = [64, 2, 0x1000, 0, 24, 0, 0x0001_0001, 32, 0x0001_0002, 0];
        let one = [64, 2, 0x1000, 0, 24, 0, 0x0001_0001, 0, 0x0001_0002, 0];
        assert!(offers(&bytes(both)));
        assert!(!offers(&bytes(one)));
        assert!(!offers(&[]));
    }
}
