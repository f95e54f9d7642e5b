// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The port by which a guest tells that it panicked, as QEMU's pvpanic device has it: reading tells
//! which events are understood, writing reports one.

use super::stop::{Stop, StopReason};
use crate::bus::BusDevice;

/// The guest panicked and will not go on.
const PANICKED: u8 = 1;

/// The port.
#[derive(Debug)]
pub struct PanicPort(Stop);

impl PanicPort {
    /// A port that stops the machine of `stop`.
    #[must_use]
    pub fn new(stop: Stop) -> Self {
        PanicPort(stop)
    }
}

impl BusDevice for PanicPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(events) = data.first_mut() {
            *events = PANICKED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            self.0.ask(StopReason::GuestPanic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_stops_the_machine_and_other_events_do_not() {
        let stop = Stop::new().unwrap();
        let mut port = PanicPort::new(stop.clone());
        let mut events = [0xff; 2];
        port.read(0, &mut events);
        assert_eq!(events, [1, 0]);
        // Bit 1: a crash kernel was started, the guest goes on.
        port.write(0, &[2]);
        port.write(0, &[]);
        assert!(!stop.is_asked());
        port.write(0, &[3]);
        assert_eq!(stop.reason(), Some(&StopReason::GuestPanic));
    }
}
