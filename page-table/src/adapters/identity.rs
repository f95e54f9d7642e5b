// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Physical memory that is mapped at a fixed distance: bare metal, or an arena. Feature `identity`.
//!
//! The one module of the crate that turns a physical address into a reference.
#![expect(
    unsafe_code,
    reason = "a physical address becomes a reference to an atomic here"
)]

use core::convert::Infallible;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::memory::{OwnEntries, ReadEntry, UpdateEntry};
use crate::shape::Width;

/// A window of physical memory, all of it mapped.
///
/// Access outside it, or unaligned, panics: only a table that its owner corrupted leads there.
#[derive(Debug)]
pub struct PhysicalWindow {
    base: NonNull<u8>,
    start: u64,
    length: u64,
}

// SAFETY: the window is used only through atomic accesses, which threads may share (the promise of
// `PhysicalWindow::new` includes that it is valid for as long as the value lives).
unsafe impl Send for PhysicalWindow {}
// SAFETY: as above.
unsafe impl Sync for PhysicalWindow {}

impl PhysicalWindow {
    /// The `length` bytes of physical memory from `start`, which are mapped at `base`.
    ///
    /// # Safety
    ///
    /// As long as the value lives:
    ///
    /// 1. `base` is valid for reads and writes of `length` bytes, and 4096-byte aligned.
    /// 2. Nothing else in this program accesses those bytes, except by atomic operations of the width
    ///    used here or while no thread is in a method of this value.
    ///
    /// # Panics
    ///
    /// If `start`, `base` or `length` is not a multiple of 4096.
    #[must_use]
    pub unsafe fn new(start: u64, length: u64, base: NonNull<u8>) -> Self {
        let all = start | length | base.as_ptr().addr() as u64;
        assert!(all.is_multiple_of(4096), "a window of whole frames");
        Self {
            base,
            start,
            length,
        }
    }

    /// Where `count` entries from `at` are mapped.
    #[inline]
    fn pointer(&self, at: u64, width: Width, count: u64) -> *mut u8 {
        let offset = at.wrapping_sub(self.start);
        let bytes = count.wrapping_mul(width.bytes());
        let inside = offset < self.length && count <= self.length && bytes <= self.length - offset;
        assert!(
            inside && at & (width.bytes() - 1) == 0,
            "an entry outside the window"
        );
        // SAFETY: `offset` is below `length`, and `new` was promised that so many bytes from `base` are
        // one valid stretch.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    /// The 8-byte entry at `at`.
    #[inline]
    fn eight(&self, at: u64) -> &AtomicU64 {
        let pointer = self.pointer(at, Width::Eight, 1);
        // SAFETY: `pointer` checked that eight bytes lie in the window and that they are aligned;
        // `new` was promised that they are valid while `self` lives and accessed only atomically.
        unsafe { AtomicU64::from_ptr(pointer.cast()) }
    }

    /// The 4-byte entry at `at`.
    #[inline]
    fn four(&self, at: u64) -> &AtomicU32 {
        let pointer = self.pointer(at, Width::Four, 1);
        // SAFETY: as in `eight`, with four bytes.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }
    }
}

impl ReadEntry for PhysicalWindow {
    type Error = Infallible;

    #[inline]
    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        Ok(match width {
            Width::Eight => self.eight(at).load(Ordering::Acquire),
            Width::Four => self.four(at).load(Ordering::Acquire).into(),
        })
    }
}

impl UpdateEntry for PhysicalWindow {
    #[inline]
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        Ok(match width {
            Width::Eight => {
                let (Ok(found) | Err(found)) = self
                    .eight(at)
                    .compare_exchange(current, new, success, failure);
                found
            }
            Width::Four => {
                let entry = self.four(at);
                let (Ok(found) | Err(found)) =
                    entry.compare_exchange(current as u32, new as u32, success, failure);
                found.into()
            }
        })
    }
}

impl OwnEntries for PhysicalWindow {
    #[inline]
    fn write(&self, at: u64, width: Width, entry: u64) {
        match width {
            Width::Eight => self.eight(at).store(entry, Ordering::Release),
            Width::Four => self.four(at).store(entry as u32, Ordering::Release),
        }
    }

    #[inline]
    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        let pointer = self.pointer(at, width, count);
        match width {
            Width::Eight => {
                // SAFETY: `pointer` checked that `count` entries lie in the window, aligned. They are
                // used as atomics, which is what `new` was promised.
                let slots = unsafe {
                    core::slice::from_raw_parts(pointer.cast::<AtomicU64>(), count as usize)
                };
                for (i, slot) in slots.iter().enumerate() {
                    slot.store(entry(i as u64), Ordering::Relaxed);
                }
            }
            Width::Four => {
                // SAFETY: as above.
                let slots = unsafe {
                    core::slice::from_raw_parts(pointer.cast::<AtomicU32>(), count as usize)
                };
                for (i, slot) in slots.iter().enumerate() {
                    slot.store(entry(i as u64) as u32, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::UnsafeCell;

    #[repr(align(4096))]
    struct Arena(UnsafeCell<[u64; 1024]>);

    fn window(arena: &Arena) -> PhysicalWindow {
        let base = NonNull::new(arena.0.get()).unwrap().cast();
        // SAFETY: the arena is borrowed longer than the window lives and used only through it.
        unsafe { PhysicalWindow::new(0x7000, 0x2000, base) }
    }

    #[test]
    fn entries_lie_where_their_address_says() {
        let arena = Arena(UnsafeCell::new([0; 1024]));
        let memory = window(&arena);
        memory.write(0x7008, Width::Eight, 0x1122_3344_5566_7788);
        memory.write(0x7014, Width::Four, 0xaabb_ccdd);
        memory.fill(0x8000, Width::Eight, 512, |i| i << 12 | 7);
        memory.fill(0x7020, Width::Four, 2, |i| i + 5);
        assert_eq!(memory.load(0x7008, Width::Four), 0x5566_7788);
        assert_eq!(
            memory.exchange(0x7008, Width::Eight, 5, 6),
            Err(0x1122_3344_5566_7788)
        );
        assert_eq!(memory.exchange(0x7014, Width::Four, 0xaabb_ccdd, 6), Ok(()));
        let words = arena.0.into_inner();
        assert_eq!(words[1..4], [0x1122_3344_5566_7788, 6 << 32, 0]);
        assert_eq!(words[4], 5 | 6 << 32);
        assert_eq!((words[512], words[1023]), (7, 511 << 12 | 7));
    }

    #[test]
    fn outside_and_unaligned_panic() {
        let bad = |at, width| {
            std::panic::catch_unwind(|| {
                let arena = Arena(UnsafeCell::new([0; 1024]));
                window(&arena).load(at, width)
            })
            .is_err()
        };
        assert!(bad(0x6ff8, Width::Eight) && bad(0x9000, Width::Eight));
        assert!(bad(0x7004, Width::Eight) && bad(0x7002, Width::Four));
        assert!(bad(u64::MAX - 7, Width::Eight) && !bad(0x8ff8, Width::Eight));
        let overrun = std::panic::catch_unwind(|| {
            let arena = Arena(UnsafeCell::new([0; 1024]));
            window(&arena).fill(0x8000, Width::Eight, 513, |_| 0);
        });
        assert!(overrun.is_err());
    }
}
