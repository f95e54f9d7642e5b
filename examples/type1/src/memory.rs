// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What lies where, frames for tables, and a heap.
//!
//! ```text
//!    0x1000..0x8000    our page tables (payload-rt)       16 MiB   INPUT: what to do; later the guest's
//!   ..0x90000          our stack, downwards               32 MiB   the tour's guest
//!    2 MiB..16 MiB     this program, with the frames      top      frames and heap for shadow paging, below
//!                      of the EPT                                  the firmware's tables
//! ```

use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;

use hvkit_page_table::{Frames, OwnEntries, PhysicalWindow, Width};
use hvkit_vmx::Linear;
use talc::TalcLock;
use talc::source::Manual;

/// Bytes of a frame.
pub const FRAME: u64 = 4096;
/// How many tables an EPT can have.
const COUNT: usize = 256;

/// What of the machine's memory is ours at its top: for the shadow's tables, then for the heap.
pub const SHADOW_FRAMES: u32 = 4096;
const HEAP_BYTES: u64 = 16 << 20;
/// Both.
pub const TOP_BYTES: u64 = SHADOW_FRAMES as u64 * FRAME + HEAP_BYTES;

/// All memory is mapped to itself.
pub fn map() -> Linear {
    // SAFETY: payload-rt maps 4 GiB to themselves before `main` runs, as write-back.
    unsafe { Linear::new(0) }
}

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[[u64; 512]; COUNT]>);

// SAFETY: one processor; the tables' owner and the processor reach it through a `PhysicalWindow` alone.
unsafe impl Sync for Arena {}

static ARENA: Arena = Arena(UnsafeCell::new([[0; 512]; COUNT]));

/// The arena, for those who read and write tables in it.
pub fn tables() -> PhysicalWindow {
    let base: NonNull<u8> = NonNull::new(ARENA.0.get()).map_or(NonNull::dangling(), NonNull::cast);
    // SAFETY: the arena is valid for ever, aligned, mapped to itself, and reached only through such windows.
    unsafe { PhysicalWindow::new(base.as_ptr().addr() as u64, COUNT as u64 * FRAME, base) }
}

/// `length` bytes from physical `start`, mapped to themselves.
///
/// # Safety
///
/// As for [`PhysicalWindow::new`].
pub unsafe fn window(start: u64, length: u64) -> PhysicalWindow {
    let base = NonNull::new(start as *mut u8).unwrap_or(NonNull::dangling());
    // SAFETY: the caller's promise.
    unsafe { PhysicalWindow::new(start, length, base) }
}

/// Frames of a window: those never used, and a chain of those that came back, each with the next one's address in its
/// first word.
pub struct Pool<'w> {
    window: &'w PhysicalWindow,
    next: Cell<u64>,
    end: u64,
    /// 0 at the end.
    free: Cell<u64>,
}

impl<'w> Pool<'w> {
    /// Every frame of the arena for EPTs. One pool at a time.
    pub fn of_tables(window: &'w PhysicalWindow) -> Self {
        Self::new(window, ARENA.0.get().addr() as u64, COUNT as u64)
    }

    /// `count` frames from `start`, which lie in `window`. One pool at a time.
    pub fn new(window: &'w PhysicalWindow, start: u64, count: u64) -> Self {
        Self {
            window,
            next: Cell::new(start),
            end: start + count * FRAME,
            free: Cell::new(0),
        }
    }
}

impl Frames for Pool<'_> {
    fn allocate(&self) -> Option<u64> {
        let freed = self.free.get();
        if freed != 0 {
            self.free.set(self.window.load(freed, Width::Eight));
            return Some(freed);
        }
        let frame = self.next.get();
        if frame == self.end {
            return None;
        }
        self.next.set(frame + FRAME);
        Some(frame)
    }

    fn free(&self, frame: u64) {
        self.window.write(frame, Width::Eight, self.free.get());
        self.free.set(frame);
    }
}

#[global_allocator]
static HEAP: TalcLock<spin::Mutex<()>, Manual> = TalcLock::new(Manual);

/// Gives the allocator its memory.
///
/// # Safety
///
/// Once; the last bytes of the `TOP_BYTES` from physical `top` on are nobody else's.
pub unsafe fn claim_heap(top: u64) {
    let start = (top + TOP_BYTES - HEAP_BYTES) as *mut u8;
    // SAFETY: the caller's promise.
    let _ = unsafe { HEAP.lock().claim(start, HEAP_BYTES as usize) };
}
