// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of the machine, and the description of them that the guest finds in its memory.

use super::address_map::{AddressMap, COM1_PORT, KEYBOARD_COMMAND_PORT, PANIC_PORT};
use super::devices::{self, Opened};
use super::error::MachineError;
use super::keyboard::KeyboardCommand;
use super::panic_port::PanicPort;
use super::stop::Stop;
use super::vcpu::Buses;
use super::vm::Vm;
use crate::acpi::power::{RESET_CODE, RESET_VECTOR};
use crate::bus::{Bus, BusDevice, BusError};
use crate::chipset::Chipset;
use crate::config::Config;
use crate::console::Console;
use crate::console::serial;
use crate::interrupts::IoApic;
use crate::passthrough::vfio::{Contents, DmaSpace, KvmVfio};
use crate::passthrough::{KvmSlots, PassthroughError, Reclaim, Selected};
use kvm_ioctls::Cap;
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

/// What answers the guest.
#[derive(Debug)]
pub(super) struct Platform {
    buses: Buses,
    /// Its interrupts end with it.
    chipset: Chipset,
    /// Held for what they listen to.
    _reclaims: Vec<Reclaim>,
    rsdp: u64,
}

impl Platform {
    /// The chipset, what is on it, and its description in the memory of `vm` for `cpus` processors.
    pub(super) fn new(
        vm: &Vm,
        map: &AddressMap,
        cpus: u8,
        console: Option<&Console>,
        config: &Config,
        assigned: &[Selected],
        stop: &Stop,
    ) -> Result<Self, MachineError> {
        let buses = Buses {
            ports: Arc::new(Bus::default()),
            memory: Arc::new(Bus::default()),
        };
        let mut chipset = match &config.vtd {
            Some(vtd) => Chipset::with_remapping_unit(vtd, vm, &buses, map, stop)?,
            None => Chipset::new(vm.fd(), &buses, map, stop)?,
        };
        if let Some(console) = console {
            let interrupt = console
                .interrupt()
                .try_clone()
                .map_err(MachineError::Event)?;
            chipset.add_serial(interrupt)?;
            buses
                .ports
                .insert(COM1_PORT.into(), serial::PORTS, console.serial())?;
        }
        port(
            &buses,
            KEYBOARD_COMMAND_PORT,
            KeyboardCommand::new(stop.clone()),
        )?;
        port(&buses, PANIC_PORT, PanicPort::new(stop.clone()))?;
        let memory = Arc::new(vm.ram().clone());
        for (name, device) in devices::open(config)? {
            let at = match device {
                Opened::Direct(device) => chipset.add_virtio(device, Arc::clone(&memory))?,
                Opened::Translated(device) => chipset.add_translated_virtio(device)?,
            };
            log::info!("{name} at {at}");
        }
        let reclaims = add_devices(&mut chipset, vm, config, assigned, stop)?;
        let tables = chipset.describe(cpus)?;
        for (address, bytes) in [
            (tables.address, &tables.bytes[..]),
            (RESET_VECTOR, &RESET_CODE),
        ] {
            vm.ram()
                .write_slice(bytes, GuestAddress(address))
                .map_err(|_| MachineError::NoRoomForTables { address })?;
        }
        Ok(Platform {
            buses,
            chipset,
            _reclaims: reclaims,
            rsdp: tables.address,
        })
    }

    /// What the vCPUs' exits are answered by.
    pub(super) fn buses(&self) -> &Buses {
        &self.buses
    }

    /// The I/O APIC, if it is ours.
    pub(super) fn io_apic(&self) -> Option<Arc<IoApic>> {
        self.chipset.io_apic().cloned()
    }

    /// Where the ACPI root pointer is.
    pub(super) fn rsdp(&self) -> u64 {
        self.rsdp
    }
}

/// Devices of the host, if the user named some.
fn add_devices(
    chipset: &mut Chipset,
    vm: &Vm,
    config: &Config,
    devices: &[Selected],
    stop: &Stop,
) -> Result<Vec<Reclaim>, MachineError> {
    let mut reclaims = Vec::with_capacity(devices.len());
    if devices.is_empty() {
        return Ok(reclaims);
    }
    let limit = vm.fd().check_extension_int(Cap::NrMemslots);
    let limit = u32::try_from(limit).unwrap_or(0);
    let slots = KvmSlots::new(Arc::clone(vm.fd()), vm.slots(), limit);
    let slots = Arc::new(slots.ok_or(PassthroughError::Slots)?);
    let kvm = KvmVfio::new(vm.fd())?;
    let shared = match config.vtd {
        None => Some(DmaSpace::new(&kvm, vm.ram(), Contents::Everything)?),
        Some(_) => {
            apart(devices)?;
            None
        }
    };
    for Selected { name, host } in devices {
        let space = match &shared {
            Some(shared) => Arc::clone(shared),
            None => DmaSpace::new(&kvm, vm.ram(), Contents::Followed)?,
        };
        let physical = space.open(host)?;
        let reclaim = Reclaim::watch(name, stop.clone()).map_err(MachineError::Event)?;
        physical.tell_when_wanted(reclaim.event());
        reclaims.push(reclaim);
        let (physical, slots) = (Box::new(physical), Arc::clone(&slots) as _);
        let at = match &config.vtd {
            None => chipset.add_passthrough(name, physical, slots)?,
            Some(vtd) => {
                space.check_width(host, vtd.width.bits())?;
                chipset.add_translated_passthrough(name, physical, slots, Box::new(space))?
            }
        };
        log::info!("{name} ({}) passed through at {at}", host.address);
    }
    Ok(reclaims)
}

/// Whether the host can tell each device's DMA from the others'.
fn apart(devices: &[Selected]) -> Result<(), PassthroughError> {
    for (index, Selected { host, .. }) in devices.iter().enumerate() {
        let same = |other: &&Selected| other.host.group == host.group;
        if let Some(other) = devices.iter().take(index).find(same) {
            return Err(PassthroughError::OneSpace {
                address: host.address.clone(),
                other: other.host.address.clone(),
                group: host.group,
            });
        }
    }
    Ok(())
}

/// A device of one port.
fn port(buses: &Buses, port: u16, device: impl BusDevice + 'static) -> Result<(), BusError> {
    buses
        .ports
        .insert(port.into(), 1, Arc::new(Mutex::new(device)))
}
