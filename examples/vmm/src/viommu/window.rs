// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The unit's registers on the memory bus.

use super::MachineUnit;
use crate::bus::BusDevice;
use crate::machine::stop::Stop;
use std::sync::Arc;

/// The register window.
#[derive(Debug)]
pub struct Window {
    unit: Arc<MachineUnit>,
    stop: Stop,
}

impl Window {
    /// That of `unit`, in a machine that `stop` ends: a queue full of invalidations takes as long as a guest likes, and
    /// its processor must leave when it is told to.
    #[must_use]
    pub fn new(unit: Arc<MachineUnit>, stop: &Stop) -> Self {
        Window {
            unit,
            stop: stop.clone(),
        }
    }
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The bus passes what lies inside the window, which is a page.
        self.unit.read(offset as u32, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let wanted = || !self.stop.is_asked();
        self.unit.write_while(offset as u32, data, wanted);
    }
}
