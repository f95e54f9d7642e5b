// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The chipset: what joins processors, memory and devices, and the description of it all.
//!
//! ```text
//!   new        interrupt routes; on the buses: PCI configuration, sleep and reset registers
//!   add_...    devices, each with its interrupts
//!   describe   addresses for BARs, then ACPI tables; the guest may run
//! ```
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod mmio;
mod paravirtual;
mod saving;
mod served;
mod units;

pub use units::Placement;

use crate::acpi::power::{ResetControl, SLEEP_CONTROL_PORT, SLEEP_PORTS, SleepRegisters};
use crate::acpi::{self, AcpiError, Platform, Segment, SerialPort, Tables, VirtioWindow};
use crate::bus::{Bus, BusError};
use crate::config::Rings;
use crate::confine::Starter;
use crate::interrupts::{
    Gsi, InterruptError, IoApic, KvmMsiVectors, LevelEvent, Line, Pin, Router, SharedLine, Source,
    UnitNumber,
};
use crate::machine::address_map::{
    ACPI_TABLES, AddressMap, COM1_GSI, COM1_PORT, ECAM_BASE, ECAM_BUS, PCI_CONFIG_PORT, PCI_MMIO32,
    WATCHDOG_PORT,
};
use crate::machine::memory::GuestRam;
use crate::machine::stop::Stop;
use crate::machine::vcpu::Buses;
use crate::passthrough::assigned::{AssignedError, Wiring};
use crate::passthrough::{Assigned, PhysicalFunction, Slots, Windows};
use crate::pci::decode::Decoder;
use crate::pci::{
    AssignError, ConfigPorts, Ecam, FunctionAddress, HostBridge, KvmDoorbells, Root, RootError,
    intx, ports,
};
use crate::viommu::paravirtual::Paravirtual;
use crate::viommu::{self, UnitError};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::iommu::EndpointError;
use hvkit_virtio_devices::transport::mmio::MmioError;
use hvkit_virtio_devices::transport::pci::{PciError, VirtioPci};
use hvkit_virtio_devices::worker::{Runner, Threads};
use hvkit_vtd_iommu::spec::RequesterId;
use kvm_ioctls::{Cap, VmFd};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use units::Unit;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

/// Bytes of configuration space of a segment that the guest is told of.
const ECAM_LENGTH: u64 = acpi::BUSES as u64 * ECAM_BUS;

/// How virtio devices reach the guest's memory.
pub type DeviceMemory = Arc<GuestRam>;

/// A chipset that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ChipsetError {
    /// Interrupts.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
    /// Devices in each other's way.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The PCI bus.
    #[error(transparent)]
    Root(#[from] RootError),
    /// Addresses of PCI functions.
    #[error(transparent)]
    Assign(#[from] AssignError),
    /// A virtio device on PCI.
    #[error(transparent)]
    Virtio(#[from] PciError),
    /// A virtio device that is not on PCI.
    #[error(transparent)]
    VirtioMmio(#[from] MmioError),
    /// The kernel does not wait for a virtio device's queues.
    #[error("no event for the queues of a virtio device: {0}")]
    Doorbell(std::io::Error),
    /// Too many virtio devices for the room that there is apart from PCI.
    #[error("--transport mmio: no room for more than {devices} virtio devices")]
    NoWindow {
        /// Those that there are.
        devices: usize,
    },
    /// A virtio device behind the remapping unit, which is on PCI.
    #[error("--transport mmio: a {name} with iommu=on must be on PCI")]
    NotOnPci {
        /// What kind of device.
        name: &'static str,
    },
    /// A passed-through device.
    #[error("--device: {name}: {source}")]
    Device {
        /// What the user calls it.
        name: String,
        /// Why.
        source: AssignedError,
    },
    /// A device of another process.
    #[error("--user-device: {name}: {source}")]
    UserDevice {
        /// What the user calls it.
        name: String,
        /// Why.
        source: AssignedError,
    },
    /// A passed-through device behind the remapping unit, of which the host does not map what it reaches.
    #[error(
        "--device: {name}: the host does not map the guest's memory for it: {source}; is the limit on locked memory \
         (ulimit -l) below the guest's size?"
    )]
    NotFollowed {
        /// What the user calls it.
        name: String,
        /// Why.
        source: std::io::Error,
    },
    /// The remapping unit.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// A device behind the virtio-iommu.
    #[error("virtio-iommu: {0}")]
    Endpoint(#[from] EndpointError),
    /// A device behind the remapping unit of a machine that has none.
    #[error("no remapping unit for a device to be behind")]
    NoUnit,
    /// The description.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
}

/// How many routes the kernel takes.
fn routes(vm: &VmFd) -> u32 {
    u32::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap_or(0)
}

/// As whom the function at `at` makes requests, in its segment.
fn requester(at: FunctionAddress) -> RequesterId {
    RequesterId(at.to_byte().into())
}

/// The chipset of one machine. It lives as long as the machine's devices are to interrupt.
#[derive(Debug)]
pub struct Chipset {
    router: Arc<Router>,
    root: Arc<Mutex<Root>>,
    vm: Arc<VmFd>,
    memory_bus: Arc<Bus>,
    /// Those of virtio devices that are not on PCI.
    windows: Vec<VirtioWindow>,
    map: AddressMap,
    starter: Starter,
    serial: Option<Line>,
    watchdog: Option<u16>,
    /// Those of PCI pins, in use.
    lines: BTreeMap<Gsi, Arc<SharedLine>>,
    units: Vec<Unit>,
    paravirtual: Option<Paravirtual>,
    /// Functions of the host; the bus has them.
    assigned: BTreeMap<FunctionAddress, Weak<Mutex<Assigned>>>,
    /// The unit that has the I/O APIC.
    io_apic_unit: Option<UnitNumber>,
    /// The I/O APIC, where it is not KVM's.
    io_apic: Option<Arc<IoApic>>,
    config: Arc<Mutex<ConfigPorts>>,
    reset: Arc<Mutex<ResetControl>>,
    devices: saving::Devices,
}

impl Chipset {
    /// A chipset on `buses` of the machine `vm`, whose interrupt controllers are KVM's and there
    /// already. `stop` is asked when the guest switches off or resets; `starter` starts the devices' threads.
    pub fn new(
        vm: &Arc<VmFd>,
        buses: &Buses,
        map: &AddressMap,
        stop: &Stop,
        starter: Starter,
    ) -> Result<Self, ChipsetError> {
        let router = Router::new(vm.clone(), routes(vm))?;
        Chipset::on(Arc::new(router), vm, buses, map, stop, starter)
    }

    fn on(
        router: Arc<Router>,
        vm: &Arc<VmFd>,
        buses: &Buses,
        map: &AddressMap,
        stop: &Stop,
        starter: Starter,
    ) -> Result<Self, ChipsetError> {
        let decoder = Decoder::new(
            Arc::clone(&buses.memory),
            [PCI_MMIO32, map.pci_mmio64()],
            Arc::new(KvmDoorbells::new(Arc::clone(vm))),
        );
        let mut root = Root::new(decoder);
        for segment in map.segments() {
            let bridge = Arc::new(Mutex::new(HostBridge));
            root.insert(FunctionAddress::HOST_BRIDGE.in_segment(segment), bridge)?;
        }
        let root = Arc::new(Mutex::new(root));

        let reset = Arc::new(Mutex::new(ResetControl::new(stop.clone())));
        let config = Arc::new(Mutex::new(ConfigPorts::new(
            Arc::clone(&root),
            reset.clone(),
        )));
        let config_ports = ports::PORTS.into();
        buses
            .ports
            .insert(PCI_CONFIG_PORT.into(), config_ports, config.clone())?;
        let sleep = Arc::new(Mutex::new(SleepRegisters::new(stop.clone())));
        buses
            .ports
            .insert(SLEEP_CONTROL_PORT.into(), SLEEP_PORTS, sleep)?;
        for segment in map.segments() {
            let ecam = Ecam::new(Arc::clone(&root), segment);
            let offset = ECAM_LENGTH.saturating_mul(segment.into());
            let base = ECAM_BASE.saturating_add(offset);
            buses
                .memory
                .insert(base, ECAM_LENGTH, Arc::new(Mutex::new(ecam)))?;
        }
        Ok(Chipset {
            assigned: BTreeMap::new(),
            router,
            root,
            vm: Arc::clone(vm),
            memory_bus: Arc::clone(&buses.memory),
            windows: Vec::new(),
            map: map.clone(),
            starter,
            serial: None,
            watchdog: None,
            lines: BTreeMap::new(),
            units: Vec::new(),
            paravirtual: None,
            io_apic_unit: None,
            io_apic: None,
            config,
            reset,
            devices: saving::Devices::default(),
        })
    }

    /// The I/O APIC, where it is not KVM's: the vCPUs tell it which interrupts have ended.
    #[must_use]
    pub fn io_apic(&self) -> Option<&Arc<IoApic>> {
        self.io_apic.as_ref()
    }

    /// Says that there is a serial port at [`COM1_PORT`], and lets `event` be its interrupt.
    pub fn add_serial(&mut self, event: EventFd) -> Result<(), ChipsetError> {
        let router = Arc::clone(&self.router);
        self.serial = Some(Line::new(router, Gsi(COM1_GSI), event)?);
        Ok(())
    }

    /// Says that there is a watchdog at [`WATCHDOG_PORT`].
    pub fn add_watchdog(&mut self) {
        self.watchdog = Some(WATCHDOG_PORT);
    }

    /// Puts a virtio device on the PCI bus. Its DMA goes to `memory`, its queues are served by
    /// threads of their own.
    pub fn add_virtio(
        &mut self,
        place: Placement,
        device: Box<dyn Device<DeviceMemory>>,
        memory: DeviceMemory,
    ) -> Result<FunctionAddress, ChipsetError> {
        let at = self.free(place)?;
        let function = self.virtio(at, place, device, memory)?;
        self.put(at, function)
    }

    /// Puts a virtio device's function on the bus at `at`, which is said again.
    fn put<A: GuestAddressSpace + Send + 'static>(
        &mut self,
        at: FunctionAddress,
        function: VirtioPci<A>,
    ) -> Result<FunctionAddress, ChipsetError> {
        let function = Arc::new(Mutex::new(function));
        self.root().insert(at, function.clone())?;
        self.devices.insert(at, function);
        Ok(at)
    }

    /// A virtio device as the function that will be at `at`.
    fn virtio<A: GuestAddressSpace>(
        &mut self,
        at: FunctionAddress,
        place: Placement,
        device: Box<dyn Device<A>>,
        memory: A,
    ) -> Result<VirtioPci<A>, ChipsetError> {
        let (id, unit) = (requester(at), place.unit);
        let router = Arc::clone(&self.router);
        let vectors = |count| {
            let vectors = KvmMsiVectors::new(router, count)?;
            Ok::<_, ChipsetError>(Arc::new(vectors.requested_by(Source { id, unit })) as _)
        };
        let threads = self.device_threads();
        let pin = self.pin(at)?;
        let mut function = VirtioPci::with_vectors(device, memory, threads, vectors)?;
        if place.rings == Rings::Split {
            function = function.without_packed_rings();
        }
        Ok(function
            .with_interrupt_line(Arc::new(pin))
            .with_report(move |why| log::warn!("virtio device {at} stopped: {why}"))
            .with_trouble_report(move |why| log::error!("virtio device {at}: {why}")))
    }

    /// Puts a function of the host on the PCI bus, which messages call `name`. Its registers are
    /// mapped into the guest by `slots`.
    pub fn add_passthrough(
        &mut self,
        place: Placement,
        name: &str,
        physical: Box<dyn PhysicalFunction>,
        slots: Arc<dyn Slots>,
    ) -> Result<FunctionAddress, ChipsetError> {
        let at = self.free(place)?;
        let [low, high] = self.map.pci_windows(place.segment);
        let (id, unit) = (requester(at), place.unit);
        let router = &self.router;
        let pin = physical
            .has_pin()
            .then(|| LevelEvent::new(Arc::clone(router), Gsi(intx::gsi(at, 0))))
            .transpose()?;
        let length = |window: &std::ops::Range<u64>| window.end.saturating_sub(window.start);
        let wiring = Wiring {
            vectors: &mut |count| {
                let vectors = KvmMsiVectors::new(Arc::clone(router), count)?;
                Ok(Arc::new(vectors.requested_by(Source { id, unit })))
            },
            pin,
            slots,
            windows: Windows {
                low: length(&low),
                high: length(&high),
            },
        };
        let function = Assigned::new(physical, wiring).map_err(|source| ChipsetError::Device {
            name: name.to_owned(),
            source,
        })?;
        let function = Arc::new(Mutex::new(function));
        self.assigned.insert(at, Arc::downgrade(&function));
        self.root().insert(at, function)?;
        Ok(at)
    }

    /// Takes the function of the host at `at` from the guest, as if it had been pulled out.
    pub fn take_away(&mut self, at: FunctionAddress) {
        let function = self.assigned.remove(&at).and_then(|f| f.upgrade());
        // First its place on the buses: who comes later finds nothing.
        self.root().remove(at);
        if let Some(function) = function {
            function
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .give_up();
        }
    }

    /// The interrupt pin INTA# of the function at `at`.
    fn pin(&mut self, at: FunctionAddress) -> Result<Pin, InterruptError> {
        self.shared_pin(Gsi(intx::gsi(at, 0)))
    }

    /// One more pin on the line `gsi`.
    fn shared_pin(&mut self, gsi: Gsi) -> Result<Pin, InterruptError> {
        let line = match self.lines.entry(gsi) {
            Entry::Occupied(line) => line.into_mut(),
            Entry::Vacant(none) => none.insert(SharedLine::new(Arc::clone(&self.router), gsi)?),
        };
        Ok(line.pin())
    }

    /// Places all devices and describes a machine of `cpus` processors. To be written to guest
    /// memory before the guest runs; no device can be added after this.
    pub fn describe(&mut self, cpus: u32) -> Result<Tables, ChipsetError> {
        let mut root = self.root();
        let mut segments = Vec::new();
        for segment in self.map.segments() {
            let [low, high] = self.map.pci_windows(segment);
            root.assign(segment, low.clone(), high.clone())?;
            segments.push(Segment {
                windows: vec![low, high],
                intx: root.route_intx(segment),
            });
        }
        drop(root);
        let units: Vec<_> = self
            .units
            .iter()
            .map(|unit| unit.described.clone())
            .collect();
        let mut others: Vec<_> = self.paravirtual.iter().map(Paravirtual::table).collect();
        if !units.is_empty() {
            others.push(viommu::table(&units, self.io_apic_unit)?);
        }
        let platform = Platform {
            // The APIC id is the vCPU's number.
            apic_ids: (0..cpus).collect(),
            has_pics: self.io_apic.is_none(),
            segments,
            serial: self.serial.is_some().then_some(SerialPort {
                port: COM1_PORT,
                gsi: COM1_GSI,
            }),
            watchdog: self.watchdog,
            virtio: self.windows.clone(),
            others,
        };
        Ok(acpi::build(&platform, ACPI_TABLES)?)
    }

    fn root(&self) -> MutexGuard<'_, Root> {
        self.root.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread for each worker.
    fn device_threads(&self) -> Box<dyn Runner> {
        let starter = self.starter.clone();
        Box::new(Threads::new(move |name, body| starter.start(name, body)))
    }
}

impl Drop for Chipset {
    fn drop(&mut self) {
        // Devices end here, not with the last of those who could still reach them.
        self.devices.clear();
        self.root().clear();
        self.remove_windows();
    }
}
