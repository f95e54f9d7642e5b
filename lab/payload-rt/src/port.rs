// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Input and output ports.

use core::arch::asm;

/// Writes `value` to `port`.
///
/// # Safety
///
/// What the device behind the port does with it must not break what the program relies on.
pub unsafe fn outb(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) }
}

/// Reads `port`.
///
/// # Safety
///
/// As for [`outb`]: a read may have effects too.
pub unsafe fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nostack, preserves_flags));
    }
    value
}
