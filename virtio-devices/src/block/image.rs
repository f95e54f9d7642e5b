// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A raw image: opened once, checked, locked for as long as it is open.

use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use vm_memory::GuestMemory;

use super::SECTOR;
use super::transfer::{self, Direction, Hole, TransferError, transfer};
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

/// Why an image cannot be used.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing at that path.
    #[error("{}: no such disk image", path.display())]
    Missing {
        /// As given.
        path: PathBuf,
    },
    /// It is a directory.
    #[error("{}: a directory, not a disk image", path.display())]
    Directory {
        /// As given.
        path: PathBuf,
    },
    /// It is a pipe, a socket, or a character device.
    #[error("{}: neither a file nor a block device", path.display())]
    NotADisk {
        /// As given.
        path: PathBuf,
    },
    /// Writing was asked for, and nobody or not we may write to it.
    #[error("{}: read-only; ask for read-only access, or make it writable", path.display())]
    ReadOnly {
        /// As given.
        path: PathBuf,
    },
    /// Another VMM uses it.
    #[error("{}: in use by another VMM", path.display())]
    Locked {
        /// As given.
        path: PathBuf,
    },
    /// It is empty, or ends inside a sector. We could only hide the rest from the guest, or invent some.
    #[error("{}: {length} bytes, which is not a whole number of sectors of 512", path.display())]
    Length {
        /// As given.
        path: PathBuf,
        /// Bytes.
        length: u64,
    },
    /// No disk has so many queues.
    #[error("{count} queues; a disk has 1 to 256")]
    Queues {
        /// Asked for.
        count: u16,
    },
    /// No queue can have that size.
    #[error("a queue of {size} descriptors; it must be a power of two from 4 to 32768")]
    QueueSize {
        /// Asked for.
        size: u16,
    },
    /// Too long, or not printable ASCII.
    #[error("serial number \"{}\"; it must be at most 20 printable characters", serial.escape_ascii())]
    Serial {
        /// Asked for.
        serial: Vec<u8>,
    },
    /// The host refused for another reason.
    #[error("{}: cannot be opened", path.display())]
    Host {
        /// As given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An open image. The lock goes with it.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    sectors: u64,
    access: Access,
    physical_block_exponent: u8,
}

impl Image {
    /// Opens a file or block device, raw: its format is never guessed, because a guest that writes its own
    /// first sector could choose what it is taken for.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
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
        let mut file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .map_err(host)?;
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
        // A block device has no length in its metadata.
        let length = file.seek(SeekFrom::End(0)).map_err(host)?;
        if length == 0 || !length.is_multiple_of(SECTOR) {
            return Err(OpenError::Length {
                path: here(),
                length,
            });
        }
        Ok(Self {
            file,
            sectors: length / SECTOR,
            access,
            physical_block_exponent: exponent(metadata.blksize()),
        })
    }

    /// Capacity in sectors, fixed when it was opened.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// Sectors of what the host writes at once, as a power of two.
    pub(super) fn physical_block_exponent(&self) -> u8 {
        self.physical_block_exponent
    }

    /// Moves `data` from or to the image at `offset` in bytes.
    pub(super) fn transfer<M: GuestMemory + ?Sized>(
        &self,
        offset: u64,
        direction: Direction,
        reach: &Reach<'_, M>,
        data: Buffers<'_>,
    ) -> Result<(), TransferError> {
        transfer(&self.file, offset, direction, reach, data)
    }

    /// Puts what was written on stable storage.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Makes a range read as zeros.
    pub(super) fn hole(&self, offset: u64, length: u64, kind: Hole) -> io::Result<()> {
        match transfer::hole(&self.file, offset, length, kind) {
            // The host's file system has no holes; the guest gets its zeros all the same.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => self.zero(offset, length),
            result => result,
        }
    }

    fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let now = usize::try_from(end - at)
                .unwrap_or(usize::MAX)
                .min(ZEROS.len());
            self.file.write_all_at(&ZEROS[..now], at)?;
            at += now as u64;
        }
        Ok(())
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
        let image = Image::open(file.path(), Access::ReadWrite).unwrap();
        image.zero(512, (1 << 17) + 1024).unwrap();
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
