// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The unit's registers on the memory bus.

use super::MachineUnit;
use crate::bus::BusDevice;
use std::sync::Arc;

/// The register window.
#[derive(Debug)]
pub struct Window(Arc<MachineUnit>);

impl Window {
    /// That of `unit`.
    #[must_use]
    pub fn new(unit: Arc<MachineUnit>) -> Self {
        Window(unit)
    }
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The bus passes what lies inside the window, which is a page.
        self.0.read(offset as u32, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset as u32, data);
    }
}
