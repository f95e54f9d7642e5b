// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The initial RAM file system: as high in low memory as the kernel allows.

use super::error::BootError;
use super::open_file;
use crate::machine::memory::{GuestRam, PAGE};
use std::ops::Range;
use std::path::Path;
use vm_memory::{Bytes, GuestAddress};

/// Loads `path` into `room`, the memory beside the kernel; the result is where it lies.
pub(super) fn load(path: &Path, room: Range<u64>, ram: &GuestRam) -> Result<Range<u64>, BootError> {
    let unreadable = |path, source| BootError::InitramfsFile { path, source };
    let (mut file, length) = open_file(path, unreadable)?;
    let start = place(length, &room).ok_or_else(|| BootError::InitramfsTooLarge {
        path: path.to_owned(),
        length,
        room: room.end.saturating_sub(room.start),
    })?;
    // It fits in memory that is mapped, so its length is a `usize`.
    ram.read_exact_volatile_from(GuestAddress(start), &mut file, length as usize)
        .map_err(|error| unreadable(path.to_owned(), std::io::Error::other(error)))?;
    Ok(start..start.saturating_add(length))
}

/// The highest page that leaves `length` bytes of `room` behind it.
fn place(length: u64, room: &Range<u64>) -> Option<u64> {
    let start = room.end.checked_sub(length)? & !PAGE.saturating_sub(1);
    (start >= room.start).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lies_at_the_top_and_never_in_the_kernel() {
        let room = 0x200_0000..0x1000_0000;
        assert_eq!(place(0x1000, &room), Some(0xfff_f000));
        assert_eq!(place(0x1001, &room), Some(0xfff_e000));
        assert_eq!(place(0xe00_0000, &room), Some(0x200_0000));
        assert_eq!(place(0xe00_0001, &room), None);
        assert_eq!(place(u64::MAX, &room), None);
        // A kernel that ends behind the memory leaves no room at all.
        let (start, end) = (0x5000, 0x3000);
        assert_eq!(place(1, &(start..end)), None);
    }
}
