// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device assigned to this process by VFIO, and the one piece of memory that it reaches.

use super::ProgramError;
use crate::passthrough::HostFunction;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioOps};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// An assigned device with its memory. Whoever has it drives it.
pub struct Device {
    // Dropped in this order: what the device reaches goes when it reaches nothing any more.
    vfio: VfioDevice,
    container: Arc<VfioContainer>,
    memory: GuestMemoryMmap,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("memory", &self.memory)
            .finish_non_exhaustive()
    }
}

impl Device {
    /// Opens the function whose folder in sysfs is `path`, bound to vfio-pci and in a group of its own, which is reset by
    /// that. It reaches `length` new bytes of zeros, whole pages, from its address `iova` on, and nothing else.
    ///
    /// # Errors
    ///
    /// There is no such function, it is not bound to vfio-pci, or VFIO refuses.
    pub fn open(path: &Path, iova: u64, length: usize) -> Result<Self, ProgramError> {
        let host = HostFunction::find(path)?;
        let container = Arc::new(VfioContainer::new(None)?);
        let ops: Arc<dyn VfioOps> = Arc::clone(&container) as _;
        let ranges = [(GuestAddress(iova), length)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(std::io::Error::other)?;
        let device = Device {
            vfio: VfioDevice::new(&host.path, ops, false)?,
            container,
            memory,
        };
        device.map()?;
        Ok(device)
    }

    #[expect(unsafe_code, reason = "a device is given memory of this process")]
    fn map(&self) -> Result<(), ProgramError> {
        // SAFETY: 1. The memory stays mapped for as long as the device can reach it: this value holds it, and drops it
        // after the device and the container, at whose end VFIO unmaps it. 2. It is used for nothing but what the device
        // is given, and reached by vm-memory's volatile accesses only, so no reference of ours is broken by what the
        // device writes.
        unsafe { self.container.vfio_map_guest_memory(&self.memory) }.map_err(ProgramError::Vfio)
    }

    /// Its registers and interrupts.
    #[must_use]
    pub fn vfio(&self) -> &VfioDevice {
        &self.vfio
    }

    /// The memory, by the device's addresses.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Takes the memory from the device: whatever it is told from now on, it reaches nothing.
    ///
    /// # Errors
    ///
    /// VFIO's.
    pub fn unmap(&self) -> Result<(), ProgramError> {
        Ok(self.container.vfio_unmap_guest_memory(&self.memory)?)
    }
}
