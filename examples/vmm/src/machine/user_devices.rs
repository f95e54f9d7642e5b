// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI devices of other processes: opened, put on the bus, and given the guest's memory, all of it or what they reach
//! behind the remapping unit.

use super::error::MachineError;
use super::memory::GuestRam;
use super::platform::placement;
use crate::chipset::Chipset;
use crate::config::{Config, Dma};
use crate::passthrough::{KvmSlots, PassthroughError};
use crate::vfio_user::{Access, Given, UserDeviceError, open};
use std::sync::Arc;
use vm_memory::{GuestAddress, GuestMemory, Permissions};

/// Adds the devices that `config` names, whose registers are mapped into the guest by `slots`.
pub(super) fn add(
    chipset: &mut Chipset,
    ram: &GuestRam,
    config: &Config,
    slots: Option<&Arc<KvmSlots>>,
) -> Result<(), MachineError> {
    for device in &config.user_devices {
        let place = placement(config, &device.place);
        let slots = Arc::clone(slots.ok_or(PassthroughError::Slots)?);
        let name = device.name();
        let function = open(device, ram, chipset.starter())?;
        let refused = |source| UserDeviceError::Memory {
            name: device.name(),
            source,
        };
        let table = match device.dma {
            Dma::Direct => {
                function.map_everything(device.given).map_err(refused)?;
                None
            }
            Dma::Translated => Some(function.table(device.given)),
        };
        let news = function.news();
        let at = chipset.add_user_device(place, &name, Box::new(function), slots)?;
        if let Some(table) = table {
            chipset
                .follow(place, at, &name, Box::new(table))?
                .map_err(refused)?;
            // A server that is given files is waited for with the unit in hand.
            if device.given == Given::Nothing {
                let memory = chipset.memory_of(place, at)?;
                news.tell_astray(Box::new(move |astray| {
                    let access = match astray.access {
                        Access::Read => Permissions::Read,
                        Access::Write => Permissions::Write,
                    };
                    // The unit records the fault. Should the guest have mapped it meanwhile, there is none.
                    let _ = memory.check_range(GuestAddress(astray.address), 1, access);
                }));
            }
        }
        news.log_end();
        log::info!("{name} at {at}");
    }
    Ok(())
}
