// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices of the machine, and the description of them that the guest finds in its memory.

use super::address_map::{AddressMap, COM1_PORT, KEYBOARD_COMMAND_PORT, PANIC_PORT, WATCHDOG_PORT};
use super::counters::{self, Counted};
use super::devices::{self, DeviceError, Opened};
use super::error::MachineError;
use super::keyboard::KeyboardCommand;
use super::line_socket::LineSocket;
use super::panic_port::PanicPort;
use super::pmem::Placed;
use super::stop::Stop;
use super::user_devices;
use super::vcpu::Buses;
use super::vm::Vm;
use super::watchdog;
use crate::acpi::Tables;
use crate::acpi::power::{RESET_CODE, RESET_VECTOR};
use crate::bus::{Bus, BusDevice, BusError};
use crate::chipset::{Chipset, ChipsetError, Placement};
use crate::config::{self, Config, Output, Place, Transport, VirtioIommu, Watchdog};
use crate::confine::{Confiner, Nursery};
use crate::console::Console;
use crate::console::serial;
use crate::console::tty::TtyPort;
use crate::dirty_log::{DirtyLog, Pages, Processors, Writer};
use crate::interrupts::IoApic;
use crate::output_file::{self, NotEmptied, ToEmpty};
use crate::passthrough::dirty::Devices;
use crate::passthrough::space::{Contents, DmaSpace, KvmVfio};
use crate::passthrough::{Interface, KvmSlots, PassthroughError, Reclaim, Selected};
use crate::served::ServedError;
use crate::snapshot::{SnapshotError, WatchdogState};
use crate::viommu::plan::unit_of;
use crate::wake::Wake;
use kvm_ioctls::Cap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What answers the guest.
#[derive(Debug)]
pub(super) struct Platform {
    /// Before what it asks.
    _dirty_log: Option<LineSocket>,
    _counters: Option<LineSocket>,
    buses: Buses,
    /// Its interrupts end with it.
    chipset: Chipset,
    reclaim: Reclaim,
    _sockets: Vec<LineSocket>,
    watchdog: Option<watchdog::Timer>,
    console_file: Option<ToEmpty>,
    bitmap: Option<ToEmpty>,
    /// Dropped after the chipset, whose devices' threads it starts.
    _nursery: Nursery,
    tables: Tables,
}

/// What every thread of a machine is given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Threads<'a> {
    /// By which it ends the machine.
    pub(super) stop: &'a Stop,
    /// By which it is confined.
    pub(super) confiner: &'a Confiner,
}

/// What devices stand on, opened before the machine was made.
pub(super) struct Hosts<'a> {
    pub(super) console: Option<&'a Console>,
    pub(super) tty: Option<&'a TtyPort>,
    pub(super) pmems: Vec<Placed>,
    pub(super) assigned: &'a [Selected],
}

impl Platform {
    /// The chipset, what is on it, and its description in the memory of `vm` for `cpus` processors.
    pub(super) fn new(
        vm: &Arc<Vm>,
        map: &AddressMap,
        cpus: u32,
        config: &Config,
        hosts: Hosts<'_>,
        threads: Threads<'_>,
    ) -> Result<Self, MachineError> {
        let Threads { stop, confiner } = threads;
        let buses = Buses {
            ports: Arc::new(Bus::default()),
            memory: Arc::new(Bus::default()),
        };
        let nursery = Nursery::new(confiner, stop)?;
        let starter = nursery.starter();
        let mut chipset = match &config.vtds[..] {
            [] => Chipset::new(vm.fd(), &buses, map, stop, starter)?,
            vtds => Chipset::with_remapping_units(vtds, vm, &buses, map, stop, starter)?,
        };
        if let Some(console) = hosts.console {
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
        let limit = u32::try_from(vm.fd().check_extension_int(Cap::NrMemslots)).unwrap_or(0);
        let slots = KvmSlots::new(Arc::clone(vm.fd()), vm.slots(), limit).map(Arc::new);
        let slots = slots.as_ref();
        let devices::Devices {
            devices: mut opened,
            sockets,
            to_empty: console_file,
        } = devices::open(
            config,
            vm,
            &memory,
            slots.map(|slots| &**slots),
            confiner,
            hosts.tty,
        )?;
        for (placed, pmem) in hosts.pmems.into_iter().zip(&config.pmems) {
            opened.push((
                "persistent memory",
                pmem.place.clone(),
                Opened::Direct(Box::new(placed.device)),
            ));
        }
        let mut counted = Vec::new();
        if config.virtio_iommu == VirtioIommu::Present {
            let iommu = Chipset::virtio_iommu()?;
            let queues = iommu.counters().to_vec();
            let at = chipset.add_virtio_iommu(iommu, Arc::clone(&memory))?;
            log::info!("virtio-iommu at {at}");
            counted.push(Counted {
                device: "virtio-iommu",
                at: at.to_string(),
                queues,
            });
        }
        for (name, place, device) in opened {
            let queues = device.counters();
            let place = placement(config, &place);
            let memory = Arc::clone(&memory);
            // Not within the log's arguments: where nobody listens, those are not computed.
            let at = match (device, config.transport) {
                (Opened::Direct(device), Transport::Pci) => {
                    chipset.add_virtio(place, device, memory)?.to_string()
                }
                (Opened::Translated(device), Transport::Pci) => {
                    chipset.add_translated_virtio(place, device)?.to_string()
                }
                (Opened::Mapped(device), Transport::Pci) => chipset
                    .add_mapped_virtio(place, device, &memory)?
                    .to_string(),
                (Opened::Told(device, table, served), Transport::Pci) => {
                    let at = chipset.add_translated_virtio(place, device)?;
                    let option = served.what.option();
                    let socket = served.socket;
                    chipset
                        .follow(place, at, &socket.display().to_string(), Box::new(table))?
                        .map_err(|source| ServedError::Memory {
                            option,
                            socket,
                            source,
                        })
                        .map_err(DeviceError::Served)?;
                    at.to_string()
                }
                (Opened::Direct(device), Transport::Mmio) => {
                    format!(
                        "{:#x}",
                        chipset.add_mmio_virtio(place.rings, device, memory)?
                    )
                }
                (Opened::Translated(_) | Opened::Mapped(_) | Opened::Told(..), Transport::Mmio) => {
                    return Err(ChipsetError::NotOnPci { name }.into());
                }
            };
            log::info!("{name} at {at}");
            counted.push(Counted {
                device: name,
                at,
                queues,
            });
        }
        let (reclaim, spaces) = add_devices(&mut chipset, vm, config, hosts.assigned, slots)?;
        user_devices::add(&mut chipset, vm.ram(), config, slots)?;
        let watchdog = match config.watchdog {
            Watchdog::Absent => None,
            Watchdog::Present => {
                let (timer, registers) = watchdog::Timer::start(stop.clone(), confiner.clone())
                    .map_err(MachineError::Event)?;
                let registers = Arc::new(Mutex::new(registers));
                let port = WATCHDOG_PORT.into();
                buses.ports.insert(port, watchdog::PORTS, registers)?;
                chipset.add_watchdog();
                Some(timer)
            }
        };
        let tables = chipset.describe(cpus)?;
        let log = config.dirty_log.as_ref();
        let log = log
            .map(|log| listen(log, vm, spaces, confiner))
            .transpose()?;
        let (log, bitmap) = log.unzip();
        let counters = config.counters.as_ref().map(|path| {
            let obey = move |line: &str, _: &Wake| counters::obey(line, &counted);
            LineSocket::listen(path, "counters", confiner.clone(), obey).map_err(|source| {
                let path = path.clone();
                MachineError::Counters { path, source }
            })
        });
        Ok(Platform {
            _dirty_log: log,
            _counters: counters.transpose()?,
            buses,
            chipset,
            reclaim,
            _sockets: sockets,
            watchdog,
            console_file,
            bitmap: bitmap.flatten(),
            _nursery: nursery,
            tables,
        })
    }

    /// What the vCPUs' exits are answered by.
    pub(super) fn buses(&self) -> &Buses {
        &self.buses
    }

    /// Empties the files that devices and logs write to: the machine starts.
    pub(super) fn empty_files(&self) -> Result<(), MachineError> {
        if let Some(file) = &self.console_file {
            file.empty().map_err(DeviceError::from)?;
        }
        if let Some(file) = &self.bitmap {
            let failed = |NotEmptied { path, source, .. }| MachineError::DirtyLog { path, source };
            file.empty().map_err(failed)?;
        }
        Ok(())
    }

    /// The I/O APIC, if it is ours.
    pub(super) fn io_apic(&self) -> Option<Arc<IoApic>> {
        self.chipset.io_apic().cloned()
    }

    /// The chipset, with all devices.
    pub(super) fn chipset(&self) -> &Chipset {
        &self.chipset
    }

    /// Puts what a BIOS would have left into the memory of `vm`, and says where the ACPI root pointer is.
    pub(super) fn write_tables(&self, vm: &Vm) -> Result<u64, MachineError> {
        let Tables { address, bytes } = &self.tables;
        for (address, bytes) in [(*address, &bytes[..]), (RESET_VECTOR, &RESET_CODE)] {
            vm.ram()
                .write_slice(bytes, GuestAddress(address))
                .map_err(|_| MachineError::NoRoomForTables { address })?;
        }
        Ok(*address)
    }

    /// Readable when the host wants a device back.
    pub(super) fn reclaim(&self) -> &Reclaim {
        &self.reclaim
    }

    /// Gives the host the devices that it wants back, and the guest no other for them.
    pub(super) fn give_back(&mut self) {
        while let Some((name, at)) = self.reclaim.wanted() {
            self.chipset.take_away(at);
            log::warn!(
                "the host wanted {name} back: there is nothing at {at} of the guest's any more"
            );
        }
    }

    /// The watchdog's state, if there is one.
    pub(super) fn save_watchdog(&self) -> Option<WatchdogState> {
        self.watchdog.as_ref().map(watchdog::Timer::save)
    }

    /// Has the watchdog stand still, as the machine does.
    pub(super) fn hold_watchdog(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.hold();
        }
    }

    /// The machine goes on, and so does its watchdog.
    pub(super) fn go_on_watchdog(&self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.go_on();
        }
    }

    /// Gives the watchdog its state back.
    pub(super) fn restore_watchdog(
        &self,
        state: Option<&WatchdogState>,
    ) -> Result<(), SnapshotError> {
        match (&self.watchdog, state) {
            (Some(watchdog), Some(state)) => watchdog.restore(state),
            (None, None) => {}
            (Some(_), None) => return Err(SnapshotError::only_here("a watchdog")),
            (None, Some(_)) => return Err(SnapshotError::only_saved("a watchdog")),
        }
        Ok(())
    }
}

/// Devices of the host, if the user named some.
fn add_devices(
    chipset: &mut Chipset,
    vm: &Vm,
    config: &Config,
    devices: &[Selected],
    slots: Option<&Arc<KvmSlots>>,
) -> Result<(Reclaim, Vec<Shared>), MachineError> {
    let mut reclaim = Reclaim::new().map_err(MachineError::Event)?;
    let mut spaces: Vec<Shared> = Vec::new();
    if devices.is_empty() {
        return Ok((reclaim, spaces));
    }
    let followed = match config.dirty_log {
        None => Contents::Followed,
        Some(_) => Contents::Remembered,
    };
    let slots = slots.ok_or(PassthroughError::Slots)?;
    let kvm = KvmVfio::new(vm.fd())?;
    let places = config
        .devices
        .iter()
        .map(|device| placement(config, &device.place));
    let places: Vec<_> = devices.iter().zip(places).collect();
    apart(&places)?;
    for (selected, place) in places {
        let Selected {
            name,
            host,
            interface,
        } = selected;
        let unit = place.unit.and_then(|number| config.vtds.get(number.0));
        let contents = match unit {
            Some(_) => followed,
            None => Contents::Everything,
        };
        // Those that no unit of the guest's is in front of share one.
        let joined = spaces
            .iter_mut()
            .find(|of| unit.is_none() && of.joins == Some(*interface));
        let space = match joined {
            Some(shared) => {
                shared.names.push(name.clone());
                Arc::clone(&shared.space)
            }
            None => {
                let space = DmaSpace::new(&kvm, vm.ram(), contents, *interface)?;
                spaces.push(Shared {
                    joins: unit.is_none().then_some(*interface),
                    names: vec![name.clone()],
                    space: Arc::clone(&space),
                });
                space
            }
        };
        let physical = space.open(host)?;
        let wanted = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(MachineError::Event)?;
        physical.tell_when_wanted(&wanted);
        let (physical, slots) = (Box::new(physical), Arc::clone(slots) as _);
        let at = match unit {
            None => chipset.add_passthrough(place, name, physical, slots)?,
            Some(vtd) => {
                space.check_width(host, vtd.width.bits())?;
                let table = Box::new(space);
                chipset.add_translated_passthrough(place, name, physical, slots, table)?
            }
        };
        reclaim
            .lend(name, at, wanted)
            .map_err(MachineError::Event)?;
        log::info!(
            "{name} ({}) passed through at {at}, by {interface}",
            host.address
        );
    }
    Ok((reclaim, spaces))
}

/// A space, and the devices in it.
struct Shared {
    /// By which interface another may join; none if the space is one device's.
    joins: Option<Interface>,
    names: Vec<String>,
    space: Arc<DmaSpace>,
}

/// Answers at the socket of `log`, which may have a file that is to be emptied, what is written to the memory of `vm`, by devices in `spaces` too.
fn listen(
    log: &config::DirtyLog,
    vm: &Arc<Vm>,
    spaces: Vec<Shared>,
    confiner: &Confiner,
) -> Result<(LineSocket, Option<ToEmpty>), MachineError> {
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| MachineError::DirtyLog { path, source }
    };
    let bitmap = log.bitmap.as_ref().map(|path| {
        // A machine before this one may have had more memory: nothing goes on here.
        let file = output_file::open("--dirty-log bitmap", path, Output::Anew);
        file.map_err(failed(path))
    });
    let (bitmap, to_empty) = bitmap.transpose()?.unzip();
    let mut writers: Vec<Box<dyn Writer>> = vec![Box::new(Processors::new(Arc::clone(vm)))];
    for Shared { names, space, .. } in spaces {
        writers.push(Box::new(Devices::new(names, space)));
    }
    let mut answers = DirtyLog::new(Pages::none(vm.memory()), writers, bitmap);
    let obey = move |line: &str, _: &Wake| answers.obey(line);
    let socket = LineSocket::listen(&log.socket, "dirty-log", confiner.clone(), obey);
    Ok((socket.map_err(failed(&log.socket))?, to_empty.flatten()))
}

/// Where the user has a device.
pub(super) fn placement(config: &Config, place: &Place) -> Placement {
    Placement {
        segment: place.segment,
        unit: unit_of(&config.vtds, place),
        rings: place.rings,
    }
}

/// Whether the host can tell the DMA of each device that is behind a unit from the others'.
fn apart(devices: &[(&Selected, Placement)]) -> Result<(), PassthroughError> {
    for (index, (Selected { host, .. }, place)) in devices.iter().enumerate() {
        let same = |(other, theirs): &&(&Selected, Placement)| {
            other.host.group == host.group && (place.unit.is_some() || theirs.unit.is_some())
        };
        if let Some((other, _)) = devices.iter().take(index).find(same) {
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
