// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why an image cannot be used.

use std::io;
use std::path::PathBuf;

use super::Format;

/// Why a disk's requests do not go by an io_uring.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum NoRing {
    /// Calls were asked for.
    #[error("calls were asked for")]
    NotWanted,
    /// The host's cache is used: its calls do not wait for the storage, mostly.
    #[error("the host's cache is used")]
    Cached,
    /// The image is no raw one.
    #[error("the image is not raw")]
    Format,
    /// The host's blocks are larger than a sector.
    #[error("the host's blocks of {block} bytes are not sectors")]
    Blocks {
        /// Bytes.
        block: usize,
    },
    /// The host has no rings, or not for us.
    #[error("the host gives no io_uring")]
    Host(#[from] io::Error),
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
    /// It is not of the format that was asked for.
    #[error("{}: not a {format} image: {source}", path.display())]
    Format {
        /// As given.
        path: PathBuf,
        /// Asked for.
        format: Format,
        /// What the format's reader said.
        source: io::Error,
    },
    /// This crate was built without a reader for that format.
    #[error("{}: this program was built without {format} images", path.display())]
    NoReader {
        /// As given.
        path: PathBuf,
        /// Asked for.
        format: Format,
    },
    /// The image names another file that holds part of the disk, which was not allowed.
    #[error("{}: the image names another file, {}, which was not allowed", path.display(), named.display())]
    NamesAnother {
        /// As given.
        path: PathBuf,
        /// The other, as the image names it.
        named: PathBuf,
    },
    /// An image names one under it, and not that it is raw or qcow2.
    #[error("{}: an image is built on it and says that its format is {format}; it must be raw or qcow2", path.display())]
    BackingFormat {
        /// The file under the image.
        path: PathBuf,
        /// What the image says.
        format: String,
    },
    /// The file's host cannot go around its cache.
    #[error("{}: the host cannot bypass its cache for it: {source}", path.display())]
    NotDirect {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Without the host's cache, the image must be a whole number of the host's blocks.
    #[error("{}: {length} bytes, which is not a whole number of the host's blocks of {block}", path.display())]
    Blocks {
        /// As given.
        path: PathBuf,
        /// Bytes.
        length: u64,
        /// Bytes of a block.
        block: usize,
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
