// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest memory as the pieces of one system call.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]
#![expect(
    unsafe_code,
    reason = "guest memory may not be borrowed, and safe calls borrow"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use smallvec::SmallVec;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::volatile_memory::PtrGuardMut;

/// The host takes no more pieces at once.
pub(crate) const MAX_PIECES: usize = 1024;

/// One for each piece. Most requests have few, which need no allocator.
pub(crate) type Pieces<T> = SmallVec<[T; 8]>;

/// Calls `call` with `slices` as `struct iovec`s, valid for as long as it runs.
#[inline]
pub(crate) fn with_pieces<B: BitmapSlice, R>(
    slices: &[VolatileSlice<'_, B>],
    call: impl FnOnce(&[libc::iovec]) -> R,
) -> R {
    if let [slice] = slices {
        let guard = slice.ptr_guard_mut();
        return call(&[piece(&guard)]);
    }
    if let [first, second] = slices {
        let guards = [first.ptr_guard_mut(), second.ptr_guard_mut()];
        return call(&guards.each_ref().map(piece));
    }
    let guards: Pieces<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let pieces: Pieces<_> = guards.iter().map(piece).collect();
    call(&pieces)
}

#[inline(always)]
fn piece(guard: &PtrGuardMut) -> libc::iovec {
    libc::iovec {
        iov_base: guard.as_ptr().cast(),
        iov_len: guard.len(),
    }
}

/// Marks the first `count` bytes of `slices` as written: the kernel wrote them, and vm-memory's own dirty tracking
/// did not see that.
pub(crate) fn mark_written<B: BitmapSlice>(slices: &[VolatileSlice<'_, B>], count: usize) {
    let mut left = count;
    for slice in slices {
        let here = left.min(slice.len());
        slice.bitmap().mark_dirty(0, here);
        left = left.saturating_sub(here);
    }
}

fn count(pieces: &[libc::iovec]) -> io::Result<libc::c_int> {
    if pieces.len() > MAX_PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    libc::c_int::try_from(pieces.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Reads once into `slices`, in order.
pub(crate) fn read<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    let read = with_pieces(slices, |pieces| {
        let count = count(pieces)?;
        // SAFETY: 1. `pieces` are `count` valid iovecs: each is the memory of a `VolatileSlice`, which stays
        // mapped and writable while the slice and its guard live, and both live beyond the call. 2. No
        // reference to that memory exists anywhere: guest memory is only ever accessed through raw pointers,
        // so the kernel's writes alias nothing. 3. The descriptor is open for as long as it is borrowed.
        let read = unsafe { libc::readv(file.as_raw_fd(), pieces.as_ptr(), count) };
        usize::try_from(read).map_err(|_| io::Error::last_os_error())
    })?;
    mark_written(slices, read);
    Ok(read)
}

/// Reads once into `slices`, in order, and what they have no room for into `rest`.
pub(crate) fn read_with<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
    rest: &mut [u8],
) -> io::Result<usize> {
    let guards: Pieces<_> = slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut pieces: Pieces<_> = guards.iter().map(piece).collect();
    if !rest.is_empty() {
        pieces.push(libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        });
    }
    let count = count(&pieces)?;
    // SAFETY: `pieces` are `count` valid iovecs. 1. All but the last are memory of `VolatileSlice`s, which stays mapped
    // while `guards` live, and no reference to it exists anywhere, as in `read`. 2. The last is `rest`, which is borrowed
    // mutably beyond the call. 3. The descriptor is open for as long as it is borrowed.
    let read = unsafe { libc::readv(file.as_raw_fd(), pieces.as_ptr(), count) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    mark_written(slices, read);
    Ok(read)
}

/// Writes `slices` once, in order.
pub(crate) fn write<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    with_pieces(slices, |pieces| {
        let count = count(pieces)?;
        // SAFETY: as in `read`; the kernel only reads the memory. That the guest may change it meanwhile is the
        // guest's affair.
        let written = unsafe { libc::writev(file.as_raw_fd(), pieces.as_ptr(), count) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    })
}

/// Sends `slices` once, in order, on a connected socket: without a signal if the other end is gone, without waiting.
pub(crate) fn send<B: BitmapSlice>(
    socket: BorrowedFd<'_>,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    with_pieces(slices, |pieces| {
        count(pieces)?;
        // SAFETY: all zeros is a valid `msghdr`: no name, no pieces, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_ptr().cast_mut();
        message.msg_iovlen = pieces.len();
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: as in `write`; `message` names `pieces`, which the kernel only reads, and nothing else.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    })
}
