// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The chipset's remapping units, and devices behind them.

use super::{Chipset, ChipsetError, requester};
use crate::config::{Rings, Scope, Vtd};
use crate::confine::Starter;
use crate::interrupts::{
    InterruptError, IoApic, Pins, Router, Source, SplitKernel, UnitNumber, Watcher, io_apic,
};
use crate::machine::address_map::{AddressMap, IO_APIC_BASE};
use crate::machine::stop::Stop;
use crate::machine::vcpu::Buses;
use crate::machine::vm::Vm;
use crate::passthrough::{PhysicalFunction, Slots};
use crate::pci::FunctionAddress;
use crate::viommu::{self, DmaTable, RemappingUnit, TranslatedMemory};
use hvkit_virtio_devices::device::Device;
use hvkit_vtd_iommu::emulation::WINDOW;
use std::sync::{Arc, Mutex};

/// Where a device goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Its segment.
    pub segment: u16,
    /// The remapping unit in whose scope it is.
    pub unit: Option<UnitNumber>,
    /// What its queues can be, if it is a virtio device.
    pub rings: Rings,
}

/// A remapping unit, and what the guest is told of it.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) unit: RemappingUnit,
    pub(super) described: viommu::Described,
}

impl Chipset {
    /// The same, with remapping units on the memory bus. If they remap interrupts, the I/O APIC is there too, and KVM
    /// has only local APICs ([`Vm::add_local_apics`]); else it has all controllers.
    pub fn with_remapping_units(
        vtds: &[Vtd],
        vm: &Vm,
        buses: &Buses,
        map: &AddressMap,
        stop: &Stop,
        starter: Starter,
    ) -> Result<Self, ChipsetError> {
        let io_apic_unit = viommu::plan::unit_of_io_apic(vtds);
        let mut chipset = if vtds.iter().any(|vtd| vtd.interrupts) {
            let watcher =
                Watcher::start(stop, starter.confiner()).map_err(InterruptError::Event)?;
            let watcher = Arc::new(watcher);
            let io_apic = Arc::new(IoApic::new(Source {
                id: viommu::IO_APIC,
                unit: io_apic_unit,
            }));
            let fd = Arc::clone(vm.fd());
            let kernel = SplitKernel::new(fd, Arc::clone(&io_apic), Arc::clone(&watcher));
            let router = Router::with_pins(Arc::new(kernel), super::routes(vm.fd()), Pins::Ours)?;
            let router = Arc::new(router);
            io_apic.connect(&router);
            let window = Arc::new(Mutex::new(io_apic::Window(Arc::clone(&io_apic))));
            buses.memory.insert(IO_APIC_BASE, io_apic::WINDOW, window)?;
            let units = units(vtds, vm, map, &router, stop)?;
            viommu::remap(&units, &router, &watcher);
            let mut chipset = Chipset::on(router, vm.fd(), buses, map, stop, starter)?;
            chipset.io_apic = Some(io_apic);
            chipset.add_units(vtds, units, stop)?;
            chipset
        } else {
            let mut chipset = Chipset::new(vm.fd(), buses, map, stop, starter)?;
            let units = units(vtds, vm, map, &chipset.router, stop)?;
            chipset.add_units(vtds, units, stop)?;
            chipset
        };
        chipset.io_apic_unit = io_apic_unit;
        Ok(chipset)
    }

    /// Puts the registers of `units` on the memory bus.
    fn add_units(
        &mut self,
        vtds: &[Vtd],
        units: Vec<RemappingUnit>,
        stop: &Stop,
    ) -> Result<(), ChipsetError> {
        for ((number, vtd), unit) in (0..).map(UnitNumber).zip(vtds).zip(units) {
            let window = viommu::Window::new(Arc::clone(unit.shared()), stop);
            let window = Arc::new(Mutex::new(window));
            self.memory_bus
                .insert(viommu::registers(number), WINDOW.into(), window)?;
            let described = viommu::Described {
                options: *unit.options(),
                segment: vtd.segment,
                scope: vtd.scope,
                functions: Vec::new(),
            };
            self.units.push(Unit { unit, described });
        }
        Ok(())
    }

    /// The same behind its remapping unit, which translates all of its DMA.
    pub fn add_translated_virtio(
        &mut self,
        place: Placement,
        device: Box<dyn Device<TranslatedMemory>>,
    ) -> Result<FunctionAddress, ChipsetError> {
        let at = self.free(place)?;
        let memory = self.unit(place)?.memory_of(requester(at));
        let function = self.virtio(at, place, device, memory)?;
        // A guest's driver would map each request's table, and take it back: a fourth of what a disk's request costs in strict mode.
        let function = function.with_access_platform().without_indirect_tables();
        self.put(at, function)
    }

    /// The same behind its remapping unit: `table` is the device's in the host, and follows the guest's.
    pub fn add_translated_passthrough(
        &mut self,
        place: Placement,
        name: &str,
        physical: Box<dyn PhysicalFunction>,
        slots: Arc<dyn Slots>,
        table: Box<dyn DmaTable>,
    ) -> Result<FunctionAddress, ChipsetError> {
        let unit = self.unit(place)?.clone();
        let at = self.add_passthrough(place, name, physical, slots)?;
        unit.follow(requester(at), name, table)
            .map_err(|source| ChipsetError::NotFollowed {
                name: name.to_owned(),
                source,
            })?;
        Ok(at)
    }

    /// The first device that nothing is at, from now on in the scope of its unit.
    pub(super) fn free(&mut self, place: Placement) -> Result<FunctionAddress, ChipsetError> {
        let at = self.root().free(place.segment)?;
        if let Some(number) = place.unit {
            let unit = self.units.get_mut(number.0).ok_or(ChipsetError::NoUnit)?;
            if unit.described.scope == Scope::Named {
                unit.described.functions.push(at);
            }
        }
        Ok(at)
    }

    /// The unit in whose scope `place` is.
    pub(super) fn unit(&self, place: Placement) -> Result<&RemappingUnit, ChipsetError> {
        let unit = place.unit.and_then(|number| self.units.get(number.0));
        unit.map(|unit| &unit.unit).ok_or(ChipsetError::NoUnit)
    }
}

/// The units of `vtds`, after power-on.
fn units(
    vtds: &[Vtd],
    vm: &Vm,
    map: &AddressMap,
    router: &Arc<Router>,
    stop: &Stop,
) -> Result<Vec<RemappingUnit>, ChipsetError> {
    let mut units = Vec::with_capacity(vtds.len());
    for (number, vtd) in (0..).map(UnitNumber).zip(vtds) {
        let options = viommu::unit_options(vtd, map.address_bits())?;
        units.push(RemappingUnit::new(number, options, vm.ram(), router, stop)?);
    }
    Ok(units)
}
