// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI functions that other processes serve: put on the bus as those of the host are, and what they reach.

use super::{Chipset, ChipsetError, Placement, requester};
use crate::confine::Starter;
use crate::passthrough::{PhysicalFunction, Slots};
use crate::pci::FunctionAddress;
use crate::viommu::{DmaTable, TranslatedMemory};
use std::io;
use std::sync::Arc;

impl Chipset {
    /// Puts a function that another process serves on the PCI bus, which messages call `name`. Its registers are
    /// mapped into the guest by `slots`.
    ///
    /// # Errors
    ///
    /// [`ChipsetError::UserDevice`], and what is no fault of its own.
    pub fn add_user_device(
        &mut self,
        place: Placement,
        name: &str,
        function: Box<dyn PhysicalFunction>,
        slots: Arc<dyn Slots>,
    ) -> Result<FunctionAddress, ChipsetError> {
        self.add_passthrough(place, name, function, slots)
            .map_err(|error| match error {
                ChipsetError::Device { name, source } => ChipsetError::UserDevice { name, source },
                error => error,
            })
    }

    /// Has `table` follow what the function at `at` reaches behind the remapping unit; the inner error is that of the
    /// table's first filling.
    ///
    /// # Errors
    ///
    /// [`ChipsetError::NoUnit`].
    pub fn follow(
        &self,
        place: Placement,
        at: FunctionAddress,
        name: &str,
        table: Box<dyn DmaTable>,
    ) -> Result<io::Result<()>, ChipsetError> {
        Ok(self.unit(place)?.follow(requester(at), name, table))
    }

    /// Memory as the function at `at` reaches it behind the remapping unit.
    ///
    /// # Errors
    ///
    /// [`ChipsetError::NoUnit`].
    pub fn memory_of(
        &self,
        place: Placement,
        at: FunctionAddress,
    ) -> Result<TranslatedMemory, ChipsetError> {
        Ok(self.unit(place)?.memory_of(requester(at)))
    }

    /// Starts threads for devices.
    #[must_use]
    pub fn starter(&self) -> &Starter {
        &self.starter
    }
}
