// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first serial port, a 16550, which the laboratory records.

use core::fmt;

use crate::port::{inb, outb};

const DATA: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = DATA + 1;
const LINE_CONTROL: u16 = DATA + 3;
const LINE_STATUS: u16 = DATA + 5;
const DIVISOR_ACCESS: u8 = 0x80;
const EIGHT_BITS: u8 = 0x03;
const HOLDING_EMPTY: u8 = 0x20;
const ALL_SENT: u8 = 0x40;
/// How often to ask whether the port is ready before giving up on it.
const PATIENCE: u32 = 1_000_000;

/// Sets the port up: full speed, eight bits, no interrupts.
pub(crate) fn prepare() {
    for (port, value) in [
        (LINE_CONTROL, DIVISOR_ACCESS),
        (DATA, 1),
        (INTERRUPT_ENABLE, 0),
        (LINE_CONTROL, EIGHT_BITS),
    ] {
        // SAFETY: only sets the serial port up, and nobody else uses it.
        unsafe { outb(port, value) }
    }
}

/// Waits until everything written has left.
pub fn drain() {
    wait(HOLDING_EMPTY | ALL_SENT);
}

fn wait(bits: u8) {
    for _ in 0..PATIENCE {
        // SAFETY: reading the line status only clears error bits.
        if unsafe { inb(LINE_STATUS) } & bits == bits {
            return;
        }
    }
}

/// Writes bytes as they are.
pub fn write(bytes: &[u8]) {
    for &byte in bytes {
        wait(HOLDING_EMPTY);
        // SAFETY: sends a byte, and nobody else uses the port.
        unsafe { outb(DATA, byte) }
    }
}

/// The port as something to format into.
#[derive(Clone, Copy, Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        write(text.as_bytes());
        Ok(())
    }
}

/// Prints to the serial port, without an end of line.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => {{
        // The port takes everything, so formatting into it does not fail.
        let _ = core::fmt::Write::write_fmt(&mut $crate::serial::Serial, format_args!($($text)*));
    }};
}

/// Prints a line to the serial port.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($text:tt)*) => { $crate::print!("{}\n", format_args!($($text)*)) };
}
