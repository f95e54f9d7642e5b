// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two facts about an exit that kvm-ioctls leaves in the shared page.
//!
//! A port exit may carry several accesses (`rep outsb`), and two bytes can be one access of two or
//! two of one. An internal error has a number that says which.
#![expect(
    unsafe_code,
    reason = "the shared page holds a union and data behind it"
)]

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO};
use kvm_ioctls::VcpuFd;
use std::{ptr, slice};

/// The accesses of one port exit.
#[derive(Debug)]
pub(super) struct PortAccesses<'a> {
    /// Bytes of each access: 1, 2 or 4.
    pub(super) size: usize,
    /// All of them in order.
    pub(super) data: &'a mut [u8],
}

/// The accesses of the last exit, if that was a port exit. `mapped` is the length of the mapping
/// of the shared page.
pub(super) fn port_accesses(fd: &mut VcpuFd, mapped: usize) -> Option<PortAccesses<'_>> {
    let run = fd.get_kvm_run();
    if run.exit_reason != KVM_EXIT_IO {
        return None;
    }
    // SAFETY: KVM wrote `io`, the member of the union that belongs to this exit reason; any bytes
    // are a valid value of it.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    let length = size.checked_mul(usize::try_from(io.count).ok()?)?;
    let offset = usize::try_from(io.data_offset).ok()?;
    if size == 0 || offset.checked_add(length)? > mapped {
        return None;
    }
    let start = ptr::from_mut(run).cast::<u8>();
    // SAFETY: 1. `start` is the first byte of a mapping of `mapped` bytes that lives as long as
    // `fd`, which the result borrows mutably, and `offset + length` lies within it (just checked).
    // 2. The bytes are initialized memory shared with the kernel, which writes there only inside
    // KVM_RUN, for which `fd` would have to be borrowed again.
    let data = unsafe { slice::from_raw_parts_mut(start.add(offset), length) };
    Some(PortAccesses { size, data })
}

/// The number of the internal error that was the last exit, if it was one.
pub(super) fn internal_suberror(fd: &mut VcpuFd) -> Option<u32> {
    let run = fd.get_kvm_run();
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: as for `io` above.
    Some(unsafe { run.__bindgen_anon_1.internal.suberror })
}
