// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the prebuilt `core` of the host target expects of the C library it usually stands on.

use core::arch::asm;

/// The unwinder's hook. Nothing unwinds: panics abort.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Copies `n` bytes that do not overlap: by eights, as a model that counts instructions counts each round.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller gives `n` readable and `n` writable bytes; the direction flag is clear, as
    // the calling convention has it.
    unsafe {
        asm!("rep movsq", "mov ecx, {rest:e}", "rep movsb", rest = in(reg) n % 8,
            inout("rcx") n / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// Copies `n` bytes that may overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= n {
        // SAFETY: the caller's promise; a forward copy never overwrites what it has yet to read.
        return unsafe { memcpy(to, from, n) };
    }
    // SAFETY: as above, backwards from the last byte; `n` is not 0 here. The flag is put back.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") n => _, inout("rdi") to.add(n - 1) => _,
            inout("rsi") from.add(n - 1) => _, options(nostack));
    }
    to
}

/// Fills `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller gives `n` writable bytes; the direction flag is clear.
    unsafe {
        let eight = u64::from(byte as u8) * 0x0101_0101_0101_0101;
        asm!("rep stosq", "mov ecx, {rest:e}", "rep stosb", rest = in(reg) n % 8,
            inout("rcx") n / 8 => _, inout("rdi") to => _, in("rax") eight,
            options(nostack, preserves_flags));
    }
    to
}

/// Compares `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut begin = 0;
    while n - begin >= 8 {
        // SAFETY: the caller gives `n` readable bytes at both.
        let (x, y) = unsafe {
            let (x, y) = (a.add(begin).cast::<u64>(), b.add(begin).cast::<u64>());
            (x.read_unaligned(), y.read_unaligned())
        };
        if x != y {
            break;
        }
        begin += 8;
    }
    for i in begin..n {
        // SAFETY: the caller gives `n` readable bytes at both.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// Compares `n` bytes for equality alone.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the caller's promise is the same.
    unsafe { memcmp(a, b, n) }
}
