// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image: opened once, checked, locked for as long as it is open.

use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemory;

use super::bounce::{Bounced, bounce, zeros};
use super::direct::Direct;
use super::ring::Ring;
use super::transfer::{self, Direction, Hole, TransferError, transfer};
use super::{NoRing, OpenError, ResizeError, SECTOR};
use crate::queue::{Buffers, Reach};

/// What may be done to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Access {
    /// Read and write. Nobody else may have the image open through this crate.
    #[default]
    ReadWrite,
    /// Read. Others may read too.
    ReadOnly,
}

/// What a file is taken for. Never guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// The disk, sector by sector.
    #[default]
    Raw,
    /// QEMU's format, version 2 or 3. Needs the feature `imago`.
    Qcow2,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// Whether an image may name other files that hold parts of the disk. Whoever writes the image chooses which files of
/// the host those are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Backing {
    /// It may not.
    #[default]
    Refused,
    /// It may name a file to read what it does not have itself; never one that is written.
    Allowed,
}

/// Whether the host's page cache is between the guest and the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum HostCache {
    /// It is.
    #[default]
    Used,
    /// It is not (O_DIRECT).
    Bypassed,
}

/// Where changed tables of a [qcow2](Format::Qcow2) image are when a write of the guest's is completed. They say where the
/// guest's data lies in the file, so that without them the data is lost. A raw image has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Metadata {
    /// In this process, until the guest flushes its disk, or the image is closed. If the process is killed, writes that were
    /// completed since are gone, as after a power failure. Right where the guest goes with the process.
    #[default]
    Kept,
    /// In the file. If the process is killed, all that was completed is there for the next one; not if the host crashes,
    /// until the guest has flushed. For a process that serves a disk to a guest that outlives it. The first write to
    /// each cluster costs two tables of a cluster each, written to the host's cache (64 KiB as a rule); later ones nothing.
    WrittenThrough,
}

/// How an image is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct How {
    pub(super) access: Access,
    pub(super) format: Format,
    pub(super) backing: Backing,
    pub(super) cache: HostCache,
    pub(super) metadata: Metadata,
}

/// Where the disk's bytes are.
#[derive(Debug)]
enum Store {
    /// In a file, moved straight from and to guest memory.
    File(File),
    /// Where guest memory cannot be moved to: by a buffer.
    Bounced(Box<dyn Bounced>),
}

/// An open image. The lock goes with it.
#[derive(Debug)]
pub(super) struct Image {
    store: Store,
    sectors: AtomicU64,
    /// Held by who finds another length, until it is the disk's.
    measuring: Mutex<()>,
    access: Access,
    physical_block_exponent: u8,
}

impl Image {
    /// Opens a file or block device as what it is said to be: its format is never guessed, because a guest that writes
    /// its own first sector could choose what it is taken for.
    pub(super) fn open(path: &Path, how: How) -> Result<Self, OpenError> {
        let here = || path.to_path_buf();
        let host = |source| OpenError::Host {
            path: here(),
            source,
        };
        let file = open_file(path, how)?;
        let block = file.metadata().map_err(host)?.blksize();
        let (store, length) = match (how.format, how.cache) {
            (Format::Raw, cache) => {
                let length = length_of(&file).map_err(host)?;
                let store = match cache {
                    HostCache::Used => Store::File(file),
                    HostCache::Bypassed => {
                        Store::Bounced(Box::new(Direct::new(file, how.access, path, length)?))
                    }
                };
                (store, length)
            }
            (Format::Qcow2, _) => qcow2(file, path, how)?,
        };
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(OpenError::Length {
                path: here(),
                length,
            });
        }
        Ok(Self {
            store,
            sectors: AtomicU64::new(length / SECTOR),
            measuring: Mutex::default(),
            access: how.access,
            physical_block_exponent: exponent(block),
        })
    }

    /// One of so many sectors that is not in a file.
    #[cfg(test)]
    pub(super) fn of(store: Box<dyn Bounced>, sectors: u64) -> Self {
        Self {
            store: Store::Bounced(store),
            sectors: AtomicU64::new(sectors),
            measuring: Mutex::default(),
            access: Access::ReadWrite,
            physical_block_exponent: 0,
        }
    }

    /// Capacity in sectors: as it was opened, or as it was found to be since.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Has it be so long, in sectors.
    pub(super) fn set_sectors(&self, sectors: u64) {
        self.sectors.store(sectors, Ordering::Release);
    }

    /// How long a raw image is now.
    pub(super) fn measure(&self) -> Result<Measured<'_>, ResizeError> {
        let alone = self.measuring.lock();
        let alone = alone.unwrap_or_else(PoisonError::into_inner);
        let (length, block) = match &self.store {
            Store::File(file) => (length_of(file)?, SECTOR),
            Store::Bounced(store) => store.measure()?,
        };
        if length == 0 || !length.is_multiple_of(block) {
            return Err(ResizeError::Length { length, block });
        }
        Ok(Measured {
            length,
            _alone: alone,
        })
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// Sectors of what the host writes at once, as a power of two.
    pub(super) fn physical_block_exponent(&self) -> u8 {
        self.physical_block_exponent
    }

    /// Moves `data` from or to the image at `offset` in bytes.
    #[inline]
    pub(super) fn transfer<M: GuestMemory + ?Sized>(
        &self,
        offset: u64,
        direction: Direction,
        reach: &Reach<'_, M>,
        data: Buffers<'_>,
    ) -> Result<(), TransferError> {
        match &self.store {
            Store::File(file) => transfer(file, offset, direction, reach, data),
            Store::Bounced(store) => bounce(&**store, offset, direction, reach, data),
        }
    }

    /// A ring over the image's file, if requests can go by one.
    pub(super) fn ring(&self) -> Result<Ring, NoRing> {
        match &self.store {
            Store::File(_) => Err(NoRing::Cached),
            Store::Bounced(store) => store.ring(),
        }
    }

    /// Puts what was written on stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        match &self.store {
            Store::File(file) => file.sync_data(),
            Store::Bounced(store) => store.flush(),
        }
    }

    /// Makes a range read as zeros.
    pub(super) fn hole(&self, offset: u64, length: u64, kind: Hole) -> io::Result<()> {
        match &self.store {
            Store::File(file) => hole_or_zeros(file, offset, length, kind),
            Store::Bounced(store) => store.hole(offset, length, kind),
        }
    }
}

/// A length that was found, which nobody finds anew before this is dropped.
pub(super) struct Measured<'a> {
    /// In bytes.
    pub(super) length: u64,
    _alone: MutexGuard<'a, ()>,
}

/// A block device has no length in its metadata.
pub(super) fn length_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// Opens and locks a file or block device that can be a disk, without waiting.
pub(super) fn open_file(path: &Path, how: How) -> Result<File, OpenError> {
    let access = how.access;
    let here = || path.to_path_buf();
    let host = |source: io::Error| match (source.kind(), access) {
        (io::ErrorKind::NotFound, _) => OpenError::Missing { path: here() },
        (
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem,
            Access::ReadWrite,
        ) => OpenError::ReadOnly { path: here() },
        _ => OpenError::Host {
            path: here(),
            source,
        },
    };
    // Before it is opened: opening a pipe would wait for its other end.
    let metadata = path.metadata().map_err(host)?;
    is_disk(metadata.file_type(), path)?;
    // A file that nobody may write stays unwritten by root too.
    if access == Access::ReadWrite && metadata.permissions().readonly() {
        return Err(OpenError::ReadOnly { path: here() });
    }
    let write = access == Access::ReadWrite;
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(match how.cache {
            HostCache::Used => 0,
            HostCache::Bypassed => libc::O_DIRECT,
        })
        .open(path)
        .map_err(|source| match (how.cache, source.raw_os_error()) {
            (HostCache::Bypassed, Some(libc::EINVAL)) => OpenError::NotDirect {
                path: here(),
                source,
            },
            _ => host(source),
        })?;
    // Again: it may be another file by now.
    let metadata = file.metadata().map_err(host)?;
    is_disk(metadata.file_type(), path)?;
    let locked = match access {
        Access::ReadWrite => file.try_lock(),
        Access::ReadOnly => file.try_lock_shared(),
    };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => OpenError::Locked { path: here() },
        TryLockError::Error(source) => OpenError::Host {
            path: here(),
            source,
        },
    })?;
    Ok(file)
}

#[cfg(feature = "imago")]
fn qcow2(file: File, path: &Path, how: How) -> Result<(Store, u64), OpenError> {
    let image = super::qcow2::Qcow2Image::open(file, path, how)?;
    let length = image.length();
    Ok((Store::Bounced(Box::new(image)), length))
}

#[cfg(not(feature = "imago"))]
fn qcow2(_file: File, path: &Path, how: How) -> Result<(Store, u64), OpenError> {
    let How {
        format,
        backing: _backing,
        metadata: _metadata,
        ..
    } = how;
    let path = path.to_path_buf();
    Err(OpenError::NoReader { path, format })
}

/// Punches or zeroes a range of `file`.
fn hole_or_zeros(file: &File, offset: u64, length: u64, kind: Hole) -> io::Result<()> {
    match transfer::hole(file, offset, length, kind) {
        // The host's file system has no holes; the guest gets its zeros all the same.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            zeros(offset, length, |zeros, at| file.write_all_at(zeros, at))
        }
        result => result,
    }
}

/// log2 of a block's size in sectors; 0 for a size that cannot be told so.
fn exponent(block: u64) -> u8 {
    let sectors = block / SECTOR;
    if sectors.is_power_of_two() && sectors <= 1 << 15 {
        sectors.ilog2() as u8
    } else {
        0
    }
}

fn is_disk(file_type: FileType, path: &Path) -> Result<(), OpenError> {
    if file_type.is_dir() {
        Err(OpenError::Directory {
            path: path.to_path_buf(),
        })
    } else if file_type.is_file() || file_type.is_block_device() {
        Ok(())
    } else {
        Err(OpenError::NotADisk {
            path: path.to_path_buf(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_holes_gets_zeros() {
        // What `hole` goes by. No file system here lacks holes, so the rest is tested by itself.
        let kind = io::Error::from_raw_os_error(libc::EOPNOTSUPP).kind();
        assert_eq!(kind, io::ErrorKind::Unsupported);

        let length = 3 << 16;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&vec![7; length], 0).unwrap();
        let write = |zeros: &[u8], at| file.as_file().write_all_at(zeros, at);
        zeros(512, (1 << 17) + 1024, write).unwrap();
        let mut expected = vec![7; length];
        expected[512..512 + (1 << 17) + 1024].fill(0);
        assert_eq!(std::fs::read(file.path()).unwrap(), expected);
    }

    #[test]
    fn blocks_are_told_as_powers_of_two() {
        for (block, exponent) in [
            (512, 0),
            (4096, 3),
            (1 << 20, 11),
            (0, 0),
            (100, 0),
            (1536, 0),
        ] {
            assert_eq!(super::exponent(block), exponent, "{block}");
        }
    }
}
