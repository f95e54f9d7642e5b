// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Pages of guest memory that go back to the host.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]
#![expect(unsafe_code, reason = "advice about guest memory takes a pointer")]

use std::io;

use vm_memory::{
    Address, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryRegion, Permissions,
};

/// Bytes of a page, the unit in which drivers give memory back.
pub const PAGE: u64 = 4096;

/// Pages that could not be given back.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// They are not all in guest memory.
    #[error("{address:#x}+{length:#x} is not guest memory")]
    NotMemory {
        /// First address.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// The host refused.
    #[error("the host did not take {address:#x}+{length:#x} back")]
    Host {
        /// First address.
        address: u64,
        /// Bytes.
        length: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Gives pages of a guest's memory back to the host. The VMM may have reasons not to: memory that is pinned for a
/// passed-through device must stay.
pub trait Reclaim: Send + Sync {
    /// Gives back `length` bytes at guest-physical `address`, both multiples of [`PAGE`]. The guest does not need
    /// what is in them; when it uses them again it finds zeros.
    fn reclaim(&self, address: u64, length: u64) -> Result<(), ReclaimError>;
}

/// Guest memory that this process has mapped, anonymous or of a file in memory.
#[derive(Clone, Debug)]
pub struct HostPages<A>(A);

impl<A: GuestAddressSpace> HostPages<A> {
    /// The pages behind `memory`.
    pub fn new(memory: A) -> Self {
        Self(memory)
    }
}

impl<A> Reclaim for HostPages<A>
where
    A: GuestAddressSpace + Send + Sync,
    A::M: GuestMemoryBackend,
{
    fn reclaim(&self, address: u64, length: u64) -> Result<(), ReclaimError> {
        let memory = self.0.memory();
        let nowhere = || ReclaimError::NotMemory { address, length };
        let mut at = GuestAddress(address);
        let end = at.checked_add(length).ok_or_else(nowhere)?;
        // All or nothing of what is no memory.
        while at < end {
            let region = memory.find_region(at).ok_or_else(nowhere)?;
            at = region.last_addr().checked_add(1).unwrap_or(end);
        }
        let mut at = GuestAddress(address);
        while at < end {
            let region = memory.find_region(at).ok_or_else(nowhere)?;
            let after = region.last_addr().checked_add(1).unwrap_or(end).min(end);
            let advice = match region.file_offset() {
                // Else the file would keep them.
                Some(_) => libc::MADV_REMOVE,
                None => libc::MADV_DONTNEED,
            };
            let here = after.checked_offset_from(at).ok_or_else(nowhere)?;
            let here = usize::try_from(here).map_err(|_| nowhere())?;
            discard(&*memory, at, here, advice).map_err(|source| ReclaimError::Host {
                address,
                length,
                source,
            })?;
            at = after;
        }
        Ok(())
    }
}

/// Advises the host on `length` bytes at `at`.
fn discard<M: GuestMemoryBackend>(
    memory: &M,
    at: GuestAddress,
    length: usize,
    advice: libc::c_int,
) -> io::Result<()> {
    let other = |error: GuestMemoryError| io::Error::other(error);
    let slices = vm_memory::GuestMemory::get_slices(memory, at, length, Permissions::Write);
    for slice in slices.map_err(other)? {
        let slice = slice.map_err(other)?;
        let guard = slice.ptr_guard_mut();
        // SAFETY: 1. The range is that of a `VolatileSlice`, mapped for as long as the slice and its guard live.
        // 2. No reference leads into guest memory: it is only ever accessed through raw pointers, so that its
        // becoming zero changes nothing that Rust relies on. The guest has said that it does not need it.
        let result = unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), advice) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        vm_memory::bitmap::Bitmap::mark_dirty(slice.bitmap(), 0, slice.len());
    }
    Ok(())
}
