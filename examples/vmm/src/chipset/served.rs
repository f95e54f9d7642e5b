// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI functions that other processes serve: put on the bus as those of the host are, and what they reach.

use super::{Chipset, ChipsetError, requester};
use crate::confine::Starter;
use crate::passthrough::{PhysicalFunction, Slots};
use crate::pci::FunctionAddress;
use crate::viommu::{DmaTable, RemappingUnit, TranslatedMemory};
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
        name: &str,
        function: Box<dyn PhysicalFunction>,
        slots: Arc<dyn Slots>,
    ) -> Result<FunctionAddress, ChipsetError> {
        self.add_passthrough(name, function, slots)
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
        at: FunctionAddress,
        name: &str,
        table: Box<dyn DmaTable>,
    ) -> Result<io::Result<()>, ChipsetError> {
        Ok(self.unit_of(at)?.follow(requester(at), name, table))
    }

    /// Memory as the function at `at` reaches it behind the remapping unit.
    ///
    /// # Errors
    ///
    /// [`ChipsetError::NoUnit`].
    pub fn memory_of(&self, at: FunctionAddress) -> Result<TranslatedMemory, ChipsetError> {
        Ok(self.unit_of(at)?.memory_of(requester(at)))
    }

    fn unit_of(&self, _at: FunctionAddress) -> Result<&RemappingUnit, ChipsetError> {
        self.unit.as_ref().ok_or(ChipsetError::NoUnit)
    }

    /// Starts threads for devices.
    #[must_use]
    pub fn starter(&self) -> &Starter {
        &self.starter
    }
}
