// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The chipset and its devices: paused, saved, restored.

use super::Chipset;
use crate::pci::FunctionAddress;
use crate::snapshot::{ChipsetState, DeviceState, Saveable, SnapshotError};
use hvkit_vtd_iommu::emulation::State as UnitState;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Devices that can be saved, by address.
#[derive(Default)]
pub(super) struct Devices(BTreeMap<FunctionAddress, Arc<Mutex<dyn Saveable>>>);

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Devices {
    pub(super) fn insert(&mut self, at: FunctionAddress, device: Arc<Mutex<dyn Saveable>>) {
        self.0.insert(at, device);
    }

    /// Forgets them: they end with the bus.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Each with its address, in the order of those.
    fn each(
        &self,
    ) -> impl Iterator<Item = (FunctionAddress, MutexGuard<'_, dyn Saveable + 'static>)> {
        self.0.iter().map(|(&at, device)| {
            let device = device.lock().unwrap_or_else(PoisonError::into_inner);
            (at, device)
        })
    }
}

impl Chipset {
    /// Has every device finish what it has begun, and begin nothing more.
    pub fn pause(&self) {
        for (_, mut device) in self.devices.each() {
            device.pause();
        }
    }

    /// Lets the devices go on.
    pub fn resume(&self) {
        for (_, mut device) in self.devices.each() {
            device.resume();
        }
    }

    /// The devices, which are paused, in the order of their addresses.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Save`].
    pub fn save_devices(&self) -> Result<Vec<DeviceState>, SnapshotError> {
        let mut states = Vec::with_capacity(self.devices.0.len());
        for (at, device) in self.devices.each() {
            let saved = device.save();
            let state = saved.map_err(|source| SnapshotError::Save { at, source })?;
            states.push(DeviceState {
                segment: at.segment(),
                at: at.to_byte(),
                state,
            });
        }
        Ok(states)
    }

    /// Gives each device, which is new and paused, the state that it was saved with.
    ///
    /// # Errors
    ///
    /// They are other devices, or elsewhere, or one does not take its state.
    pub fn restore_devices(&self, states: &[DeviceState]) -> Result<(), SnapshotError> {
        SnapshotError::unless_same("devices on the PCI bus", states.len(), self.devices.0.len())?;
        for (saved, (at, mut device)) in states.iter().zip(self.devices.each()) {
            let place = FunctionAddress::from_byte(saved.at).in_segment(saved.segment);
            if place != at {
                return Err(SnapshotError::Place {
                    saved: place,
                    ours: at,
                });
            }
            let mut state = saved.state.clone();
            // A message that was on its way when the processors were saved has not reached them. One too many is one that
            // finds nothing to do.
            for vector in &mut state.interrupts.vectors {
                vector.pending |= !vector.masked;
            }
            device
                .restore(&state)
                .map_err(|source| SnapshotError::Restore { at, source })?;
        }
        // The registers' windows are where the guest put them.
        let mut root = self.root();
        for &at in self.devices.0.keys() {
            root.moved(at);
        }
        Ok(())
    }

    /// The chipset's own registers.
    #[must_use]
    pub fn save(&self) -> ChipsetState {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let reset = self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        ChipsetState {
            config_address: config.latch(),
            reset_control: reset.kept(),
        }
    }

    /// Gives them back.
    pub fn restore(&self, state: &ChipsetState) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reset = self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        config.set_latch(state.config_address);
        reset.keep(state.reset_control);
    }

    /// The remapping units, in the order of their numbers.
    #[must_use]
    pub fn save_units(&self) -> Vec<UnitState> {
        self.units.iter().map(|unit| unit.unit.save()).collect()
    }

    /// Gives the units the states that they were saved with.
    ///
    /// # Errors
    ///
    /// There are more or fewer, or one is another one.
    pub fn restore_units(&self, states: &[UnitState]) -> Result<(), SnapshotError> {
        SnapshotError::unless_same("remapping units", states.len(), self.units.len())?;
        for (unit, state) in self.units.iter().zip(states) {
            unit.unit.restore(state)?;
        }
        Ok(())
    }
}
