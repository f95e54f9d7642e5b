// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Between an image and guest memory without a copy of our own: one system call moves many pieces.
#![expect(
    unsafe_code,
    reason = "guest memory may not be borrowed, and safe calls borrow"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

use crate::queue::{Buffers, Reach};
use crate::vectored::{Pieces, mark_written, with_pieces};

/// Pieces for one system call; the host takes no more than 1024.
const PIECES: usize = 64;

/// Why data did not move. The driver is told only that there was an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransferError {
    #[error("the request's buffer is not in guest memory")]
    Memory(#[from] GuestMemoryError),
    #[error("the image could not be accessed")]
    Image(#[from] io::Error),
}

/// Which way, seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the image to memory.
    Read,
    /// From memory to the image.
    Write,
}

/// Moves all of `buffers` from or to `file` at `offset`. After an error part of it may have moved.
#[inline]
pub(super) fn transfer<M: GuestMemory + ?Sized>(
    file: &File,
    offset: u64,
    direction: Direction,
    reach: &Reach<'_, M>,
    buffers: Buffers<'_>,
) -> Result<(), TransferError> {
    // Most are in one piece, and move at once.
    if let Some(slice) = buffers.known(reach)
        && let Ok(moved) = move_some(file, offset, direction, std::slice::from_ref(&slice))
        && moved == slice.len()
    {
        if direction == Direction::Read {
            mark_written(std::slice::from_ref(&slice), moved);
        }
        return Ok(());
    }
    // What has moved in part moves once more.
    transfer_pieces(file, offset, direction, reach, buffers)
}

#[inline(never)]
fn transfer_pieces<M: GuestMemory + ?Sized>(
    file: &File,
    mut offset: u64,
    direction: Direction,
    reach: &Reach<'_, M>,
    buffers: Buffers<'_>,
) -> Result<(), TransferError> {
    let access = match direction {
        Direction::Read => Permissions::Write,
        Direction::Write => Permissions::Read,
    };
    let mut slices = Pieces::new();
    for piece in buffers.pieces() {
        reach.for_each(piece, access, |slice| {
            slices.push(slice);
            if slices.len() == PIECES {
                let moved = move_all(file, offset, direction, &mut slices)?;
                offset = after(offset, moved)?;
            }
            Ok::<_, TransferError>(())
        })?;
    }
    move_all(file, offset, direction, &mut slices)?;
    Ok(())
}

/// `moved` bytes behind `offset`.
fn after(offset: u64, moved: u64) -> io::Result<u64> {
    let after = offset.checked_add(moved);
    after.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Moves all of `slices` and empties it. Returns the number of bytes.
fn move_all<B: BitmapSlice>(
    file: &File,
    offset: u64,
    direction: Direction,
    slices: &mut Pieces<VolatileSlice<'_, B>>,
) -> Result<u64, TransferError> {
    let mut moved = 0u64;
    let mut first = 0usize;
    while let Some(rest) = slices.get_mut(first..).filter(|rest| !rest.is_empty()) {
        let position = after(offset, moved)?;
        let mut count = match move_some(file, position, direction, rest) {
            Ok(0) => Err(io::Error::from(match direction {
                // Somebody has shortened the image.
                Direction::Read => io::ErrorKind::UnexpectedEof,
                Direction::Write => io::ErrorKind::WriteZero,
            }))?,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error)?,
        };
        moved = moved.saturating_add(count as u64);
        // Mostly all of it has moved at once.
        if count == rest.iter().map(VolatileSlice::len).sum::<usize>() {
            if direction == Direction::Read {
                mark_written(rest, count);
            }
            break;
        }
        for slice in rest {
            let here = count.min(slice.len());
            if direction == Direction::Read {
                // The kernel wrote it; vm-memory's own dirty tracking did not see that.
                slice.bitmap().mark_dirty(0, here);
            }
            // At most that many.
            count = count.wrapping_sub(here);
            if here < slice.len() {
                *slice = slice.offset(here).map_err(GuestMemoryError::from)?;
                break;
            }
            first = first.saturating_add(1);
        }
    }
    slices.clear();
    Ok(moved)
}

/// One system call. Returns the number of bytes that it moved.
#[inline]
fn move_some<B: BitmapSlice>(
    file: &File,
    offset: u64,
    direction: Direction,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let moved = with_pieces(slices, |pieces| {
        if let [piece] = pieces {
            // The host has less to look at. The C library's own calls could be cancelled, which costs as much as the rest of them.
            let number = match direction {
                Direction::Read => libc::SYS_pread64,
                Direction::Write => libc::SYS_pwrite64,
            };
            // Each is one word, the offset too.
            const { assert!(size_of::<libc::c_long>() == size_of::<libc::off64_t>()) };
            let (file, base, length) = (
                libc::c_long::from(file.as_raw_fd()),
                piece.iov_base,
                piece.iov_len,
            );
            // SAFETY: `pread` or `pwrite`, whose four arguments are words, as asserted. `with_pieces` keeps the piece mapped and writable for its length while this runs, and
            // no reference to guest memory exists that the kernel's writes could alias. The descriptor is open for as long as
            // `file` is borrowed.
            let moved = unsafe { libc::syscall(number, file, base, length, offset) };
            return Ok(moved as libc::ssize_t);
        }
        let count = libc::c_int::try_from(pieces.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok::<_, io::Error>(match direction {
            // SAFETY: 1. `pieces` are `count` valid iovecs: `with_pieces` keeps the memory mapped and writable
            // while this runs. 2. No reference to that memory exists anywhere: guest memory is only ever accessed
            // through raw pointers, so the kernel's writes alias nothing. 3. The descriptor is open for as
            // long as `file` is borrowed.
            Direction::Read => unsafe {
                libc::preadv(file.as_raw_fd(), pieces.as_ptr(), count, offset)
            },
            // SAFETY: as above; the kernel only reads the memory. That the guest may change it meanwhile is
            // the guest's affair.
            Direction::Write => unsafe {
                libc::pwritev(file.as_raw_fd(), pieces.as_ptr(), count, offset)
            },
        })
    })?;
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// What to do to a range of an image without giving data for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hole {
    /// Reads as zeros afterwards, and its space is given back.
    Punch,
    /// Reads as zeros afterwards, and its space is kept.
    Zero,
}

/// Punches or zeroes `length` bytes at `offset`, inside the image.
pub(super) fn hole(file: &File, offset: u64, length: u64, kind: Hole) -> io::Result<()> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let offset = libc::off_t::try_from(offset).map_err(too_far)?;
    let length = libc::off_t::try_from(length).map_err(too_far)?;
    let mode = libc::FALLOC_FL_KEEP_SIZE
        | match kind {
            Hole::Punch => libc::FALLOC_FL_PUNCH_HOLE,
            Hole::Zero => libc::FALLOC_FL_ZERO_RANGE,
        };
    // SAFETY: takes no pointer; the descriptor is open for as long as `file` is borrowed.
    let result = unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
