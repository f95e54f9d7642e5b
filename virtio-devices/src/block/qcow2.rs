// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A qcow2 image, by the crate `imago`.
//!
//! What the image names besides itself is opened here, not there: only if that was allowed, only to be read, only if
//! the image says what format it has, and never deeper than a stack holds. Data that lies in a file beside the image
//! (an external data file) is always refused.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use imago::file::File as Storage;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::bounce::{Bounced, zeros};
use super::image::{Backing, Format, HostCache, How, Metadata};
use super::transfer::Hole;
use super::{Access, OpenError};

/// Images that may lie under one another.
const DEEPEST: usize = 16;

/// An open image.
#[derive(Debug)]
pub(super) struct Qcow2Image {
    /// Discards move what others may be reading.
    access: RwLock<FormatAccess<Storage>>,
    length: u64,
    metadata: Metadata,
}

impl Qcow2Image {
    /// Opens `file`, which is at `path`.
    pub(super) fn open(file: File, path: &Path, how: How) -> Result<Self, OpenError> {
        let access = open(file, path, how, DEEPEST)?;
        Ok(Self {
            length: access.size(),
            metadata: how.metadata,
            access: RwLock::new(access),
        })
    }

    /// Bytes of the disk.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Writes changed tables to the file, if they are not kept. They go to the host's cache, not to stable storage.
    fn write_through(&self, access: &FormatAccess<Storage>) -> io::Result<()> {
        match self.metadata {
            Metadata::Kept => Ok(()),
            Metadata::WrittenThrough => access.flush(),
        }
    }
}

/// Opens an image and those under it, of which there may be `left`.
fn open(
    file: File,
    path: &Path,
    how: How,
    left: usize,
) -> Result<FormatAccess<Storage>, OpenError> {
    let broken = |source| OpenError::Format {
        path: path.to_path_buf(),
        format: Format::Qcow2,
        source,
    };
    let write = how.access == Access::ReadWrite;
    let storage = Storage::from_open_file(file, options(path, how)).map_err(broken)?;
    let builder = Qcow2::<Storage>::builder(storage)
        .backing(None)
        .data_file(None)
        .write(write);
    let mut image = builder
        .open(DenyImplicitOpenGate::default())
        .map_err(broken)?;
    let names = |named: &str| OpenError::NamesAnother {
        path: path.to_path_buf(),
        named: PathBuf::from(named),
    };
    if image.requires_external_data_file() {
        let named = image.implicit_external_data_file();
        return Err(names(named.map_or("", String::as_str)));
    }
    if let Some(named) = image.implicit_backing_file() {
        let left = match how.backing {
            Backing::Allowed => left.checked_sub(1),
            Backing::Refused => None,
        };
        let Some(left) = left else {
            return Err(names(named));
        };
        let format = image.implicit_backing_format().map(String::as_str);
        // Relative to the image that names it.
        let under = path.parent().unwrap_or(Path::new("")).join(named);
        let under = backing(&under, format, how, left)?;
        image.set_backing(Some(under));
    }
    Ok(FormatAccess::new(image))
}

/// Opens what an image names as the one under it.
fn backing(
    path: &Path,
    format: Option<&str>,
    how: How,
    left: usize,
) -> Result<FormatAccess<Storage>, OpenError> {
    let how = How {
        access: Access::ReadOnly,
        ..how
    };
    let broken = |format| {
        move |source| OpenError::Format {
            path: path.to_path_buf(),
            format,
            source,
        }
    };
    let file = super::image::open_file(path, how)?;
    match format {
        Some("qcow2") => open(file, path, how, left),
        Some("raw") => {
            let wrong = broken(Format::Raw);
            let raw = Storage::from_open_file(file, options(path, how))
                .and_then(|storage| Raw::builder(storage).open(DenyImplicitOpenGate::default()));
            Ok(FormatAccess::new(raw.map_err(wrong)?))
        }
        // A guest that could write it could choose.
        other => Err(OpenError::BackingFormat {
            path: path.to_path_buf(),
            format: other.unwrap_or("nothing").to_owned(),
        }),
    }
}

fn options(path: &Path, how: How) -> StorageOpenOptions {
    StorageOpenOptions::new()
        .filename(path)
        .write(how.access == Access::ReadWrite)
        .direct(how.cache == HostCache::Bypassed)
}

impl Bounced for Qcow2Image {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        access.read(buffer, offset)
    }

    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        access.write(buffer, offset)?;
        self.write_through(&access)
    }

    fn flush(&self) -> io::Result<()> {
        let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
        access.flush()?;
        access.sync()
    }

    fn hole(&self, offset: u64, length: u64, kind: Hole) -> io::Result<()> {
        let made = match kind {
            Hole::Punch => {
                let mut access = self.access.write().unwrap_or_else(PoisonError::into_inner);
                let made = access.discard_to_zero(offset, length);
                made.and_then(|()| self.write_through(&access))
            }
            Hole::Zero => {
                let access = self.access.read().unwrap_or_else(PoisonError::into_inner);
                let made = access.write_zeroes(offset, length);
                made.and_then(|()| self.write_through(&access))
            }
        };
        match made {
            // Version 2 of the format has no holes; the guest gets its zeros all the same.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                zeros(offset, length, |zeros, at| self.write(at, zeros))
            }
            result => result,
        }
    }
}
