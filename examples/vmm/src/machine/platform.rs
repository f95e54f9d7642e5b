// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of the machine, each where the address map says.

use super::address_map::{AddressMap, COM1_GSI, COM1_PORT, KEYBOARD_COMMAND_PORT, PANIC_PORT};
use super::error::MachineError;
use super::keyboard::KeyboardCommand;
use super::kvm::KvmError;
use super::panic_port::PanicPort;
use super::stop::Stop;
use super::vcpu::Buses;
use super::vm::Vm;
use crate::bus::Bus;
use crate::config::Disk;
use crate::console::Console;
use std::sync::{Arc, Mutex};

/// What answers the guest.
#[derive(Debug)]
pub(super) struct Platform {
    buses: Buses,
}

impl Platform {
    pub(super) fn new(
        vm: &Arc<Vm>,
        _map: &AddressMap,
        _cpus: u8,
        console: Option<&Console>,
        _disks: &[Disk],
        stop: &Stop,
    ) -> Result<Self, MachineError> {
        let buses = Buses {
            ports: Arc::new(Bus::default()),
            memory: Arc::new(Bus::default()),
        };
        if let Some(console) = console {
            let serial = console.serial();
            vm.fd()
                .register_irqfd(console.interrupt(), COM1_GSI)
                .map_err(KvmError::refused("connect an interrupt"))?;
            buses.ports.insert(COM1_PORT.into(), 8, serial)?;
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
        Ok(Platform { buses })
    }

    pub(super) fn buses(&self) -> &Buses {
        &self.buses
    }

    pub(super) fn rsdp(&self) -> Option<u64> {
        None
    }
}
