// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of the machine, each where the address map says.

use super::address_map::{AddressMap, COM1_PORT, KEYBOARD_COMMAND_PORT, PANIC_PORT};
use super::error::MachineError;
use super::keyboard::KeyboardCommand;
use super::panic_port::PanicPort;
use super::stop::Stop;
use super::vcpu::Buses;
use super::vm::Vm;
use crate::bus::Bus;
use crate::chipset::Chipset;
use crate::config::{Access, Disk};
use crate::console::Console;
use hvkit_virtio_devices::block::{self, Block};
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};

/// What answers the guest.
#[derive(Debug)]
pub(super) struct Platform {
    buses: Buses,
    /// Keeps interrupts connected.
    _chipset: Chipset,
    rsdp: u64,
}

impl Platform {
    pub(super) fn new(
        vm: &Arc<Vm>,
        map: &AddressMap,
        cpus: u8,
        console: Option<&Console>,
        disks: &[Disk],
        stop: &Stop,
    ) -> Result<Self, MachineError> {
        let buses = Buses {
            ports: Arc::new(Bus::default()),
            memory: Arc::new(Bus::default()),
        };
        let mut chipset = Chipset::new(vm.fd(), &buses, map, stop)?;
        if let Some(console) = console {
            buses.ports.insert(COM1_PORT.into(), 8, console.serial())?;
            let interrupt = console.interrupt().try_clone();
            chipset.add_serial(interrupt.map_err(MachineError::Event)?)?;
        }
        for disk in disks {
            let device = Box::new(Block::open(options(disk))?);
            chipset.add_virtio(device, Arc::new(vm.ram().clone()))?;
        }
        let keyboard = KeyboardCommand::new(stop.clone());
        buses.ports.insert(
            KEYBOARD_COMMAND_PORT.into(),
            1,
            Arc::new(Mutex::new(keyboard)),
        )?;
        let panic = PanicPort::new(stop.clone());
        buses
            .ports
            .insert(PANIC_PORT.into(), 1, Arc::new(Mutex::new(panic)))?;
        let tables = chipset.describe(cpus)?;
        vm.ram()
            .write_slice(&tables.bytes, GuestAddress(tables.address))
            .map_err(|_| MachineError::NoRoomForTables {
                address: tables.address,
            })?;
        Ok(Platform {
            buses,
            _chipset: chipset,
            rsdp: tables.address,
        })
    }

    pub(super) fn buses(&self) -> &Buses {
        &self.buses
    }

    /// Where the guest finds the root of its description.
    pub(super) fn rsdp(&self) -> Option<u64> {
        Some(self.rsdp)
    }
}

fn options(disk: &Disk) -> block::Options {
    let access = match disk.access {
        Access::ReadOnly => block::Access::ReadOnly,
        Access::ReadWrite => block::Access::ReadWrite,
    };
    block::Options::new(&disk.path).with_access(access)
}
