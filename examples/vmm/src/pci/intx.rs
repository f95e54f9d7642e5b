// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which interrupt line a function's pin is wired to.
//!
//! Pins INTA# to INTD# of neighbouring devices are swizzled over the eight I/O APIC inputs that no
//! ISA device has, so that devices share few lines. The routes are told to the guest twice: by
//! ACPI's `_PRT`, and by the interrupt line register for who reads only that.

use super::address::FunctionAddress;
use super::root::{Root, lock};

/// The first of the I/O APIC inputs for PCI.
pub const FIRST_GSI: u32 = 16;
/// How many there are.
pub const GSIS: u32 = 8;

const INTERRUPT_LINE: u16 = 0x3c;
const INTERRUPT_PIN: u16 = 0x3d;

/// One pin of one device and the global system interrupt it raises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// Device number.
    pub device: u8,
    /// 0 for INTA# to 3 for INTD#.
    pub pin: u8,
    /// Global system interrupt, level-triggered and active low.
    pub gsi: u32,
}

/// The global system interrupt of `pin` (0 for INTA#) of a device.
#[must_use]
pub fn gsi(at: FunctionAddress, pin: u8) -> u32 {
    let line = u32::from(at.device()).saturating_add(u32::from(pin & 3)) % GSIS;
    FIRST_GSI.saturating_add(line)
}

impl Root {
    /// Writes the interrupt line register of each function of `segment`, and lists the pins in use; none twice.
    pub fn route_intx(&mut self, segment: u16) -> Vec<Route> {
        let mut routes = Vec::new();
        for (at, function) in self.functions().filter(|(at, _)| at.segment() == segment) {
            let mut function = lock(function);
            let mut pin = [0];
            function.config_read(INTERRUPT_PIN, &mut pin);
            let [pin @ 1..=4] = pin else {
                continue;
            };
            let pin = pin.saturating_sub(1);
            let route = Route {
                device: at.device(),
                pin,
                gsi: gsi(at, pin),
            };
            if let Ok(line) = u8::try_from(route.gsi) {
                function.config_write(INTERRUPT_LINE, &[line]);
            }
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{FakeFunction, bench};
    use super::*;

    #[test]
    fn pins_are_swizzled_over_the_free_inputs() {
        let at = |device| FunctionAddress::of_device(device).unwrap();
        assert_eq!([0, 1, 2, 3].map(|pin| gsi(at(1), pin)), [17, 18, 19, 20]);
        assert_eq!([0, 1, 2, 3].map(|pin| gsi(at(6), pin)), [22, 23, 16, 17]);
        assert_eq!(gsi(at(31), 3), 16 + 34 % 8);
    }

    #[test]
    fn only_functions_with_a_pin_are_routed_and_told() {
        let (mut root, ..) = bench();
        let quiet = FakeFunction::new().shared();
        let inta = FakeFunction::new().with_pin(1).shared();
        let intd = FakeFunction::new().with_pin(4).shared();
        let broken = FakeFunction::new().with_pin(5).shared();
        for (byte, function) in [
            (0x00, &quiet),
            (0x18, &inta),
            (0x19, &intd),
            (0x20, &broken),
        ] {
            let at = FunctionAddress::from_byte(byte);
            root.insert(at, function.clone()).unwrap();
        }
        let route = |device, pin, gsi| Route { device, pin, gsi };
        assert_eq!(root.route_intx(0), [route(3, 0, 19), route(3, 3, 22)]);
        let line = |f: &std::sync::Mutex<FakeFunction>| f.lock().unwrap().config[0x3c];
        assert_eq!(
            [&quiet, &inta, &intd, &broken].map(|f| line(f)),
            [0, 19, 22, 0]
        );
    }
}
