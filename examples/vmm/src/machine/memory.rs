// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How much RAM the guest gets, and where in this process it lives.
//!
//! Pages are reserved, not allocated: the host provides each one when the guest first touches it.

use super::address_map::AddressMap;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// The guest's RAM. Clones share it.
pub type GuestRam = GuestMemoryMmap<()>;

/// The smallest unit of RAM that can be given to a guest, in bytes.
pub const PAGE: u64 = 4096;

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
    /// The host would not map it.
    #[error("cannot map guest memory: {0}")]
    Map(vm_memory::mmap::FromRangesError),
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

/// Maps the RAM of `map` into this process.
pub fn reserve(map: &AddressMap) -> Result<GuestRam, MemoryError> {
    let ranges: Vec<(GuestAddress, usize)> = map
        .ram()
        .map(|range| {
            // The target is 64-bit: a `usize` holds any length below 2^52.
            let length = (range.end - range.start) as usize;
            (GuestAddress(range.start), length)
        })
        .collect();
    GuestRam::from_ranges(&ranges).map_err(MemoryError::Map)
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
    fn ram_is_where_the_map_says() {
        // Reserved, not touched: 4 GiB cost nothing.
        let map = AddressMap::new(4 << 30, 40).unwrap();
        let ram = reserve(&map).unwrap();
        let regions: Vec<_> = ram.iter().map(|r| (r.start_addr().0, r.len())).collect();
        assert_eq!(regions, [(0, 3 << 30), (4 << 30, 1 << 30)]);
    }
}
