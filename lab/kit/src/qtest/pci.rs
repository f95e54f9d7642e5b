// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI configuration space, through the ports 0xcf8 and 0xcfc.

use anyhow::Result;

use super::{Batch, Qtest, Value};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORT: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

/// A function on a bus. PCI Local Bus 3.0, "Configuration Mechanism".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PciAddress {
    /// Bus.
    pub bus: u8,
    /// Device, below 32.
    pub device: u8,
    /// Function, below 8.
    pub function: u8,
}

impl PciAddress {
    /// The requester id: bus in bits 15:8, device in 7:3, function in 2:0.
    pub fn requester_id(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device & 31) << 3 | u16::from(self.function & 7)
    }

    /// What goes to the address port for the 32-bit register that holds byte `offset`.
    fn register(self, offset: u8) -> u32 {
        ENABLE | u32::from(self.requester_id()) << 8 | u32::from(offset & !3)
    }
}

impl Batch {
    /// Reads the 32-bit configuration register that holds byte `offset`.
    pub fn config_read(&mut self, address: PciAddress, offset: u8) -> Value {
        self.outl(ADDRESS_PORT, address.register(offset));
        self.inl(DATA_PORT)
    }

    /// Writes the 32-bit configuration register that holds byte `offset`.
    pub fn config_write(&mut self, address: PciAddress, offset: u8, value: u32) {
        self.outl(ADDRESS_PORT, address.register(offset));
        self.outl(DATA_PORT, value);
    }
}

impl Qtest {
    /// Reads the 32-bit configuration register that holds byte `offset`.
    pub fn config_read(&mut self, address: PciAddress, offset: u8) -> Result<u32> {
        let mut batch = Batch::new();
        let value = batch.config_read(address, offset);
        Ok(u32::try_from(self.run(&batch)?.value(value))?)
    }

    /// Writes the 32-bit configuration register that holds byte `offset`.
    pub fn config_write(&mut self, address: PciAddress, offset: u8, value: u32) -> Result<()> {
        let mut batch = Batch::new();
        batch.config_write(address, offset, value);
        self.run(&batch).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_spelled_as_the_mechanism_says() {
        let address = PciAddress {
            bus: 1,
            device: 3,
            function: 2,
        };
        assert_eq!(address.requester_id(), 0x011a);
        assert_eq!(address.register(0x13), 0x8001_1a10);
    }
}
