// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! virtio devices that are not on PCI: windows of registers in memory, which the guest is told of by ACPI.
//!
//! ```text
//!   VIRTIO_MMIO   one window of 4 KiB a device, one after another
//!                   +0x50 QueueNotify = N  --ioeventfd--> queue N
//!                 interrupt: a level on one of the pins that PCI devices share
//! ```

use super::{Chipset, ChipsetError, DeviceMemory};
use crate::acpi::VirtioWindow;
use crate::bus::BusDevice;
use crate::config::Rings;
use crate::interrupts::Gsi;
use crate::machine::address_map::VIRTIO_MMIO;
use crate::pci::intx;
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::transport::mmio::{LENGTH, NOTIFY, VirtioMmio};
use kvm_ioctls::IoEventAddress;
use std::sync::{Arc, Mutex};

/// A device's window on the memory bus.
struct Registers(VirtioMmio<DeviceMemory>);

impl BusDevice for Registers {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// Where the device with this number is, the first being 0; none behind the last window.
fn window(number: usize) -> Option<VirtioWindow> {
    let number = u32::try_from(number).ok()?;
    let base = LENGTH
        .checked_mul(number.into())?
        .checked_add(VIRTIO_MMIO.start)?;
    (base.checked_add(LENGTH)? <= VIRTIO_MMIO.end).then(|| VirtioWindow {
        base,
        length: LENGTH,
        gsi: intx::FIRST_GSI.saturating_add(number % intx::GSIS),
    })
}

impl Chipset {
    /// Puts a virtio device on the memory bus, apart from PCI; the address of its registers. Its DMA goes to `memory`,
    /// which no remapping unit translates.
    pub fn add_mmio_virtio(
        &mut self,
        rings: Rings,
        device: Box<dyn Device<DeviceMemory>>,
        memory: DeviceMemory,
    ) -> Result<u64, ChipsetError> {
        let place = window(self.windows.len()).ok_or(ChipsetError::NoWindow {
            devices: self.windows.len(),
        })?;
        let base = place.base;
        let pin = self.shared_pin(Gsi(place.gsi))?;
        let runner = self.device_threads();
        let mut device = VirtioMmio::new(device, memory, Arc::new(pin), runner)?
            // The kernel compares all of what is written.
            .without_notification_data()
            .with_report(move |why| log::warn!("virtio device at {base:#x} stopped: {why}"))
            .with_trouble_report(move |why| log::error!("virtio device at {base:#x}: {why}"));
        if rings == Rings::Split {
            device = device.without_packed_rings();
        }
        for (event, queue) in device.doorbells().iter().zip(0u32..) {
            let address = IoEventAddress::Mmio(base.saturating_add(NOTIFY));
            self.vm
                .register_ioevent(event, &address, queue)
                .map_err(|error| ChipsetError::Doorbell(error.into()))?;
        }
        let registers = Arc::new(Mutex::new(Registers(device)));
        self.memory_bus.insert(base, LENGTH, registers)?;
        self.windows.push(place);
        Ok(base)
    }

    /// Ends the devices that are not on PCI.
    pub(super) fn remove_windows(&mut self) {
        for window in self.windows.drain(..) {
            self.memory_bus.remove(window.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::address_map::{ECAM_BASE, ECAM_LENGTH, IO_APIC_BASE};

    #[test]
    fn windows_are_apart_and_where_nothing_else_is() {
        let all: Vec<_> = (0..).map_while(window).collect();
        assert_eq!(all.len(), 256);
        for (one, next) in all.iter().zip(&all[1..]) {
            assert_eq!(one.base + one.length, next.base);
        }
        assert!(all[0].base >= ECAM_BASE + ECAM_LENGTH);
        assert!(all[255].base + all[255].length <= IO_APIC_BASE);
        assert!(all.iter().all(|window| (16..24).contains(&window.gsi)));
    }
}
