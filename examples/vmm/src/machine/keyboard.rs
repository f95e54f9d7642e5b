// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The one use that guests still have for the keyboard controller: a pulse on its output 0 resets a
//! PC. There is no keyboard, and reads say that there is no controller.

use super::stop::{Stop, StopReason};
use crate::bus::BusDevice;

/// Commands 0xf0 to 0xff pulse the outputs whose bit is clear, for 6 microseconds.
const PULSE: u8 = 0xf0;
const NOT_OUTPUT_0: u8 = 1;

/// The controller's command port.
#[derive(Debug)]
pub struct KeyboardCommand(Stop);

impl KeyboardCommand {
    /// A port that resets the machine of `stop`.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        KeyboardCommand(stop)
    }
}

impl BusDevice for KeyboardCommand {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if let Some(command) = data.first()
            && command & PULSE == PULSE
            && command & NOT_OUTPUT_0 == 0
        {
            self.0.ask(StopReason::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pulse_on_output_0_resets() {
        let after = |command: &[u8]| {
            let stop = Stop::new().unwrap();
            KeyboardCommand::new(stop.clone()).write(0, command);
            stop.reason().cloned()
        };
        for pulse in [0xfe, 0xf0, 0xfc] {
            assert_eq!(after(&[pulse]), Some(StopReason::Reset));
        }
        for other in [&[0xff][..], &[0xf1], &[0xaa], &[0x60], &[]] {
            assert_eq!(after(other), None);
        }
    }
}
