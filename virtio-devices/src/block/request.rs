// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One request: from the bytes of its chain to what the image is asked, and a status byte.
//!
//! ```text
//!   readable   type:32 reserved:32 sector:64   data to write ...
//!   writable   data read ...                                      status:8
//! ```
//!
//! "Device Operation" (5.2.6).

use std::io;

use vm_memory::GuestMemory;

use super::cache::Cache;
use super::image::Image;
use super::transfer::{Direction, Hole, TransferError};
use super::{Access, SECTOR, SERIAL};
use crate::queue::{Buffers, Chain, Reach};
use crate::serve::{Answer, Served};

/// The largest amount of data in one request. More is refused: moving it would keep the worker from
/// answering. No known driver asks for more.
pub(super) const MAX_DATA: u64 = 1 << 30;
/// Sectors of one discard or write-zeroes segment.
pub(super) const MAX_HOLE_SECTORS: u32 = 1 << 16;
/// Segments of one discard or write-zeroes request.
pub(super) const MAX_HOLES: u32 = 16;

/// Bytes of a request's header.
const HEADER: u64 = 16;
/// Bytes of a discard or write-zeroes segment.
const HOLE: usize = 16;

/// A request's type. Open: a type that we do not know is answered UNSUPP.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Type(u32);

impl Type {
    const IN: Self = Self(0);
    const OUT: Self = Self(1);
    const FLUSH: Self = Self(4);
    const GET_ID: Self = Self(8);
    const DISCARD: Self = Self(11);
    const WRITE_ZEROES: Self = Self(13);
}

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoErr = 1,
    Unsupported = 2,
}

/// When a completed write is on stable storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caching {
    /// After the next flush: the driver knows how to ask for one.
    WriteBack,
    /// At once.
    WriteThrough,
}

/// What requests are served from.
#[derive(Debug)]
pub(super) struct Disk<'a> {
    pub(super) image: &'a Image,
    pub(super) serial: &'a [u8; SERIAL],
    pub(super) cache: &'a Cache,
}

/// What a request asks, if it is right.
#[derive(Debug)]
pub(super) enum Asked<'c> {
    /// Data from or to the image at `offset` in bytes.
    Move {
        direction: Direction,
        offset: u64,
        data: Buffers<'c>,
    },
    /// What was written is to be on stable storage.
    Flush,
    /// Something that is done at once.
    Other,
}

/// A request that is answered with an error.
#[derive(Debug)]
pub(super) enum Refused {
    /// By its own fault.
    Status(Status),
    /// By the host's.
    Host(io::Error),
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl From<TransferError> for Refused {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::Memory(_) => Self::Status(Status::IoErr),
            TransferError::Image(error) => Self::Host(error),
        }
    }
}

impl Disk<'_> {
    /// Does what a chain asks, and writes its status byte.
    pub(super) fn serve<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        chain: &Chain,
    ) -> Answer {
        if chain.writable_bytes() == 0 {
            return Answer::Unanswerable;
        }
        let (from_guest, to_guest) = self.parts(chain);
        let answered = self.answer(reach, from_guest, to_guest);
        Answer::Done(self.conclude(reach, chain, answered))
    }

    /// The two parts of a request without its status byte: what comes from the guest, header and all, and what goes to it.
    #[inline(always)]
    pub(super) fn parts<'c>(&self, chain: &'c Chain) -> (Buffers<'c>, Buffers<'c>) {
        let room = chain.writable_bytes().saturating_sub(1);
        (chain.readable(), chain.writable().first(room))
    }

    /// What a chain asks that is read or written or flushed. A request that is refused is `Other`, too: who serves it says
    /// why.
    pub(super) fn asked<'c, M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        chain: &'c Chain,
    ) -> Asked<'c> {
        let (from_guest, to_guest) = self.parts(chain);
        let asked = || -> Result<Asked<'c>, Refused> {
            let (kind, sector, data) = header(reach, from_guest)?;
            let (direction, data) = match kind {
                _ if chain.writable_bytes() == 0 => return Ok(Asked::Other),
                Type::FLUSH => return Ok(Asked::Flush),
                Type::IN => (Direction::Read, to_guest),
                Type::OUT => {
                    self.writable()?;
                    (Direction::Write, data)
                }
                _ => return Ok(Asked::Other),
            };
            let offset = self.place(sector, data)?;
            Ok(Asked::Move {
                direction,
                offset,
                data,
            })
        };
        asked().unwrap_or(Asked::Other)
    }

    /// Bytes of data that a request moves, or tries to.
    #[inline]
    pub(super) fn moved(&self, chain: &Chain) -> u64 {
        let room = chain.writable_bytes().saturating_sub(1);
        room.max(chain.readable_bytes().saturating_sub(HEADER))
    }

    /// Writes the status byte of a request of which so many bytes for the guest were filled.
    #[inline]
    pub(super) fn conclude<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        chain: &Chain,
        answered: Result<u64, Refused>,
    ) -> Served {
        let room = chain.writable_bytes().saturating_sub(1);
        let moved = self.moved(chain);
        let (answer, filled, trouble) = match answered {
            Ok(filled) => (Status::Ok, filled, None),
            Err(Refused::Status(status)) => (status, 0, None),
            Err(Refused::Host(error)) => (Status::IoErr, 0, Some(error)),
        };
        // If the driver gave an address at which there is no memory, nothing can be said.
        let say = |address| reach.write(&[answer as u8], address).is_ok();
        let said = chain.last_writable().is_some_and(say);
        // "len" counts from the start: the status byte adds to it only behind a full data part (2.7.8.2).
        let written = match filled == room && said {
            true => filled.saturating_add(1),
            false => filled,
        };
        Served {
            written: u32::try_from(written).unwrap_or(u32::MAX),
            moved,
            trouble,
        }
    }

    /// Returns how many bytes of `to_guest` were filled.
    #[inline(always)]
    fn answer<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        from_guest: Buffers<'_>,
        to_guest: Buffers<'_>,
    ) -> Result<u64, Refused> {
        let (kind, sector, data) = header(reach, from_guest)?;
        match kind {
            Type::IN => {
                self.transfer(reach, sector, Direction::Read, to_guest)?;
                Ok(to_guest.len())
            }
            Type::OUT => {
                self.writable()?;
                self.transfer(reach, sector, Direction::Write, data)?;
                self.settle()?;
                Ok(0)
            }
            Type::FLUSH => {
                self.image.flush()?;
                Ok(0)
            }
            Type::GET_ID => {
                let filled = to_guest
                    .write(reach, self.serial)
                    .map_err(|_| Status::IoErr)?;
                Ok(filled as u64)
            }
            Type::DISCARD | Type::WRITE_ZEROES => {
                self.writable()?;
                self.holes(reach, kind, data)?;
                self.settle()?;
                Ok(0)
            }
            _ => Err(Status::Unsupported.into()),
        }
    }

    #[inline]
    fn writable(&self) -> Result<(), Refused> {
        match self.image.access() {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Status::IoErr.into()),
        }
    }

    /// Keeps the promise made to a driver that asks for no flush.
    #[inline]
    fn settle(&self) -> Result<(), Refused> {
        match self.cache.caching() {
            Caching::WriteBack => Ok(()),
            Caching::WriteThrough => Ok(self.image.flush()?),
        }
    }

    #[inline]
    fn transfer<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        sector: u64,
        direction: Direction,
        data: Buffers<'_>,
    ) -> Result<(), Refused> {
        let offset = self.place(sector, data)?;
        Ok(self.image.transfer(offset, direction, reach, data)?)
    }

    /// Where on the image `data` is to go or to come from.
    #[inline]
    fn place(&self, sector: u64, data: Buffers<'_>) -> Result<u64, Refused> {
        let length = data.len();
        if length > MAX_DATA || !length.is_multiple_of(SECTOR) {
            return Err(Status::IoErr.into());
        }
        self.range(sector, length / SECTOR)
    }

    /// The offset in bytes of `sector`, if `count` sectors from there are on the disk.
    #[inline]
    fn range(&self, sector: u64, count: u64) -> Result<u64, Refused> {
        let end = sector.checked_add(count).ok_or(Status::IoErr)?;
        if end > self.image.sectors() {
            return Err(Status::IoErr.into());
        }
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoErr)?;
        Ok(offset)
    }

    /// "struct virtio_blk_discard_write_zeroes", one after another. All are checked before the first is done.
    fn holes<M: GuestMemory + ?Sized>(
        &self,
        reach: &Reach<'_, M>,
        kind: Type,
        data: Buffers<'_>,
    ) -> Result<(), Refused> {
        let mut raw = [0; HOLE * MAX_HOLES as usize];
        let length = usize::try_from(data.len()).unwrap_or(usize::MAX);
        let raw = raw.get_mut(..length).ok_or(Status::IoErr)?;
        if raw.is_empty() || !raw.len().is_multiple_of(HOLE) {
            return Err(Status::IoErr.into());
        }
        data.read(reach, raw).map_err(|_| Status::IoErr)?;
        for check_only in [true, false] {
            for segment in raw.chunks_exact(HOLE) {
                let mut word = [0; HOLE];
                word.copy_from_slice(segment);
                let word = u128::from_le_bytes(word);
                let (sector, count, flags) =
                    (word as u64, (word >> 64) as u32, (word >> 96) as u32);
                let hole = match (kind, flags) {
                    (Type::DISCARD, 0) | (Type::WRITE_ZEROES, 1) => Hole::Punch,
                    (Type::WRITE_ZEROES, 0) => Hole::Zero,
                    _ => return Err(Status::Unsupported.into()),
                };
                if count > MAX_HOLE_SECTORS {
                    return Err(Status::IoErr.into());
                }
                let offset = self.range(sector, count.into())?;
                if !check_only && count > 0 {
                    let length = u64::from(count).saturating_mul(SECTOR);
                    self.image.hole(offset, length, hole)?;
                }
            }
        }
        Ok(())
    }
}

/// A request's type and sector, and what comes after them.
#[inline(always)]
fn header<'c, M: GuestMemory + ?Sized>(
    reach: &Reach<'_, M>,
    from_guest: Buffers<'c>,
) -> Result<(Type, u64, Buffers<'c>), Refused> {
    let (header, data) = from_guest.split_at(HEADER);
    let mut raw = [0; HEADER as usize];
    if header.read(reach, &mut raw).ok() != Some(raw.len()) {
        return Err(Status::IoErr.into());
    }
    let raw = u128::from_le_bytes(raw);
    // Truncations on purpose: one field each.
    Ok((Type(raw as u32), (raw >> 64) as u64, data))
}
