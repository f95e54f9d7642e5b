// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a bare-metal payload stands on: entry to long mode, serial port, shutdown, panics.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//! payload_rt::entry!(main);
//!
//! fn main() {
//!     payload_rt::println!("hello");
//! }
//! ```
//!
//! What the payload finds when `main` starts:
//!
//! ```text
//!  0x1000..0x7000    page tables: 4 GiB mapped to themselves, 2 MiB pages, writable, executable
//!  ..0x90000         the stack, downwards
//!  2 MiB..           the payload; its .bss zeroed
//!  16 MiB            INPUT, if the run was given an image there
//! ```
//!
//! Interrupts are off and there is no IDT: an exception is a triple fault, which the laboratory
//! reports as such. SSE is on. Returning from `main` ends the run; a panic prints and triple-faults,
//! so that no test takes it for an orderly end.
#![no_std]

use core::sync::atomic::{AtomicPtr, Ordering};

mod entry;
mod memory;
pub mod port;
pub mod serial;
pub mod task;
pub mod vmx;

pub use entry::boot_words;

/// Where a run's input lies, by convention.
pub const INPUT: u64 = 0x100_0000;

/// The first `length` bytes at [`INPUT`].
///
/// # Panics
///
/// If they pass the 4 GiB that are mapped.
pub fn input(length: usize) -> &'static [u8] {
    let mapped_above = (1 << 32) - INPUT as usize;
    assert!(length <= mapped_above, "an input of {length} bytes");
    // SAFETY: the entry maps 4 GiB to themselves, the payload ends below INPUT (link.ld asserts
    // it), and nothing of ours is placed above it.
    unsafe { core::slice::from_raw_parts(INPUT as *const u8, length) }
}

/// Names the function that the payload starts with: `fn()`.
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn payload_main() {
            let main: fn() = $main;
            main();
        }
    };
}

/// Ends the run.
pub fn shutdown() -> ! {
    serial::drain();
    for byte in *b"Shutdown" {
        // SAFETY: the port only exists to end the emulator.
        unsafe { port::outb(0x8900, byte) }
    }
    halt()
}

/// Stops this processor for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off, so nothing happens after it.
        unsafe { core::arch::asm!("hlt", options(nomem, nostack)) }
    }
}

/// What [`at_panic`] was given; null if nothing.
static AT_PANIC: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Calls `tell` in a panic, after its message and before the end.
pub fn at_panic(tell: fn()) {
    AT_PANIC.store(tell as *mut (), Ordering::Relaxed);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("the payload panicked: {info}");
    // Taken, so that a panic in it is the end.
    let tell = AT_PANIC.swap(core::ptr::null_mut(), Ordering::Relaxed);
    if !tell.is_null() {
        // SAFETY: not null, so `at_panic` stored it, which makes it of a `fn()` and which alone stores any.
        let tell: fn() = unsafe { core::mem::transmute(tell) };
        tell();
    }
    serial::drain();
    let no_interrupts: [u8; 10] = [0; 10];
    // SAFETY: with an empty IDT the undefined instruction is a triple fault, and that is the aim.
    unsafe { core::arch::asm!("lidt [{}]", "ud2", in(reg) &no_interrupts, options(noreturn)) }
}
