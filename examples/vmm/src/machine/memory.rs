// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much RAM the guest gets, and where in this process it lives.
//!
//! Pages are reserved, not allocated: the host provides each one when the guest first touches it.

use super::address_map::AddressMap;
use crate::config::Config;
use crate::vfio_user::Given;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::fs::File;
use std::io;
use std::sync::Arc;
use vm_memory::mmap::{FromRangesError, MmapRegion, MmapRegionBuilder};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// The guest's RAM. Clones share it.
pub type GuestRam = GuestMemoryMmap<()>;

/// The smallest unit of RAM that can be given to a guest, in bytes.
pub const PAGE: u64 = 4096;

/// The next larger page of the host and of KVM, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// The guest's RAM cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// None was asked for.
    #[error("a machine needs memory: size is 0")]
    Zero,
    /// Not a number of pages.
    #[error("memory size {0} is not a multiple of the page size, {PAGE}")]
    NotPages(u64),
    /// More than the host has.
    #[error("memory size {asked} is larger than this host's {host} bytes")]
    LargerThanHost {
        /// Bytes asked for.
        asked: u64,
        /// Bytes of RAM in the host.
        host: u64,
    },
    /// The host has no file for memory that other processes are to have.
    #[error("cannot make a file for guest memory that is shared: {0}")]
    File(io::Error),
    /// The host would not map it.
    #[error("cannot map guest memory: {0}")]
    Map(FromRangesError),
}

/// Whether a machine of `bytes` can be built on this host.
pub fn check_size(bytes: u64) -> Result<(), MemoryError> {
    if bytes == 0 {
        return Err(MemoryError::Zero);
    }
    if !bytes.is_multiple_of(PAGE) {
        return Err(MemoryError::NotPages(bytes));
    }
    let info = rustix::system::sysinfo();
    let host = info.totalram.saturating_mul(info.mem_unit.into());
    if bytes > host {
        return Err(MemoryError::LargerThanHost { asked: bytes, host });
    }
    Ok(())
}

/// Who may be given the RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody: it is this process's only.
    Private,
    /// Processes that are given its files, one for each region.
    Shared,
}

impl Sharing {
    /// What the devices of `config` need.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut devices = config.user_devices.iter();
        let given = devices.any(|device| device.given == Given::Files);
        if config.served.is_empty() && !given {
            Sharing::Private
        } else {
            Sharing::Shared
        }
    }
}

/// Maps the RAM of `map` into this process, for nobody else.
pub fn reserve(map: &AddressMap) -> Result<GuestRam, MemoryError> {
    reserve_as(map, Sharing::Private)
}

/// Maps the RAM of `map` into this process.
pub fn reserve_as(map: &AddressMap, sharing: Sharing) -> Result<GuestRam, MemoryError> {
    let regions = map
        .ram()
        .map(|range| {
            // The target is 64-bit: a `usize` holds any length below 2^52.
            let length = range.end.saturating_sub(range.start) as usize;
            let mapping = huge_page_aligned(length, sharing)?;
            ask_for_huge_pages(&mapping);
            GuestRegionMmap::new(mapping, GuestAddress(range.start))
                .map(Arc::new)
                .ok_or(MemoryError::Map(FromRangesError::InvalidGuestRegion))
        })
        .collect::<Result<_, _>>()?;
    GuestRam::from_arc_regions(regions).map_err(|error| MemoryError::Map(error.into()))
}

/// Maps `length` bytes so that they begin at a multiple of [`HUGE_PAGE`], as the guest's addresses
/// do: only then can KVM map them by huge pages, and most of a boot's exits are page faults.
///
/// A mapping cannot be asked for by alignment, but Linux puts each one at the upper end of the
/// highest hole that it fits in. So a spacer, as long as the first try was misaligned and some huge
/// pages more, pushes the next into place: it is longer than the mapping, so that it cannot slip into
/// a smaller hole. A hole without room for both is closed. Where all that fails the guest is slower,
/// and nothing else.
fn huge_page_aligned(length: usize, sharing: Sharing) -> Result<MmapRegion, MemoryError> {
    const TRIES: usize = 8;
    let file = match sharing {
        Sharing::Private => None,
        Sharing::Shared => Some(Arc::new(memory_file(length)?)),
    };
    let map = |length| {
        let mapped = match &file {
            None => MmapRegion::new(length),
            Some(file) => MmapRegionBuilder::new(length)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::from_arc(Arc::clone(file), 0))
                .build(),
        };
        mapped.map_err(|e| MemoryError::Map(FromRangesError::MmapRegion(e)))
    };
    let space = |length| {
        MmapRegion::<()>::new(length).map_err(|e| MemoryError::Map(FromRangesError::MmapRegion(e)))
    };
    let mut first = map(length)?;
    if length < HUGE_PAGE {
        return Ok(first);
    }
    let mut closed = Vec::new();
    for _ in 0..TRIES {
        let excess = first.as_ptr() as usize % HUGE_PAGE;
        if excess == 0 {
            break;
        }
        drop(first);
        let spacer = length
            .checked_next_multiple_of(HUGE_PAGE)
            .and_then(|length| length.checked_add(excess));
        // A limit on address space may refuse the spacer, and still grant the memory alone.
        let Some(Ok(spacer)) = spacer.map(space) else {
            return map(length);
        };
        let second = map(length)?;
        if (second.as_ptr() as usize).is_multiple_of(HUGE_PAGE) {
            return Ok(second);
        }
        closed.push((spacer, second));
        first = map(length)?;
    }
    Ok(first)
}

/// A file of `length` bytes in memory, which nobody can make shorter or longer: one who did would end this process at
/// its next access.
fn memory_file(length: usize) -> Result<File, MemoryError> {
    let made = || -> rustix::io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("guest-ram", flags)?;
        ftruncate(&file, length as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(file.into())
    };
    made().map_err(|error| MemoryError::File(error.into()))
}

#[expect(unsafe_code, reason = "advice about a range of this process's memory")]
fn ask_for_huge_pages(mapping: &MmapRegion) {
    // SAFETY: the range is that of a live anonymous mapping of ours, and this advice changes
    // neither its content nor its access rights.
    let advised = unsafe {
        rustix::mm::madvise(
            mapping.as_ptr().cast(),
            mapping.size(),
            rustix::mm::Advice::LinuxHugepage,
        )
    };
    if let Err(error) = advised {
        log::debug!("no huge pages for the guest's memory: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn sizes_that_no_host_can_give() {
        assert!(matches!(check_size(0), Err(MemoryError::Zero)));
        assert!(matches!(check_size(4095), Err(MemoryError::NotPages(4095))));
        assert!(matches!(
            check_size(1 << 60),
            Err(MemoryError::LargerThanHost { asked, .. }) if asked == 1 << 60
        ));
        assert!(check_size(1 << 20).is_ok());
    }

    #[test]
    fn ram_begins_where_a_huge_page_can() {
        // Odd lengths move the place of every later mapping.
        for length in [HUGE_PAGE, 5 * HUGE_PAGE + 4096, 64 << 20] {
            let _in_the_way = MmapRegion::<()>::new(4096 * 7).unwrap();
            // Another test's thread may map something in between, but not every time.
            let aligned = (0..100).any(|_| {
                let mapping = huge_page_aligned(length, Sharing::Private).unwrap();
                assert_eq!(mapping.size(), length);
                (mapping.as_ptr() as usize).is_multiple_of(HUGE_PAGE)
            });
            assert!(aligned, "{length:#x}");
        }
        let small = huge_page_aligned(4096, Sharing::Private).unwrap();
        assert_eq!(small.size(), 4096);
    }

    #[test]
    fn ram_is_where_the_map_says() {
        // Reserved, not touched: 4 GiB cost nothing.
        let map = AddressMap::new(4 << 30, 40).unwrap();
        let ram = reserve(&map).unwrap();
        let regions: Vec<_> = ram.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 1 << 30)]);
    }

    #[test]
    fn shared_ram_is_in_files_that_cannot_be_shortened() {
        let map = AddressMap::new(4 << 30, 40).unwrap();
        let ram = reserve_as(&map, Sharing::Shared).unwrap();
        let regions: Vec<_> = ram.iter().collect();
        assert_eq!(regions.len(), 2);
        for region in &regions {
            let file = region.file_offset().unwrap();
            assert_eq!(file.start(), 0);
            assert_eq!(file.file().metadata().unwrap().len(), region.len());
            assert!(file.file().set_len(4096).is_err());
            // What is written by one is read by the other.
            let at = region.start_addr();
            vm_memory::Bytes::write_obj(&ram, 0x1122_3344u32, at).unwrap();
            let mut bytes = [0; 4];
            std::os::unix::fs::FileExt::read_exact_at(file.file(), &mut bytes, 0).unwrap();
            assert_eq!(bytes, 0x1122_3344u32.to_le_bytes());
        }
    }
}
