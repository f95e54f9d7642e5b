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
    /// Where physical address 0 would be mapped if the window went so far: `base` less `start`.
    origin: *mut u8,
    start: u64,
    /// Eights of bytes.
    eights: u64,
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
        let origin = base.as_ptr().wrapping_sub(start as usize);
        Self {
            origin,
            start,
            eights: length / 8,
        }
    }

    /// Where the entry at `at` is mapped.
    #[inline(always)]
    fn pointer(&self, at: u64, width: Width) -> *mut u8 {
        let offset = at.wrapping_sub(self.start);
        // One comparison for both: the bits of an unaligned offset end up on top.
        let inside = match width {
            Width::Eight => offset.rotate_right(3) < self.eights,
            Width::Four => offset.rotate_right(2) < self.eights.wrapping_mul(2),
        };
        assert!(inside, "an entry outside the window");
        // In the window, as `offset` is: what was taken from `base` is added again.
        self.origin.wrapping_add(at as usize)
    }

    /// Where `count` entries from `at` are mapped.
    #[inline]
    fn pointers(&self, at: u64, width: Width, count: u64) -> *mut u8 {
        let offset = at.wrapping_sub(self.start);
        let room = self.eights.wrapping_mul(8).saturating_sub(offset);
        assert!(count <= room >> width.shift(), "entries outside the window");
        let first = if count == 0 { self.start } else { at };
        self.pointer(first, width)
    }

    /// The 8-byte entry at `at`.
    #[inline(always)]
    fn eight(&self, at: u64) -> &AtomicU64 {
        let pointer = self.pointer(at, Width::Eight);
        // SAFETY: `pointer` checked that the entry begins in the window and that it is aligned; the
        // window is of whole frames, so it ends in it too. `new` was promised that those bytes are
        // valid while `self` lives and accessed only atomically.
        unsafe { AtomicU64::from_ptr(pointer.cast()) }
    }

    /// The 4-byte entry at `at`.
    #[inline(always)]
    fn four(&self, at: u64) -> &AtomicU32 {
        let pointer = self.pointer(at, Width::Four);
        // SAFETY: as in `eight`, with four bytes.
        unsafe { AtomicU32::from_ptr(pointer.cast()) }
    }
}

impl ReadEntry for PhysicalWindow {
    type Error = Infallible;

    #[inline(always)]
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
    #[inline(always)]
    fn write(&self, at: u64, width: Width, entry: u64) {
        match width {
            Width::Eight => self.eight(at).store(entry, Ordering::Release),
            Width::Four => self.four(at).store(entry as u32, Ordering::Release),
        }
    }

    #[inline(always)]
    fn change(&self, at: u64, width: Width, change: impl FnOnce(u64) -> Option<u64>) -> bool {
        // The place is looked up once.
        let new = match width {
            Width::Eight => {
                let entry = self.eight(at);
                let new = change(entry.load(Ordering::Acquire));
                if let Some(new) = new {
                    entry.store(new, Ordering::Release);
                }
                new
            }
            Width::Four => {
                let entry = self.four(at);
                let new = change(entry.load(Ordering::Acquire).into());
                if let Some(new) = new {
                    entry.store(new as u32, Ordering::Release);
                }
                new
            }
        };
        new.is_some()
    }

    #[inline]
    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        let pointer = self.pointers(at, width, count);
        match width {
            Width::Eight => {
                // SAFETY: `pointers` checked that `count` entries lie in the window, aligned. They are
                // used as atomics, which is what `new` was promised.
                let slots = unsafe {
                    core::slice::from_raw_parts(pointer.cast::<AtomicU64>(), count as usize)
                };
                let done = store_pairs(slots, &entry);
                for (i, slot) in slots.iter().enumerate().skip(done) {
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

/// Stores the first entries two at a time, as many as go in whole blocks, and returns how many.
///
/// The compiler does not make one store of two atomic ones, and for a table in the second-level cache
/// that costs a third of the time.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn store_pairs(slots: &[AtomicU64], entry: &impl Fn(u64) -> u64) -> usize {
    use core::arch::asm;
    use core::arch::x86_64::{__m128i, _mm_set_epi64x};

    const BLOCK: usize = 8;
    // A pair may not cross a line: with the first entry at a multiple of 16 none does.
    if !slots.as_ptr().addr().is_multiple_of(16) {
        return 0;
    }
    let pair = |i: u64| -> __m128i {
        // SAFETY: SSE2 is part of x86-64.
        unsafe { _mm_set_epi64x(entry(i.wrapping_add(1)) as i64, entry(i) as i64) }
    };
    let blocks = slots.chunks_exact(BLOCK);
    let done = slots.len().saturating_sub(blocks.remainder().len());
    for (block, i) in blocks.zip((0..).step_by(BLOCK)) {
        // SAFETY: `block` is eight atomics, 64 bytes, and its address is a multiple of 16: the first is,
        // and each block is 64 bytes. Each of the four instructions stores 16 of them. To the language
        // an asm block's stores are whatever the hardware does, so there is no data race with atomic
        // loads; the hardware stores an aligned pair so that each half is seen whole (SDM volume 3,
        // "Guaranteed Atomic Operations").
        unsafe {
            asm!(
                "movaps [{to}], {a}",
                "movaps [{to} + 16], {b}",
                "movaps [{to} + 32], {c}",
                "movaps [{to} + 48], {d}",
                to = in(reg) block.as_ptr(),
                a = in(xmm_reg) pair(i),
                b = in(xmm_reg) pair(i.wrapping_add(2)),
                c = in(xmm_reg) pair(i.wrapping_add(4)),
                d = in(xmm_reg) pair(i.wrapping_add(6)),
                options(nostack, preserves_flags),
            );
        }
    }
    done
}

/// Elsewhere: none.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline(always)]
fn store_pairs(_: &[AtomicU64], _: &impl Fn(u64) -> u64) -> usize {
    0
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
    fn a_change_stores_what_it_is_told_and_nothing_beside() {
        let arena = Arena(UnsafeCell::new([0x1111_2222_3333_4444; 1024]));
        let memory = window(&arena);
        assert!(memory.change(0x7008, Width::Eight, |entry| Some(entry + 1)));
        assert!(memory.change(0x7014, Width::Four, |entry| Some(entry + 1)));
        assert!(!memory.change(0x7018, Width::Eight, |_| None));
        let words = arena.0.into_inner();
        assert_eq!(words[1], 0x1111_2222_3333_4445);
        assert_eq!(words[2], 0x1111_2223_3333_4444);
        assert_eq!((words[0], words[3]), (words[4], words[4]));
    }

    #[test]
    fn a_fill_of_any_place_and_length_stores_each_entry_once() {
        for first in 0..18 {
            for count in 0..36 {
                let arena = Arena(UnsafeCell::new([7; 1024]));
                window(&arena).fill(0x7000 + first * 8, Width::Eight, count, |i| 100 + i);
                let words = arena.0.into_inner();
                for (i, &word) in (0..).zip(&words) {
                    let inside = i >= first && i < first + count;
                    assert_eq!(word, if inside { 100 + i - first } else { 7 });
                }
            }
        }
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
        assert!(bad(0x6ffc, Width::Four) && bad(0x9000, Width::Four));
        assert!(!bad(0x8ffc, Width::Four));
        let overrun = std::panic::catch_unwind(|| {
            let arena = Arena(UnsafeCell::new([0; 1024]));
            window(&arena).fill(0x8000, Width::Eight, 513, |_| 0);
        });
        assert!(overrun.is_err());
    }
}
