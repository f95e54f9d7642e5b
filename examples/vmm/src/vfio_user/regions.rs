// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the server says of its registers: how many there are, and which of them lie in a file that can be mapped.
//!
//! ```text
//!   argsz:32  flags:32  index:32  offset of the first capability:32  size:64  offset in the file:64
//!   capability: id:16  version:16  offset of the next:32     of the sparse areas: count:32 0:32, offset:64 size:64 each
//! ```
//!
//! Offsets count from `argsz`. "vfio-user Protocol Specification", "VFIO_USER_DEVICE_GET_REGION_INFO"; Linux,
//! `include/uapi/linux/vfio.h`.

use super::connection::{CallError, Connection, Reply};
use super::message::{Command, Words, words};
use crate::passthrough::pages::Pages;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};

/// Bytes of `vfio_region_info`.
const INFO: u32 = 32;
/// The same, with room for capabilities of some hundred areas.
const LONGEST: u32 = 4096;

/// Registers of the device.
#[derive(Debug, Default)]
pub(super) struct UserRegion {
    pub(super) length: u64,
    pub(super) mappable: Vec<Range<u64>>,
    file: Option<(OwnedFd, u64)>,
}

impl UserRegion {
    /// Asks for the region `index`.
    pub(super) fn ask(connection: &Connection, index: u32) -> Result<Self, CallError> {
        let ask = |argsz| {
            let payload = words(&[argsz, 0, index, 0, 0, 0, 0, 0]);
            connection.ask(Command::GET_REGION_INFO, &payload, &[])
        };
        let mut reply = ask(INFO)?;
        let longer = Words(&reply.payload).word().unwrap_or(0);
        if longer > INFO {
            reply = ask(longer.min(LONGEST))?;
        }
        let senseless = || connection.senseless(Command::GET_REGION_INFO);
        Self::of(reply, index).ok_or_else(senseless)
    }

    /// What `reply` says; nothing if it is no answer.
    fn of(reply: Reply, index: u32) -> Option<Self> {
        let mut fields = Words(&reply.payload);
        let (_, flags, same, first) = (
            fields.word()?,
            fields.word()?,
            fields.word()?,
            fields.word()?,
        );
        let (length, offset) = (fields.long()?, fields.long()?);
        if same != index {
            return None;
        }
        let wanted =
            VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE | VFIO_REGION_INFO_FLAG_MMAP;
        let file = reply.files.into_iter().next();
        let mappable = match (flags & wanted == wanted, &file) {
            (true, Some(file)) if flags & VFIO_REGION_INFO_FLAG_CAPS != 0 => {
                lasting(file, offset, sparse(&reply.payload, first, length)?)
            }
            (true, Some(file)) => lasting(file, offset, whole(length)),
            _ => Vec::new(),
        };
        Some(UserRegion {
            length,
            mappable,
            file: file.map(|file| (file, offset)),
        })
    }

    /// Maps a mappable range.
    pub(super) fn pages(&self, range: &Range<u64>) -> io::Result<Pages> {
        let wrong = || io::Error::from(ErrorKind::InvalidInput);
        let (file, offset) = self.file.as_ref().ok_or_else(wrong)?;
        let offset = offset.checked_add(range.start).ok_or_else(wrong)?;
        let length = range.end.checked_sub(range.start).ok_or_else(wrong)?;
        let length = usize::try_from(length).map_err(|_| wrong())?;
        Pages::map(file.as_fd(), offset, length)
    }
}

/// One area, of everything.
fn whole(length: u64) -> Vec<Range<u64>> {
    std::iter::once(0..length).collect()
}

/// Those of `areas` that stay in `file`, whatever the server does. A file that can be made shorter is not mapped: the
/// guest's next access would end its processor.
fn lasting(file: &OwnedFd, offset: u64, areas: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let sealed = fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    if !sealed {
        log::info!(
            "registers are not mapped: their file can be made shorter (F_SEAL_SHRINK is missing)"
        );
        return Vec::new();
    }
    let size = fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
    let there = |area: &Range<u64>| {
        let end = offset.checked_add(area.end);
        area.start < area.end && end.is_some_and(|end| end <= size)
    };
    areas.into_iter().filter(there).collect()
}

/// The areas that the capabilities in `info` name, of a region of `length` bytes; all of it if none does. Nothing if
/// the list leads out of it, or back.
fn sparse(info: &[u8], first: u32, length: u64) -> Option<Vec<Range<u64>>> {
    let (mut at, mut last) = (first as usize, 0);
    while at != 0 {
        if at <= last {
            return None;
        }
        last = at;
        let mut fields = Words(info.get(at..)?);
        let id = fields.half()?;
        fields.half()?;
        at = fields.word()? as usize;
        if u32::from(id) != VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            continue;
        }
        let count = fields.word()?;
        fields.word()?;
        // Ends where the bytes do, at the latest.
        return (0..count)
            .map(|_| {
                let (start, size) = (fields.long()?, fields.long()?);
                let end = start.checked_add(size).filter(|&end| end <= length)?;
                Some(start..end)
            })
            .collect();
    }
    Some(whole(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};

    /// `vfio_region_info` and capabilities, word by word.
    fn info(first: u32, capabilities: &[u32]) -> Vec<u8> {
        words(&[&[96, 0xf, 2, first, 0x4000, 0, 0, 0], capabilities].concat())
    }

    #[test]
    fn areas_are_those_that_are_named() {
        // Of another kind first, then two areas.
        let other = [0x0001_0007, 40];
        let areas = [0x0001_0001, 0, 2, 0, 0, 0, 0x1000, 0, 0x2000, 0, 0x2000, 0];
        let raw = info(32, &[&other[..], &areas].concat());
        assert_eq!(
            sparse(&raw, 32, 0x4000),
            Some(vec![0..0x1000, 0x2000..0x4000])
        );
        assert_eq!(sparse(&raw, 0, 0x4000), Some(whole(0x4000)));
    }

    #[test]
    fn lists_that_make_no_sense() {
        let area = [0x0001_0001, 0, 1, 0, 0, 0, 0x1000, 0];
        for (first, capabilities) in [
            (32, &[][..]),
            (4000, &area[..]),
            (u32::MAX, &area[..]),
            // In a circle; more areas than there are; one that ends outside, or wraps.
            (32, &[0x0001_0007, 32]),
            (32, &[0x0001_0001, 0, u32::MAX, 0, 0, 0, 0x1000, 0]),
            (32, &[0x0001_0001, 0, 1, 0, 0, 0, 0x5000, 0]),
            (32, &[0x0001_0001, 0, 1, 0, u32::MAX, u32::MAX, 0x1000, 0]),
        ] {
            let raw = info(first, capabilities);
            assert_eq!(sparse(&raw, first, 0x4000), None, "{capabilities:x?}");
        }
    }

    #[test]
    fn only_files_that_stay_as_long_are_mapped() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("registers", flags).unwrap();
        ftruncate(&file, 0x3000).unwrap();
        let whole = || vec![0..0x1000, 0x1000..0x3000, 0x2000..0x2000];
        assert_eq!(lasting(&file, 0, whole()), []);
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
        assert_eq!(lasting(&file, 0, whole()), [0..0x1000, 0x1000..0x3000]);
        let first = 0..0x1000;
        assert_eq!(
            lasting(&file, 0x1000, whole()),
            std::slice::from_ref(&first)
        );
        assert_eq!(lasting(&file, u64::MAX, whole()), []);
    }
}
