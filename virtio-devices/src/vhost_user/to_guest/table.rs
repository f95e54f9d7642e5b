// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SET_MEM_TABLE as the other machine's VMM sends it, checked before anything is mapped.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat, fstatfs};

use super::link::{PeerError, RegionError};
use crate::vhost_user::message::MOST_REGIONS;

/// Bytes of a region in a table: the guest's address, length, the VMM's address, offset in the file.
const REGION: usize = 32;
/// What is shown is whole pages.
const PAGE: u64 = 4096;
/// TMPFS_MAGIC: files in memory, made of the kernel's ordinary pages.
const TMPFS: u64 = 0x0102_1994;

/// A piece of a file, and where it is shown.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) file: File,
    /// In the file.
    pub(super) offset: u64,
    pub(super) length: u64,
    /// In the window's memory.
    pub(super) place: u64,
}

/// The regions of a table, in its order, in a window of `memory` bytes.
pub(super) fn parse(
    payload: &[u8],
    files: Vec<OwnedFd>,
    memory: u64,
) -> Result<Vec<Region>, PeerError> {
    let senseless = PeerError::Table {
        length: payload.len(),
        files: files.len(),
    };
    let Some((count, regions)) = payload.split_at_checked(8) else {
        return Err(senseless);
    };
    let [a, b, c, d, ..] = *count else {
        return Err(senseless);
    };
    let count = u32::from_ne_bytes([a, b, c, d]) as usize;
    let (regions, rest) = regions.as_chunks::<REGION>();
    let sense = (1..=MOST_REGIONS).contains(&count) && regions.len() == count;
    if !sense || !rest.is_empty() || files.len() != count {
        return Err(senseless);
    }
    let mut parsed = Vec::with_capacity(count);
    let mut free = 0u64;
    for ((index, region), file) in (0..).zip(regions).zip(files) {
        let (words, _) = region.as_chunks::<8>();
        let [_, length, _, offset] = *words else {
            return Err(senseless);
        };
        let [length, offset] = [length, offset].map(u64::from_ne_bytes);
        let wrong = |why| PeerError::Region { index, why };
        let end = offset.checked_add(length);
        let Some(end) = end.filter(|_| length > 0) else {
            return Err(wrong(RegionError::Range { offset, length }));
        };
        if !length.is_multiple_of(PAGE) || !offset.is_multiple_of(PAGE) {
            return Err(wrong(RegionError::Pages { offset, length }));
        }
        let file = File::from(file);
        check(&file, end).map_err(wrong)?;
        let behind = free.checked_add(end).filter(|behind| *behind <= memory);
        let (Some(behind), Some(place)) = (behind, free.checked_add(offset)) else {
            return Err(wrong(RegionError::NoRoom { memory }));
        };
        parsed.push(Region {
            file,
            offset,
            length,
            place,
        });
        free = behind;
    }
    Ok(parsed)
}

/// Whether the first `end` bytes of `file` are there and stay there.
fn check(file: &File, end: u64) -> Result<(), RegionError> {
    let host = |error: rustix::io::Errno| RegionError::Host(error.into());
    // Other files than those in memory have no seals, and say so by an error.
    let seals = fcntl_get_seals(file).unwrap_or(SealFlags::empty());
    // A page of a file made of large ones may be missing at its first use, seal or no seal.
    let kind = u64::try_from(fstatfs(file).map_err(host)?.f_type).unwrap_or(0);
    if !seals.contains(SealFlags::SHRINK) || kind != TMPFS {
        return Err(RegionError::Unsealed);
    }
    // Asked for after the seal was seen: it can only grow from here on.
    let size = fstat(file).map_err(host)?.st_size;
    let size = u64::try_from(size).unwrap_or(0);
    if size < end {
        return Err(RegionError::Short { size, end });
    }
    Ok(())
}
