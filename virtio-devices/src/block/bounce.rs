// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between guest memory and a store that wants buffers of its own: aligned ones, or borrowed ones.

use std::io;

use vm_memory::GuestMemory;

use super::ring::Ring;
use super::transfer::{Direction, Hole, TransferError};
use super::{NoRing, ResizeError};
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

    /// A ring over all of the store, if requests can go by one.
    fn ring(&self) -> Result<Ring, NoRing> {
        Err(NoRing::Format)
    }

    /// Bytes of a raw image as it is now, and what they must be a multiple of.
    fn measure(&self) -> Result<(u64, u64), ResizeError> {
        Err(ResizeError::Format)
    }

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
        let room = vec![0; length.saturating_add(ALIGNMENT)];
        let start = room.as_ptr().align_offset(ALIGNMENT);
        Self {
            room,
            start,
            length,
        }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let end = self.start.saturating_add(self.length);
        self.room.get_mut(self.start..end).unwrap_or_default()
    }
}

/// Has `length` zeros written from `offset` on, part by part.
pub(super) fn zeros(
    offset: u64,
    length: u64,
    mut write: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut zeros = Aligned::new(PART);
    let (mut at, mut left) = (offset, length);
    while left > 0 {
        let now = left.min(PART as u64);
        let part = zeros.bytes().get(..now as usize);
        write(part.ok_or(io::ErrorKind::InvalidInput)?, at)?;
        left = left.saturating_sub(now);
        at = at.checked_add(now).ok_or(io::ErrorKind::InvalidInput)?;
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
        let bytes = part.bytes().get_mut(..now.len() as usize);
        let bytes = bytes.ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
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
        let next = offset.checked_add(now.len());
        offset = next.ok_or(io::Error::from(io::ErrorKind::InvalidInput))?;
        rest = later;
    }
    Ok(())
}
