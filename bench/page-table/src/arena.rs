// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Frames for everybody's tables: one stretch of memory, physical address equal to virtual, which is
//! the cheapest that any peer can have it.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

pub const FRAME: usize = 4096;
const HUGE: usize = 2 << 20;

static BASE: AtomicUsize = AtomicUsize::new(0);
static LENGTH: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// Freed frames, as a stack in a mapping of its own.
static STACK: AtomicUsize = AtomicUsize::new(0);
static FREED: AtomicUsize = AtomicUsize::new(0);

/// In what state a case finds its frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Touched before: the cost of stores alone.
    Resident,
    /// Never touched, in transparent huge pages.
    FreshHuge,
}

fn map(length: usize) -> usize {
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing of ours.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert!(at != libc::MAP_FAILED, "no {length} bytes of memory");
    at as usize
}

/// Makes room for `length` bytes of tables. What was there stays mapped: there are few calls.
pub fn prepare(length: usize, pages: Pages) {
    let length = length.next_multiple_of(HUGE);
    let base = map(length + HUGE).next_multiple_of(HUGE);
    let advice = if pages == Pages::FreshHuge {
        libc::MADV_HUGEPAGE
    } else {
        libc::MADV_NOHUGEPAGE
    };
    // SAFETY: the range is inside the mapping just made; both advices keep its content.
    unsafe { libc::madvise(base as *mut _, length, advice) };
    STACK.store(map(length / FRAME * size_of::<usize>()), Relaxed);
    BASE.store(base, Relaxed);
    LENGTH.store(length, Relaxed);
    reset(Pages::Resident);
    if pages == Pages::Resident {
        for frame in (base..base + length).step_by(FRAME) {
            // SAFETY: inside the mapping; nobody else uses it yet.
            unsafe { (frame as *mut u64).write_volatile(1) };
        }
    }
}

/// Gives the memory back to the system, if it may.
pub fn release() {
    // SAFETY: the whole of our own mapping, whose content nobody needs any more.
    unsafe { libc::madvise(base() as *mut _, LENGTH.load(Relaxed), libc::MADV_DONTNEED) };
}

/// All frames are free again. Unless `Resident`, they are untouched again, too.
pub fn reset(pages: Pages) {
    if pages != Pages::Resident {
        release();
    }
    NEXT.store(base(), Relaxed);
    FREED.store(0, Relaxed);
}

pub fn base() -> usize {
    BASE.load(Relaxed)
}

pub fn window() -> (u64, u64, NonNull<u8>) {
    let base = base();
    let pointer = NonNull::new(base as *mut u8).expect("prepared");
    (base as u64, LENGTH.load(Relaxed) as u64, pointer)
}

/// A frame. For one thread at a time.
#[inline(always)]
pub fn allocate() -> usize {
    let freed = FREED.load(Relaxed);
    if freed > 0 {
        FREED.store(freed - 1, Relaxed);
        // SAFETY: the stack has a slot for every frame, and `freed` were pushed.
        return unsafe { *(STACK.load(Relaxed) as *const usize).add(freed - 1) };
    }
    let frame = NEXT.load(Relaxed);
    NEXT.store(frame + FRAME, Relaxed);
    debug_assert!(frame < base() + LENGTH.load(Relaxed));
    frame
}

/// A frame, for any thread.
#[inline(always)]
pub fn allocate_shared() -> usize {
    NEXT.fetch_add(FRAME, Relaxed)
}

#[inline(always)]
pub fn free(frame: usize) {
    let freed = FREED.load(Relaxed);
    // SAFETY: as in `allocate`; no more frames are freed than there are.
    unsafe { *(STACK.load(Relaxed) as *mut usize).add(freed) = frame };
    FREED.store(freed + 1, Relaxed);
}

/// A frame of zeros, for peers that want one.
#[inline(always)]
pub fn allocate_zeroed() -> usize {
    let frame = allocate();
    // SAFETY: the frame was just allocated and is ours.
    unsafe { std::ptr::write_bytes(frame as *mut u8, 0, FRAME) };
    frame
}
