// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's remapping units: `hvkit-vtd-iommu`'s emulated unit on this machine's bus, once or several times.
//!
//! ```text
//!   vCPU -- register window --.
//!                             v
//!   virtio queues ----> SharedUnit ----> guest memory: tables, invalidation queue
//!   (TranslatedMemory)        |
//!                        ^    |--> UnitHost: tables of the host's devices (DmaTable)
//!                        |    '--> UnitHost: interrupts of its own, routes that are other ones now
//!                        |                                                |
//!   Router, I/O APIC ----' by Remapper  <---------------------------------'
//! ```
//!
//! The guest finds the units by their [`table()`]. A unit has every PCI function of its segment that no other unit has, or
//! those that name it ([`plan`]). A virtio device without `iommu=on` does its DMA by physical addresses all the same, and says so by not offering
//! `VIRTIO_F_ACCESS_PLATFORM`, as virtio has it ("Reserved Feature Bits").
//!
//! In place of units, a machine can have the [paravirtual] IOMMU, which the guest finds by another table.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod error;
mod host;
mod options;
pub mod paravirtual;
pub mod plan;
mod remapper;
mod shadow;
mod table;
#[cfg(test)]
mod tests;
mod window;

pub use error::UnitError;
pub use host::UnitHost;
pub use options::unit_options;
pub use plan::check;
pub use shadow::DmaTable;
pub use table::{Described, IO_APIC, registers, table};
pub use window::Window;

use crate::interrupts::{Router, UnitNumber, Watcher};
use crate::machine::memory::GuestRam;
use crate::machine::stop::Stop;
use hvkit_virtio_devices::iommu::SharedEndpoint;
use hvkit_vtd_iommu::emulation::{
    DeviceIommu, DeviceMemory, Options, SharedUnit, State, StateError, Unit,
};
use hvkit_vtd_iommu::spec::RequesterId;
use std::sync::Arc;
use vm_memory::IommuMemory;

/// Mappings of one device that the host is given. VFIO has a limit of its own, 65535 unless its module is told otherwise.
const MAPPINGS: usize = 65_000;

/// The unit, the memory that its tables are in, and what it does to the machine.
pub type MachineUnit = SharedUnit<GuestRam, UnitHost>;

/// Memory as a device behind the unit sees it: pages that it was led to are found again without asking the unit, until
/// the unit is told to forget anything.
pub type TranslatedMemory = Arc<DeviceMemory<GuestRam, UnitHost>>;

/// Memory as a device behind the virtio-iommu sees it.
pub type MappedMemory = Arc<IommuMemory<GuestRam, SharedEndpoint>>;

/// A remapping unit of one machine.
#[derive(Clone, Debug)]
pub struct RemappingUnit {
    unit: Arc<MachineUnit>,
    options: Options,
}

impl RemappingUnit {
    /// The unit `number` after power-on, whose own interrupts go through `router`. It stops the machine by `stop` if the host keeps
    /// mapped what the guest does not.
    ///
    /// # Errors
    ///
    /// [`UnitError::Options`].
    pub fn new(
        number: UnitNumber,
        options: Options,
        ram: &GuestRam,
        router: &Arc<Router>,
        stop: &Stop,
    ) -> Result<Self, UnitError> {
        let unit = Unit::new(options)?;
        let host = UnitHost::new(number, router, ram, stop);
        Ok(RemappingUnit {
            unit: SharedUnit::new(unit, ram.clone(), host),
            options,
        })
    }

    /// Has `table` follow what the device `source` reaches, which the user calls `name`. It is filled when this returns.
    ///
    /// # Errors
    ///
    /// The host did not map what the device reaches now.
    pub fn follow(
        &self,
        source: RequesterId,
        name: &str,
        table: Box<dyn DmaTable>,
    ) -> std::io::Result<()> {
        self.unit.with(|unit, memory, host| {
            host.add(source, name, table);
            // Whatever the coverage is: what the host does not map, the device does not reach.
            let _ = unit.watch(memory, host, source, MAPPINGS);
            host.refusal(source)
        })
    }

    /// What the guest can tell of it.
    #[must_use]
    pub fn save(&self) -> State {
        self.unit.with(|unit, _, _| unit.save())
    }

    /// Makes it the unit that was saved. Before any device uses it.
    ///
    /// # Errors
    ///
    /// The state of another unit, or of none.
    pub fn restore(&self, state: &State) -> Result<(), StateError> {
        let restored = Unit::try_from((self.options, state))?;
        self.unit.with(|unit, _, _| *unit = restored);
        Ok(())
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
        Arc::new(DeviceMemory::new(device))
    }
}

/// Has `units`, in the order of their numbers, remap the interrupts of `router`; `watcher` waits for those that are refused.
pub fn remap(units: &[RemappingUnit], router: &Router, watcher: &Arc<Watcher>) {
    let units = units.iter().map(|unit| Arc::clone(&unit.unit));
    let remapper = remapper::UnitRemapper(units.collect());
    router.remap_by(Arc::new(remapper), Arc::clone(watcher));
}
