// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between guest memory and a store that wants buffers of its own: aligned ones, or borrowed ones.

use std::io;

use vm_memory::GuestMemory;

use super::transfer::{Direction, Hole, TransferError};
use crate::queue::{Buffers, Reach};

/// Alignment of a buffer: no host wants more for direct access.
pub(super) const ALIGNMENT: usize = 4096;
/// Bytes that are moved at once.
const PART: usize = 256 << 10;

/// A store of bytes that is read and written by buffers. Ranges are inside it.
pub(super) trait Bounced: Send + Sync + std::fmt::Debug {
    /// Fills `buffer`, which is aligned to [`ALIGNMENT`].
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `buffer`, which is aligned to [`ALIGNMENT`].
    fn write(&self, offset: u64, buffer: &[u8]) -> io::Result<()>;

    /// Puts what was written on stable storage.
    fn flush(&self) -> io::Result<()>;

    /// Makes a range read as zeros.
    fn hole(&self, offset: u64, length: u64, kind: Hole) -> io::Result<()>;
}

/// Bytes that begin at a multiple of [`ALIGNMENT`].
#[derive(Debug)]
pub(super) struct Aligned {
    room: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// `length` zeros.
    pub(super) fn new(length: usize) -> Self {
        let room = vec![0; length + ALIGNMENT];
        let start = room.as_ptr().align_offset(ALIGNMENT);
        Self {
            room,
            start,
            length,
        }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + self.length]
    }
}

/// Has `length` zeros written from `offset` on, part by part.
pub(super) fn zeros(
    offset: u64,
    length: u64,
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut zeros = Aligned::new(PART);
    let (mut at, end) = (offset, offset + length);
    while at < end {
        let now = usize::try_from(end - at).unwrap_or(PART).min(PART);
        write(&zeros.bytes()[..now], at)?;
        at += now as u64;
    }
    Ok(())
}

/// Moves all of `buffers` from or to `store` at `offset`. After an error part of it may have moved.
pub(super) fn bounce<M: GuestMemory + ?Sized>(
    store: &dyn Bounced,
    mut offset: u64,
    direction: Direction,
    reach: &Reach<'_, M>,
    buffers: Buffers<'_>,
) -> Result<(), TransferError> {
    let whole = usize::try_from(buffers.len()).unwrap_or(PART).min(PART);
    let mut part = Aligned::new(whole);
    let mut rest = buffers;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(PART as u64);
        let bytes = &mut part.bytes()[..now.len() as usize];
        match direction {
            Direction::Read => {
                store.read(offset, bytes)?;
                now.write(reach, bytes)?;
            }
            Direction::Write => {
                now.read(reach, bytes)?;
                store.write(offset, bytes)?;
            }
        }
        offset += now.len();
        rest = later;
    }
    Ok(())
}
