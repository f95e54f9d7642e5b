// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that a client gives, piece by piece: files, mapped whole once each, and which of their bytes are at which
//! addresses of the device.
//!
//! A device takes the list as it is when it begins a batch of work, and keeps to that until the batch is done.

use rustix::fs::fstat;
use std::collections::BTreeMap;
use std::fs::File;
use std::iter::FusedIterator;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, Permissions, VolatileSlice,
};

/// Pieces that a client may have mapped at a time.
pub(super) const MOST_PIECES: usize = 65_536;
/// Files that they may be in.
const MOST_FILES: usize = 64;

/// A file that is mapped here, from its beginning to the end that it had.
#[derive(Debug)]
struct Whole {
    region: GuestRegionMmap,
    /// By which the kernel tells files from each other.
    identity: (u64, u64),
}

/// Bytes of a file that the device reaches.
#[derive(Clone, Debug)]
struct Piece {
    last: u64,
    file: Arc<Whole>,
    offset: u64,
    rights: Permissions,
}

/// What is mapped at a moment.
#[derive(Clone, Debug, Default)]
pub struct Mapped {
    pieces: BTreeMap<u64, Piece>,
}

/// What is mapped. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct GivenMemory(Arc<Mutex<Arc<Mapped>>>);

impl GivenMemory {
    fn now(&self) -> MutexGuard<'_, Arc<Mapped>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `size` bytes of `file` at `offset` as what the device has at `address`.
    ///
    /// # Errors
    ///
    /// An error number, for the client.
    pub(super) fn map(
        &self,
        address: u64,
        size: u64,
        file: OwnedFd,
        offset: u64,
        rights: Permissions,
    ) -> Result<(), i32> {
        let last = size.checked_sub(1).and_then(|l| address.checked_add(l));
        let last = last.ok_or(libc::EINVAL)?;
        let end = offset.checked_add(size).ok_or(libc::EINVAL)?;
        let mut now = self.now();
        if now.overlaps(address, last) {
            return Err(libc::EEXIST);
        }
        if now.pieces.len() >= MOST_PIECES {
            return Err(libc::ENOSPC);
        }
        let file = now.file(file)?;
        // What lies beyond the file would end this process when it is touched.
        if end > file.region.len() {
            return Err(libc::EINVAL);
        }
        let piece = Piece {
            last,
            file,
            offset,
            rights,
        };
        Arc::make_mut(&mut now).pieces.insert(address, piece);
        Ok(())
    }

    /// Takes back what was mapped by one [`map`](Self::map), or by several that `size` bytes from `address` hold whole.
    ///
    /// # Errors
    ///
    /// An error number, for the client: there is nothing, or it is more than that.
    pub(super) fn unmap(&self, address: u64, size: u64) -> Result<(), i32> {
        let last = size.checked_sub(1).and_then(|l| address.checked_add(l));
        let last = last.ok_or(libc::EINVAL)?;
        let mut now = self.now();
        let before = now.before(address);
        if before.is_some_and(|(first, piece)| first < address && piece.last >= address) {
            return Err(libc::EINVAL);
        }
        let inside = now.pieces.range(address..=last);
        if inside.clone().any(|(_, piece)| piece.last > last) {
            return Err(libc::EINVAL);
        }
        let firsts: Vec<u64> = inside.map(|(first, _)| *first).collect();
        if firsts.is_empty() {
            return Err(libc::ENOENT);
        }
        let now = Arc::make_mut(&mut now);
        for first in firsts {
            now.pieces.remove(&first);
        }
        Ok(())
    }

    /// Takes everything back.
    pub(super) fn clear(&self) {
        *self.now() = Arc::default();
    }
}

impl GuestAddressSpace for GivenMemory {
    type M = Mapped;
    type T = Arc<Mapped>;

    fn memory(&self) -> Arc<Mapped> {
        Arc::clone(&self.now())
    }
}

impl Mapped {
    /// The last piece that begins at `address` or before.
    fn before(&self, address: u64) -> Option<(u64, &Piece)> {
        let below = (Bound::Unbounded, Bound::Included(address));
        let found = self.pieces.range(below).next_back();
        found.map(|(first, piece)| (*first, piece))
    }

    fn overlaps(&self, first: u64, last: u64) -> bool {
        self.before(last)
            .is_some_and(|(_, piece)| piece.last >= first)
    }

    /// `file` as it is mapped already, or mapped now.
    fn file(&self, file: OwnedFd) -> Result<Arc<Whole>, i32> {
        let stat = fstat(&file).map_err(rustix::io::Errno::raw_os_error)?;
        let identity = (stat.st_dev, stat.st_ino);
        let mut others: Vec<_> = Vec::new();
        for piece in self.pieces.values() {
            if piece.file.identity == identity {
                return Ok(Arc::clone(&piece.file));
            }
            if !others.contains(&piece.file.identity) {
                others.push(piece.file.identity);
            }
        }
        if others.len() >= MOST_FILES {
            return Err(libc::ENOSPC);
        }
        let length = usize::try_from(stat.st_size).map_err(|_| libc::EINVAL)?;
        let mapping = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(File::from(file), 0))
            .build()
            .map_err(|_| libc::EINVAL)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).ok_or(libc::EINVAL)?;
        Ok(Arc::new(Whole { region, identity }))
    }

    /// The bytes at `address` that are in one piece, at most `length` of them.
    fn slice(
        &self,
        address: u64,
        length: usize,
        access: Permissions,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        let nowhere = || GuestMemoryError::InvalidGuestAddress(GuestAddress(address));
        let (first, piece) = self.before(address).ok_or_else(nowhere)?;
        let behind = piece.last.checked_sub(address).ok_or_else(nowhere)?;
        if !piece.rights.allow(access) {
            return Err(nowhere());
        }
        let there = usize::try_from(behind).map_or(usize::MAX, |l| l.saturating_add(1));
        let into = address.wrapping_sub(first);
        let at = MemoryRegionAddress(piece.offset.wrapping_add(into));
        piece.file.region.get_slice(at, length.min(there))
    }
}

/// Slices, in the order of the device's addresses.
struct Slices<'a> {
    mapped: &'a Mapped,
    address: u64,
    left: usize,
    access: Permissions,
}

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, BS<'a, ()>>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let slice = self.mapped.slice(self.address, self.left, self.access);
        match &slice {
            Ok(slice) => {
                self.left = self.left.saturating_sub(slice.len());
                self.address = self.address.wrapping_add(slice.len() as u64);
            }
            Err(_) => self.left = 0,
        }
        Some(slice)
    }
}

impl FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, BS<'a, ()>> for Slices<'a> {}

impl GuestMemory for Mapped {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, length: usize, access: Permissions) -> bool {
        self.get_slices(address, length, access)
            .is_ok_and(|mut slices| slices.all(|slice| slice.is_ok()))
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, ()>>, GuestMemoryError> {
        let last = (length as u64).checked_sub(1);
        if last.is_some_and(|last| address.0.checked_add(last).is_none()) {
            return Err(GuestMemoryError::InvalidGuestAddress(address));
        }
        Ok(Slices {
            mapped: self,
            address: address.0,
            left: length,
            access,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;
    use vm_memory::Bytes;

    const BOTH: Permissions = Permissions::ReadWrite;

    fn file(length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    }

    fn dup(file: &File) -> OwnedFd {
        file.try_clone().unwrap().into()
    }

    #[test]
    fn bytes_are_those_of_the_file_that_was_given() {
        let (one, other) = (file(0x4000), file(0x2000));
        let given = GivenMemory::default();
        given.map(0x7000, 0x1000, dup(&one), 0x2000, BOTH).unwrap();
        given.map(0x8000, 0x1000, dup(&other), 0, BOTH).unwrap();
        given
            .map(0x9000, 0x1000, dup(&one), 0, Permissions::Read)
            .unwrap();
        let memory = given.memory();
        memory
            .write_slice(&[1, 2, 3, 4], GuestAddress(0x7ffe))
            .unwrap();
        let mut bytes = [0; 2];
        one.read_exact_at(&mut bytes, 0x2ffe).unwrap();
        assert_eq!(bytes, [1, 2]);
        other.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [3, 4]);
        // Each file is mapped once.
        let wholes: Vec<_> = memory
            .pieces
            .values()
            .map(|p| Arc::as_ptr(&p.file))
            .collect();
        assert_eq!(wholes[0], wholes[2]);
        assert!(memory.check_range(GuestAddress(0x7000), 0x3000, Permissions::Read));
        assert!(!memory.check_range(GuestAddress(0x7000), 0x3000, BOTH));
        assert!(memory.write_slice(&[0], GuestAddress(0x9000)).is_err());
        assert!(
            memory
                .read_slice(&mut [0; 2], GuestAddress(0x9fff))
                .is_err()
        );
        assert!(
            memory
                .read_slice(&mut [0; 2], GuestAddress(u64::MAX))
                .is_err()
        );
    }

    #[test]
    fn what_is_taken_back_is_gone_for_the_next_batch() {
        let file = file(0x4000);
        let given = GivenMemory::default();
        for at in [0, 0x1000, 0x2000] {
            given.map(at, 0x1000, dup(&file), at, BOTH).unwrap();
        }
        let before = given.memory();
        given.unmap(0x1000, 0x1000).unwrap();
        assert!(before.check_range(GuestAddress(0), 0x3000, BOTH));
        let after = given.memory();
        assert!(!after.check_range(GuestAddress(0x1000), 1, BOTH));
        assert!(after.check_range(GuestAddress(0x2000), 0x1000, BOTH));
        given.unmap(0, 0x3000).unwrap();
        assert!(!given.memory().check_range(GuestAddress(0), 1, BOTH));
    }

    #[test]
    fn maps_that_make_no_sense() {
        let file = file(0x2000);
        let given = GivenMemory::default();
        let map = |at, size, offset| given.map(at, size, dup(&file), offset, BOTH);
        assert_eq!(map(0, 0, 0), Err(libc::EINVAL));
        assert_eq!(map(u64::MAX, 2, 0), Err(libc::EINVAL));
        assert_eq!(map(0, 0x1000, u64::MAX), Err(libc::EINVAL));
        assert_eq!(map(0, 0x2000, 0x1000), Err(libc::EINVAL));
        assert_eq!(map(0x1000, 0x2000, 0), Ok(()));
        for at in [0x1000, 0x2000, 0x2fff, 0] {
            assert_eq!(map(at, 0x1001, 0), Err(libc::EEXIST), "{at:#x}");
        }
        assert_eq!(given.unmap(0x1000, 0x1000), Err(libc::EINVAL));
        assert_eq!(given.unmap(0x2000, 0x1000), Err(libc::EINVAL));
        assert_eq!(given.unmap(0x3000, 0x1000), Err(libc::ENOENT));
        assert_eq!(given.unmap(0x1000, 0), Err(libc::EINVAL));
        let empty = tempfile::tempfile().unwrap();
        assert_eq!(given.map(0, 1, dup(&empty), 0, BOTH), Err(libc::EINVAL));
    }
}
