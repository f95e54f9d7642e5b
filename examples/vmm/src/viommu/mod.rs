// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's remapping unit: `hvkit-vtd-iommu`'s emulated unit on this machine's bus.
//!
//! ```text
//!   vCPU -- register window --.
//!                             v
//!   virtio queues ----> SharedUnit ----> guest memory: tables, invalidation queue
//!   (TranslatedMemory)        |
//!                             '--> UnitHost: interrupts of its own
//! ```
//!
//! The guest finds the unit by its [`table()`]. Every PCI function is in the unit's scope. A virtio device without
//! `iommu=on` does its DMA by physical addresses all the same, and says so by not offering
//! `VIRTIO_F_ACCESS_PLATFORM`, as virtio has it ("Reserved Feature Bits").

mod error;
mod host;
mod options;
mod table;
mod window;

pub use error::{UnitError, check};
pub use host::UnitHost;
pub use options::unit_options;
pub use table::{IO_APIC, table};
pub use window::Window;

use crate::interrupts::Router;
use crate::machine::memory::GuestRam;
use hvkit_vtd_iommu::emulation::{DeviceIommu, Options, SharedUnit, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use std::sync::Arc;
use vm_memory::IommuMemory;

/// The unit, the memory that its tables are in, and what it does to the machine.
pub type MachineUnit = SharedUnit<GuestRam, UnitHost>;

/// Memory as a device behind the unit sees it.
pub type TranslatedMemory = Arc<IommuMemory<GuestRam, DeviceIommu<GuestRam, UnitHost>>>;

/// The remapping unit of one machine.
#[derive(Clone, Debug)]
pub struct RemappingUnit {
    unit: Arc<MachineUnit>,
    ram: GuestRam,
    options: Options,
}

impl RemappingUnit {
    /// A unit after power-on, whose own interrupts go through `router`.
    ///
    /// # Errors
    ///
    /// [`UnitError::Options`].
    pub fn new(options: Options, ram: &GuestRam, router: &Arc<Router>) -> Result<Self, UnitError> {
        let unit = Unit::new(options)?;
        let host = UnitHost::new(router);
        Ok(RemappingUnit {
            unit: SharedUnit::new(unit, ram.clone(), host),
            ram: ram.clone(),
            options,
        })
    }

    /// The unit itself.
    #[must_use]
    pub fn shared(&self) -> &Arc<MachineUnit> {
        &self.unit
    }

    /// What kind of unit it is.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Memory as `source` sees it.
    #[must_use]
    pub fn memory_of(&self, source: RequesterId) -> TranslatedMemory {
        let device = DeviceIommu::new(Arc::clone(&self.unit), source);
        Arc::new(IommuMemory::new(self.ram.clone(), device, true, ()))
    }
}
