// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The registers by which a guest switches itself off or resets itself.

use crate::bus::BusDevice;
use crate::machine::address_map::{ACPI_POWER_PORT, ACPI_TABLES, RESET_PORT};
use crate::machine::stop::{Stop, StopReason};

/// "Sleep Control Register".
pub const SLEEP_CONTROL_PORT: u16 = ACPI_POWER_PORT;
/// "Sleep Status Register".
pub const SLEEP_STATUS_PORT: u16 = ACPI_POWER_PORT + 1;
/// Ports of [`SleepRegisters`], from [`SLEEP_CONTROL_PORT`] on.
pub const SLEEP_PORTS: u64 = 2;

/// What the guest writes to [`RESET_PORT`]: full reset.
pub const RESET_VALUE: u8 = RESET_PROCESSOR | RESET_SYSTEM;
/// The sleep type that our tables give to "off".
pub const SLEEP_TYPE_OFF: u8 = 5;

/// SLP_TYPx, bits 4:2 of the sleep control register.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// SLP_EN.
const SLEEP_ENABLE: u8 = 1 << 5;

/// Bit 1 of the reset control register: the whole system, not the processor alone.
const RESET_SYSTEM: u8 = 1 << 1;
/// Bit 2: set, it resets.
const RESET_PROCESSOR: u8 = 1 << 2;

/// Where a PC's processors begin, and where a guest jumps that asks the BIOS for a reset.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// What our machine has there instead of a BIOS. Linux needs it: on a hardware-reduced platform it
/// resets by EFI, and where that is missing by this jump, never by the reset register.
#[rustfmt::skip]
pub const RESET_CODE: [u8; 9] = [
    // mov al, RESET_VALUE; mov dx, RESET_PORT; out dx, al
    0xb0, RESET_VALUE, 0xba, RESET_PORT.to_le_bytes()[0], RESET_PORT.to_le_bytes()[1], 0xee,
    // hlt; jmp to the hlt
    0xf4, 0xeb, 0xfd,
];
// It ends where the first megabyte does.
const _: () = assert!(RESET_VECTOR + RESET_CODE.len() as u64 <= 1 << 20);
const _: () = assert!(ACPI_TABLES.end <= RESET_VECTOR);

/// The sleep control and status registers. There is one state to sleep in, off, and nothing wakes
/// from that, so the status is always clear.
#[derive(Debug)]
pub struct SleepRegisters(Stop);

impl SleepRegisters {
    /// Registers that switch off the machine that `stop` stops.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        SleepRegisters(stop)
    }
}

impl BusDevice for SleepRegisters {
    /// Both bits of the control register that could be read are write-only or zero.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // A wider access writes the control register with its first byte.
        if let (0, &[control, ..]) = (offset, data)
            && control & SLEEP_ENABLE != 0
            && control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_OFF
        {
            self.0.ask(StopReason::PowerOff);
        }
    }
}

/// The reset control register at 0xcf9.
#[derive(Debug)]
pub struct ResetControl {
    stop: Stop,
    kept: u8,
}

impl ResetControl {
    /// A register that resets the machine that `stop` stops.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        ResetControl { stop, kept: 0 }
    }

    /// What it reads.
    #[must_use]
    pub fn kept(&self) -> u8 {
        self.kept
    }

    /// Keeps `value` as a write does, and resets nothing.
    pub fn keep(&mut self, value: u8) {
        self.kept = value & RESET_SYSTEM;
    }
}

impl BusDevice for ResetControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.kept);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let &[value, ..] = data {
            // The kind of reset is kept; the bit that starts it reads as zero.
            self.keep(value);
            if value & RESET_PROCESSOR != 0 {
                self.stop.ask(StopReason::Reset);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(device: impl FnOnce(Stop) -> Box<dyn BusDevice>, writes: &[(u64, &[u8])]) -> Stop {
        let stop = Stop::new().unwrap();
        let mut device = device(stop.clone());
        for (offset, data) in writes {
            device.write(*offset, data);
        }
        stop
    }

    fn sleep(writes: &[(u64, &[u8])]) -> Stop {
        after(|stop| Box::new(SleepRegisters::new(stop)), writes)
    }

    fn reset(writes: &[(u64, &[u8])]) -> Stop {
        after(|stop| Box::new(ResetControl::new(stop)), writes)
    }

    #[test]
    fn type_5_with_enable_is_off() {
        // SLP_TYPx 5 in bits 4:2, SLP_EN in bit 5.
        assert_eq!(sleep(&[(0, &[0x34])]).reason(), Some(&StopReason::PowerOff));
        let off = sleep(&[(0, &[0x14]), (0, &[0x34])]);
        assert_eq!(off.reason(), Some(&StopReason::PowerOff));
        // Bits 0, 1, 6 and 7 mean nothing.
        assert!(sleep(&[(0, &[0xf7])]).is_asked());
    }

    #[test]
    fn nothing_else_is_off() {
        for control in [0x00, 0x14, 0x20, 0x24, 0x2c, 0x30, 0x38, 0x3c] {
            assert!(!sleep(&[(0, &[control])]).is_asked(), "{control:#x}");
        }
        // The status register, and no byte at all.
        assert!(!sleep(&[(1, &[0x34]), (0, &[]), (7, &[0x34])]).is_asked());
    }

    #[test]
    fn the_reset_bit_resets() {
        assert_eq!(reset(&[(0, &[0x06])]).reason(), Some(&StopReason::Reset));
        // Processor alone is the same to a machine without a running state to keep.
        assert_eq!(reset(&[(0, &[0x04])]).reason(), Some(&StopReason::Reset));
        assert!(!reset(&[(0, &[0x02]), (0, &[0x00]), (0, &[0xfb]), (0, &[])]).is_asked());
    }

    #[test]
    fn registers_read_what_they_keep() {
        let stop = Stop::new().unwrap();
        let mut control = ResetControl::new(stop.clone());
        let mut byte = [0xaa];
        control.read(0, &mut byte);
        assert_eq!(byte, [0]);
        control.write(0, &[0xff]);
        control.read(0, &mut byte);
        assert_eq!(byte, [0x02]);
        let mut sleep = SleepRegisters::new(stop);
        let mut both = [0xaa; 2];
        sleep.read(0, &mut both);
        assert_eq!(both, [0, 0]);
    }
}
