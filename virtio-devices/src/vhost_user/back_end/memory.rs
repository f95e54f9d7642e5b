// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's memory as its VMM gives it: pieces of files, and where they are in the guest and in the VMM.

use std::fs::File;
use std::os::fd::OwnedFd;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::vhost_user::message::MOST_REGIONS;

/// Words of a region in a table.
const REGION: usize = 32;

/// Memory that is mapped here.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) memory: GuestMemoryMmap,
    /// The VMM's first address, the guest's, and bytes.
    places: Vec<(u64, u64, u64)>,
}

impl Given {
    /// Maps what SET_MEM_TABLE says; nothing if it makes no sense, or the host does not map it.
    pub(super) fn map(payload: &[u8], files: Vec<OwnedFd>) -> Option<Self> {
        let (head, regions) = payload.split_at_checked(8)?;
        let count = u32::from_ne_bytes(*head.first_chunk()?) as usize;
        let (regions, rest) = regions.as_chunks::<REGION>();
        let sense = (1..=MOST_REGIONS).contains(&count) && regions.len() == count;
        if !sense || !rest.is_empty() || files.len() != count {
            return None;
        }
        let (mut ranges, mut places) = (Vec::new(), Vec::new());
        for (region, file) in regions.iter().zip(files) {
            let word = |at: usize| Some(u64::from_ne_bytes(*region.get(at..)?.first_chunk()?));
            let (guest, length, theirs, offset) = (word(0)?, word(8)?, word(16)?, word(24)?);
            theirs.checked_add(length)?;
            let file = FileOffset::new(File::from(file), offset);
            // What lies beyond the file would end this process when it is touched.
            let end = offset.checked_add(length)?;
            let there = rustix::fs::fstat(file.file()).ok()?.st_size;
            if length == 0 || u64::try_from(there).ok()? < end {
                return None;
            }
            let size = usize::try_from(length).ok()?;
            ranges.push((GuestAddress(guest), size, Some(file)));
            places.push((theirs, guest, length));
        }
        ranges.sort_by_key(|(start, ..)| start.0);
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).ok()?;
        Some(Self { memory, places })
    }

    /// The guest's address of what is at the VMM's `address`.
    pub(super) fn guest(&self, address: u64) -> Option<u64> {
        self.guest_range(address, 1)
    }

    /// The guest's address of the `size` bytes at the VMM's `address`, if one region has them.
    pub(super) fn guest_range(&self, address: u64, size: u64) -> Option<u64> {
        self.places.iter().find_map(|(theirs, guest, length)| {
            let offset = address.checked_sub(*theirs)?;
            let end = offset.checked_add(size)?;
            (end <= *length).then(|| guest.wrapping_add(offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(count: u32, regions: &[[u64; 4]]) -> Vec<u8> {
        let words = regions.as_flattened().iter();
        let mut raw = [count.to_ne_bytes(), [0; 4]].concat();
        raw.extend(words.flat_map(|word| word.to_ne_bytes()));
        raw
    }

    fn map(payload: &[u8], files: usize) -> Option<Given> {
        let file = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(0x4000).unwrap();
            file.into()
        };
        Given::map(payload, (0..files).map(|_| file()).collect())
    }

    #[test]
    fn addresses_of_two_machines() {
        let regions = [
            [0x10_0000, 0x2000, 0x7000_0000, 0x2000],
            [0, 0x1000, 0x5000_0000, 0],
        ];
        let given = map(&table(2, &regions), 2).unwrap();
        assert_eq!(given.guest(0x7000_0000), Some(0x10_0000));
        assert_eq!(given.guest(0x7000_1fff), Some(0x10_1fff));
        assert_eq!(given.guest(0x5000_0010), Some(0x10));
        assert_eq!(given.guest(0x7000_2000), None);
        assert_eq!(given.guest(0x10), None);
        assert_eq!(given.guest_range(0x7000_1000, 0x1000), Some(0x10_1000));
        assert_eq!(given.guest_range(0x7000_1000, 0x1001), None);
        assert_eq!(given.guest_range(0x7000_1000, u64::MAX), None);
    }

    #[test]
    fn tables_that_make_no_sense() {
        let good = [0, 0x1000, 0x5000_0000, 0];
        for (payload, files) in [
            (table(0, &[]), 0),
            (table(1, &[good]), 0),
            (table(1, &[good]), 2),
            (table(2, &[good]), 2),
            (table(u32::MAX, &[good]), 1),
            (table(9, &[good; 9]), 9),
            // Empty; beyond its file; wrapping; one over the other.
            (table(1, &[[0, 0, 0x5000_0000, 0]]), 1),
            (table(1, &[[0, 0x2000, 0x5000_0000, 0x3000]]), 1),
            (table(1, &[[0, 0x1000, 0x5000_0000, u64::MAX]]), 1),
            (table(1, &[[0, 0x1000, u64::MAX, 0]]), 1),
            (table(1, &[[u64::MAX, 0x1000, 0, 0]]), 1),
            (table(2, &[good, good]), 2),
            (vec![1, 0, 0], 1),
            (table(1, &[good])[..39].to_vec(), 1),
        ] {
            assert!(map(&payload, files).is_none(), "{payload:x?} with {files}");
        }
    }
}
