// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's virtio-iommu: its endpoints, and how the guest is told of them, by ACPI's VIOT table.
//!
//! ```text
//!   VIOT   the function that is the virtio-iommu  <-- node of each function behind it: its number there, and where it is
//! ```
//!
//! What is not named there is not behind it. Interrupts are not remapped: messages go their own way, and no mapping may use the window
//! that they go by.
//!
//! ACPI Specification 6.5, "Virtual I/O Translation (VIOT) Table".

use super::MappedMemory;
use crate::acpi::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::machine::memory::GuestRam;
use crate::pci::FunctionAddress;
use acpi_tables::Aml;
use acpi_tables::viot::{PciDevice, PciRange, VIOT, VirtIoPciIommu};
use hvkit_virtio_devices::iommu::{EndpointError, Endpoints, Reserved, Span};
use std::sync::Arc;
use vm_memory::IommuMemory;

/// Where messages are written that interrupt a processor (SDM volume 3, "Message Address Register Format").
const MESSAGES: Span = Span {
    first: 0xfee0_0000,
    last: 0xfeef_ffff,
};

/// The virtio-iommu of one machine.
#[derive(Debug)]
pub struct Paravirtual {
    at: FunctionAddress,
    endpoints: Endpoints,
    behind: Vec<FunctionAddress>,
}

impl Paravirtual {
    /// The one that is at `at`, whose devices are `endpoints`.
    #[must_use]
    pub fn new(at: FunctionAddress, endpoints: Endpoints) -> Self {
        Paravirtual {
            at,
            endpoints,
            behind: Vec::new(),
        }
    }

    /// Puts the function at `at` behind it, whose memory is `ram` as the driver maps it.
    ///
    /// # Errors
    ///
    /// [`EndpointError`]: it is there already.
    pub fn add(
        &mut self,
        at: FunctionAddress,
        ram: &GuestRam,
    ) -> Result<MappedMemory, EndpointError> {
        let messages = Reserved::Messages(MESSAGES);
        let endpoint = self.endpoints.add(number(at), vec![messages])?;
        self.behind.push(at);
        Ok(Arc::new(IommuMemory::new(ram.clone(), endpoint, true, ())))
    }

    /// The table.
    #[must_use]
    pub fn table(&self) -> Vec<u8> {
        let mut table = VIOT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        let node = table.add_virtio_pci_iommu(VirtIoPciIommu::new(device(self.at)));
        for at in &self.behind {
            table.add_pci_range(PciRange::new(device(*at), device(*at), &node));
        }
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        bytes
    }
}

/// The number of the endpoint that the function at `at` is: by the table's writer, its place on the bus.
fn number(at: FunctionAddress) -> u32 {
    at.to_byte().into()
}

fn device(at: FunctionAddress) -> PciDevice {
    PciDevice::new(at.segment(), 0, at.device(), at.function())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hvkit_virtio_devices::iommu::{AtBoot, Iommu, Limits};

    #[test]
    fn the_table_to_the_letter() {
        let iommu = Iommu::new(Limits::default(), AtBoot::Block).unwrap();
        let [at, disk, card] = [8, 0x10, 0x18].map(FunctionAddress::from_byte);
        let mut paravirtual = Paravirtual::new(at, iommu.endpoints());
        let ram = GuestRam::from_ranges(&[(vm_memory::GuestAddress(0), 0x1000)]).unwrap();
        paravirtual.add(disk, &ram).unwrap();
        paravirtual.add(card, &ram).unwrap();
        assert_eq!(
            paravirtual.add(card, &ram).unwrap_err(),
            EndpointError::Taken(0x18)
        );
        let table = paravirtual.table();
        assert_eq!(&table[..4], b"VIOT");
        assert_eq!(table[4..8], 112u32.to_le_bytes());
        // All bytes of a table add up to 0.
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
        #[rustfmt::skip]
        let expected = [
            // Three nodes, the first at 48.
            3, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            // A virtio-iommu on PCI, of 16 bytes: segment 0, 00:01.0.
            3, 0, 16, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            // PCI functions, of 24 bytes: the first one's number; segments and functions from, to; the node that they are behind.
            1, 0, 24, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0x10, 0, 48, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 24, 0, 0x18, 0, 0, 0, 0, 0, 0, 0, 0x18, 0, 0x18, 0, 48, 0, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(table[36..], expected);
    }
}
