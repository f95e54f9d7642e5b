// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A raw image: opened once, checked, locked for as long as it is open.

use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use super::SECTOR;

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
        is_disk(file.metadata().map_err(host)?.file_type(), path)?;
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
        })
    }

    /// Capacity in sectors, fixed when it was opened.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
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
