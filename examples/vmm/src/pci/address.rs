// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a function is on the bus, and where a register is in configuration space.

use std::fmt;

/// Segment, and device and function number on its bus 0. Every pair of numbers names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionAddress {
    segment: u16,
    byte: u8,
}

impl FunctionAddress {
    /// Where the host bridge of segment 0 is.
    pub const HOST_BRIDGE: FunctionAddress = FunctionAddress::from_byte(0);

    /// From the byte that requester IDs and configuration addresses carry: device in bits 7:3. In segment 0.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        FunctionAddress { segment: 0, byte }
    }

    /// The same in another segment.
    #[must_use]
    pub const fn in_segment(self, segment: u16) -> Self {
        FunctionAddress { segment, ..self }
    }

    /// The segment: a host bridge with buses of its own.
    #[must_use]
    pub const fn segment(self) -> u16 {
        self.segment
    }

    /// Function 0 of `device` of segment 0; none from 32 up.
    #[must_use]
    pub const fn of_device(device: u8) -> Option<Self> {
        if device < 32 {
            Some(FunctionAddress::from_byte(device << 3))
        } else {
            None
        }
    }

    /// The byte that requester IDs carry; the bus is 0, so it is also the requester ID.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        self.byte
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.byte >> 3
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.byte & 7
    }
}

impl fmt::Display for FunctionAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(f, "00:{:02x}.{}", self.device(), self.function())
    }
}

/// A byte of configuration space of any function of a segment.
///
/// Bus in bits 27:20, device in 19:15, function in 14:12, register in 11:0: the offset into the
/// enhanced window. PCI Express, "PCI Express Enhanced Configuration Access Mechanism (ECAM)".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigAddress(pub u32);

impl ConfigAddress {
    /// The address that mechanism #1 selects, if it is enabled: 256 registers a function.
    ///
    /// PCI, "Software Generation of Configuration Transactions".
    #[must_use]
    pub const fn from_mechanism_1(latch: u32) -> Option<Self> {
        if latch >> 31 == 0 {
            return None;
        }
        let function = latch >> 8 & 0xffff;
        Some(ConfigAddress(function << 12 | latch & 0xfc))
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u32 {
        self.0 >> 20
    }

    /// Device and function, in segment 0.
    #[must_use]
    pub const fn function(self) -> FunctionAddress {
        FunctionAddress::from_byte((self.0 >> 12 & 0xff) as u8)
    }

    /// Register, 0 to 4095.
    #[must_use]
    pub const fn register(self) -> u16 {
        (self.0 & 0xfff) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_is_named_as_lspci_does() {
        let at = FunctionAddress::from_byte(0xfb);
        assert_eq!((at.device(), at.function()), (31, 3));
        assert_eq!(at.to_string(), "00:1f.3");
        let elsewhere = at.in_segment(0x12);
        assert_eq!(elsewhere.to_string(), "0012:00:1f.3");
        assert_eq!((elsewhere.segment(), elsewhere.to_byte()), (0x12, 0xfb));
        assert_ne!(elsewhere, at);
        assert_eq!(FunctionAddress::of_device(31).unwrap().to_byte(), 0xf8);
        assert_eq!(FunctionAddress::of_device(32), None);
    }

    #[test]
    fn addresses_are_the_figures() {
        // Enable, bus 0x12, device 0x1f, function 5, register 0x3c.
        let address = ConfigAddress::from_mechanism_1(0x8012_fd3c).unwrap();
        assert_eq!(address, ConfigAddress(0x012f_d03c));
        assert_eq!(address.bus(), 0x12);
        assert_eq!(address.function().to_byte(), 0xfd);
        assert_eq!(address.register(), 0x3c);
        // Bits 30:24 are reserved and 1:0 are not an address.
        assert_eq!(
            ConfigAddress::from_mechanism_1(0xff00_0843),
            Some(ConfigAddress(0x0000_8040))
        );
        assert_eq!(ConfigAddress::from_mechanism_1(0x7fff_ffff), None);
        assert_eq!(ConfigAddress(0xfff_ffff).register(), 0xfff);
    }
}
