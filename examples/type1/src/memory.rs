// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What lies where, and frames for tables.
//!
//! ```text
//!    0x1000..0x8000    our page tables (payload-rt)       16 MiB   INPUT: what to do
//!   ..0x90000          our stack, downwards               32 MiB   the tour's guest
//!    2 MiB..16 MiB     this program, with the frames below
//! ```

use core::cell::{Cell, UnsafeCell};
use core::ptr::NonNull;

use hvkit_page_table::{Frames, PhysicalWindow};
use hvkit_vmx::Linear;

/// Bytes of a frame.
pub const FRAME: u64 = 4096;
/// How many tables there can be.
const COUNT: usize = 256;
const NO_FRAME: u64 = u64::MAX;

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

/// Frames of the arena: those never used, and a list of those that came back.
pub struct Pool {
    next: Cell<usize>,
    free: Cell<[u64; 16]>,
}

impl Pool {
    /// Every frame of the arena. One pool at a time.
    pub const fn new() -> Self {
        Self {
            next: Cell::new(0),
            free: Cell::new([NO_FRAME; 16]),
        }
    }
}

impl Frames for Pool {
    fn allocate(&self) -> Option<u64> {
        let mut free = self.free.get();
        if let Some(slot) = free.iter_mut().find(|frame| **frame != NO_FRAME) {
            let frame = core::mem::replace(slot, NO_FRAME);
            self.free.set(free);
            return Some(frame);
        }
        let index = self.next.get();
        if index == COUNT {
            return None;
        }
        self.next.set(index + 1);
        Some(ARENA.0.get().addr() as u64 + index as u64 * FRAME)
    }

    /// Keeps sixteen; what comes back beyond them is lost, not used twice.
    fn free(&self, frame: u64) {
        let mut free = self.free.get();
        if let Some(slot) = free.iter_mut().find(|frame| **frame == NO_FRAME) {
            *slot = frame;
            self.free.set(free);
        }
    }
}
