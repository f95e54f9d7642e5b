// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The chipset's virtio-iommu, and devices behind it.

use super::{Chipset, ChipsetError, DeviceMemory, Placement};
use crate::pci::FunctionAddress;
use crate::viommu::MappedMemory;
use crate::viommu::paravirtual::Paravirtual;
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::iommu::{AtBoot, Iommu, Limits};

impl Chipset {
    /// Puts a virtio-iommu on the PCI bus, before the devices that will be behind it: so it is restored before them, too.
    ///
    /// # Errors
    ///
    /// The host has no event for it, or the bus no room.
    pub fn add_virtio_iommu(
        &mut self,
        iommu: Iommu,
        memory: DeviceMemory,
    ) -> Result<FunctionAddress, ChipsetError> {
        let endpoints = iommu.endpoints();
        let at = self.add_virtio(Placement::default(), Box::new(iommu), memory)?;
        self.paravirtual = Some(Paravirtual::new(at, endpoints));
        Ok(at)
    }

    /// A virtio-iommu as a machine has it: without a mapping, a device behind it reaches nothing.
    ///
    /// # Errors
    ///
    /// [`ChipsetError::Doorbell`].
    pub fn virtio_iommu() -> Result<Iommu, ChipsetError> {
        Iommu::new(Limits::default(), AtBoot::Block).map_err(ChipsetError::Doorbell)
    }

    /// Puts a virtio device on the PCI bus whose DMA goes through the virtio-iommu to `memory`.
    ///
    /// # Errors
    ///
    /// [`ChipsetError::NoUnit`], [`ChipsetError::Endpoint`].
    pub fn add_mapped_virtio(
        &mut self,
        place: Placement,
        device: Box<dyn Device<MappedMemory>>,
        memory: &DeviceMemory,
    ) -> Result<FunctionAddress, ChipsetError> {
        let at = self.free(place)?;
        let paravirtual = self.paravirtual.as_mut().ok_or(ChipsetError::NoUnit)?;
        let memory = paravirtual.add(at, memory)?;
        let function = self.virtio(at, place, device, memory)?;
        // As behind a remapping unit: a table of each request's would be mapped and taken back.
        let function = function.with_access_platform().without_indirect_tables();
        self.put(at, function)
    }
}
