// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the configuration to the virtio devices that it asks for.

use super::balloon::{self as balloon_lines, pages};
use super::disk as disk_lines;
use super::line_socket::LineSocket;
use super::user_network::{self, UserNetworkError};
use super::vm::Vm;
use crate::chipset::DeviceMemory;
use crate::config::{
    self, Access, Config, Dma, NetWire, Output, Place, VirtioConsole, VirtioIommu,
};
use crate::confine::Confiner;
use crate::connect::{PATIENCE, connect};
use crate::console::pty::PseudoTerminal;
use crate::console::tty::TtyPort;
use crate::output_file::{self, NotEmptied, ToEmpty};
use crate::passthrough::KvmSlots;
use crate::peer::{self, PeerBackEndError};
use crate::served::{self, Served, ServedError, Told};
use crate::viommu::{MappedMemory, TranslatedMemory};
use crate::wake::Wake;
use hvkit_virtio_devices::balloon::{self, Balloon};
use hvkit_virtio_devices::block::{self, Block, Metadata, OpenError};
use hvkit_virtio_devices::console::{Console, ConsoleError, Port};
use hvkit_virtio_devices::counters::Counters;
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::net::{
    self, Duplex, FrameStream, MacAddress, Net, OptionsError, Tap, TapError, Wire,
};
use hvkit_virtio_devices::reclaim::HostPages;
use hvkit_virtio_devices::vsock::{Vsock, VsockError};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// The socket of a disk.
    #[error("--disk control={}: {source}", path.display())]
    DiskControl {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A tap interface.
    #[error("{error}{}", because(error))]
    Tap {
        /// What is wrong.
        error: TapError,
    },
    /// The socket of a network card.
    #[error("--net: cannot connect to {}: {source}", path.display())]
    NetSocket {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The network that needs no privilege.
    #[error(transparent)]
    UserNetwork(#[from] UserNetworkError),
    /// A network card.
    #[error(transparent)]
    Net(#[from] OptionsError),
    /// The balloon or its socket.
    #[error("--balloon{}: {source}", at(socket))]
    Balloon {
        /// The socket.
        socket: Option<PathBuf>,
        /// Why.
        source: io::Error,
    },
    /// Memory that cannot be given back.
    #[error("--balloon cannot be had with --device: the device may use all of the guest's memory")]
    BalloonPinned,
    /// Sockets between host and guest.
    #[error("--vsock: {0}")]
    Vsock(#[from] VsockError),
    /// The source of random bytes.
    #[error("cannot read random bytes from {}: {source}", path.display())]
    Rng {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file for the paravirtual console.
    #[error("cannot write console output to {}: {source}", path.display())]
    ConsoleFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// That file cannot be emptied.
    #[error(transparent)]
    ConsoleEmpty(#[from] NotEmptied),
    /// The pseudo-terminal for the paravirtual console.
    #[error("cannot make a pseudo-terminal: {0}")]
    Pty(io::Error),
    /// Between the terminal and the paravirtual console.
    #[error("--console tty: cannot take over the terminal: {0}")]
    Tty(io::Error),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// A device that another process serves.
    #[error(transparent)]
    Served(#[from] ServedError),
    /// A device by which the guest serves another machine.
    #[error(transparent)]
    BackEnd(#[from] PeerBackEndError),
}

/// What the host said, on the same line.
fn because(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(String::new, |source| format!(": {source}"))
}

fn at(socket: &Option<PathBuf>) -> String {
    let name = socket.as_deref().map(|path| format!(" {}", path.display()));
    name.unwrap_or_default()
}

/// A device, and how it reaches memory.
pub(super) enum Opened {
    /// By physical addresses.
    Direct(Box<dyn Device<DeviceMemory>>),
    /// Behind the remapping unit.
    Translated(Box<dyn Device<TranslatedMemory>>),
    /// Behind the virtio-iommu.
    Mapped(Box<dyn Device<MappedMemory>>),
    /// Behind the remapping unit, in another process, which is told.
    Told(Box<dyn Device<TranslatedMemory>>, Told, Served),
}

impl Opened {
    /// The numbers of its queues, in order of index.
    pub(super) fn counters(&self) -> Vec<Counters> {
        match self {
            Opened::Direct(device) => device.counters(),
            Opened::Mapped(device) => device.counters(),
            Opened::Translated(device) | Opened::Told(device, ..) => device.counters(),
        }
    }

    /// `device`, which reaches memory by `dma` in a machine with that IOMMU or none of the kind.
    fn new<D>(dma: Dma, iommu: VirtioIommu, device: D) -> Self
    where
        D: Device<DeviceMemory> + Device<TranslatedMemory> + Device<MappedMemory> + 'static,
    {
        match (dma, iommu) {
            (Dma::Direct, _) => Opened::Direct(Box::new(device)),
            (Dma::Translated, VirtioIommu::Absent) => Opened::Translated(Box::new(device)),
            (Dma::Translated, VirtioIommu::Present) => Opened::Mapped(Box::new(device)),
        }
    }
}

type Named = (&'static str, Place, Opened);

/// What was opened.
#[derive(Default)]
pub(super) struct Devices {
    /// In the order in which the guest finds them.
    pub(super) devices: Vec<Named>,
    /// At which some of them can be spoken to.
    pub(super) sockets: Vec<LineSocket>,
    /// A file that one writes to.
    pub(super) to_empty: Option<ToEmpty>,
}

/// Opens all devices, and what belongs to them.
pub(super) fn open(
    config: &Config,
    vm: &Vm,
    memory: &DeviceMemory,
    slots: Option<&KvmSlots>,
    confiner: &Confiner,
    tty: Option<&TtyPort>,
) -> Result<Devices, DeviceError> {
    let Devices {
        mut devices,
        mut sockets,
        mut to_empty,
    } = Devices::default();
    for disk in &config.disks {
        let device = self::disk(disk, Metadata::Kept)?;
        if let Some(path) = &disk.control {
            sockets.push(disk_control(path, &device, confiner)?);
        }
        let device = Opened::new(disk.dma, config.virtio_iommu, device);
        devices.push(("disk", disk.place.clone(), device));
    }
    for net in &config.nets {
        let device = Opened::new(net.dma, config.virtio_iommu, self::net(net)?);
        devices.push(("network card", net.place.clone(), device));
    }
    for served in &config.served {
        let device = served::open(served, memory)?;
        let device = match Told::of(&device) {
            Some(told) => Opened::Told(Box::new(device), told, served.clone()),
            None => Opened::new(served.dma, config.virtio_iommu, device),
        };
        devices.push(("device of another process", Place::default(), device));
    }
    for asked in &config.back_ends {
        let device = peer::open(asked, config.transport, slots, vm.fd())?;
        let device = Opened::new(asked.dma, config.virtio_iommu, device);
        devices.push(("back end for another machine", Place::default(), device));
    }
    if let Some(rng) = &config.rng {
        let file = File::open(&rng.source).map_err(|source| DeviceError::Rng {
            path: rng.source.clone(),
            source,
        })?;
        let device = Opened::new(rng.dma, config.virtio_iommu, Entropy::new(file));
        devices.push(("random bytes", rng.place.clone(), device));
    }
    if let Some(port) = port(&config.console, config.output, tty, &mut to_empty)? {
        let console = Console::new(vec![port])?;
        if let Some(tty) = tty {
            tty.follow(console.terminal());
        }
        let device = Opened::new(config.console_dma, config.virtio_iommu, console);
        devices.push(("console", config.console_place.clone(), device));
    }
    if let Some(balloon) = &config.balloon {
        if !config.devices.is_empty() {
            return Err(DeviceError::BalloonPinned);
        }
        let (device, listening) = self::balloon(balloon, memory, confiner)?;
        sockets.extend(listening);
        let device = Opened::new(Dma::Direct, config.virtio_iommu, device);
        let place = Place {
            rings: balloon.rings,
            ..Place::default()
        };
        devices.push(("balloon", place, device));
    }
    if let Some(vsock) = &config.vsock {
        let device = Vsock::new(vsock.cid, &vsock.socket)?;
        let device = Opened::new(vsock.dma, config.virtio_iommu, device);
        devices.push(("sockets", vsock.place.clone(), device));
    }
    Ok(Devices {
        devices,
        sockets,
        to_empty,
    })
}

/// Answers at `path` what is said to `disk`.
fn disk_control(path: &Path, disk: &Block, confiner: &Confiner) -> Result<LineSocket, DeviceError> {
    let capacity = disk.capacity();
    let obey = move |line: &str, _: &Wake| disk_lines::obey(line, &capacity);
    LineSocket::listen(path, "disk", confiner.clone(), obey).map_err(|source| {
        let path = path.to_path_buf();
        DeviceError::DiskControl { path, source }
    })
}

fn balloon(
    balloon: &config::Balloon,
    memory: &DeviceMemory,
    confiner: &Confiner,
) -> Result<(Balloon, Option<LineSocket>), DeviceError> {
    // The command line takes no more.
    let mut options = balloon::Options::new().with_target(pages(balloon.size).unwrap_or(u32::MAX));
    if balloon.deflate_on_oom {
        options = options.with_deflate_on_oom();
    }
    if balloon.free_page_reporting {
        options = options.with_free_page_reporting();
    }
    if balloon.free_page_hints {
        options = options.with_free_page_hints();
    }
    let failed = |source| DeviceError::Balloon {
        socket: balloon.socket.clone(),
        source,
    };
    let pages = HostPages::new(Arc::clone(memory));
    let device = Balloon::new(options, Arc::new(pages)).map_err(failed)?;
    let listen = |path| {
        let control = device.control();
        let obey = move |line: &str, end: &Wake| balloon_lines::obey(line, &control, end);
        LineSocket::listen(path, "balloon", confiner.clone(), obey)
    };
    let socket = balloon.socket.as_deref().map(listen);
    Ok((device, socket.transpose().map_err(failed)?))
}

/// Opens the disk of `disk`, its tables written when `metadata` says.
pub(crate) fn disk(disk: &config::Disk, metadata: Metadata) -> Result<Block, OpenError> {
    let access = match disk.access {
        Access::ReadOnly => block::Access::ReadOnly,
        Access::ReadWrite => block::Access::ReadWrite,
    };
    let mut options = block::Options::new(&disk.path)
        .with_access(access)
        .with_format(match disk.format {
            config::Format::Raw => block::Format::Raw,
            config::Format::Qcow2 => block::Format::Qcow2,
        })
        .with_backing(match disk.backing {
            true => block::Backing::Allowed,
            false => block::Backing::Refused,
        })
        .with_host_cache(match disk.direct {
            true => block::HostCache::Bypassed,
            false => block::HostCache::Used,
        })
        .with_metadata(metadata)
        .with_serial(disk.serial.as_str())
        .with_limits(disk.limits);
    if let Some(queues) = disk.queues {
        options = options.with_queues(queues);
    }
    if let Some(size) = disk.queue_size {
        options = options.with_queue_size(size);
    }
    let block = Block::open(options)?;
    if disk.direct {
        let path = disk.path.display();
        match block.no_ring() {
            None => log::info!("{path}: by io_uring"),
            Some(why) => log::info!(
                "{path}: by calls that wait, not by io_uring: {why}{}",
                because(why)
            ),
        }
    }
    Ok(block)
}

fn net(net: &config::Net) -> Result<Net, DeviceError> {
    let mut options = net::Options::new().with_limits(net.limits);
    if let Some(mac) = net.mac {
        options = options.with_mac(MacAddress(mac))?;
    }
    if let Some(mtu) = net.mtu {
        options = options.with_mtu(mtu)?;
    }
    if let Some(megabits) = net.speed {
        options = options.with_speed(megabits, Duplex::Full)?;
    }
    let wire = match &net.wire {
        NetWire::Tap { name, pairs: 1 } => {
            Wire::Tap(Tap::open(name).map_err(|error| DeviceError::Tap { error })?)
        }
        NetWire::Tap { name, pairs } => {
            let queues = Tap::open_queues(name, *pairs);
            let queues = queues.map_err(|error| DeviceError::Tap { error })?;
            let wires = queues.into_iter().map(Wire::Tap).collect();
            return Ok(Net::with_pairs(options, wires)?);
        }
        NetWire::Socket(path) => {
            let connected = connect(path, PATIENCE).and_then(FrameStream::new);
            Wire::Stream(connected.map_err(|source| DeviceError::NetSocket {
                path: path.clone(),
                source,
            })?)
        }
        NetWire::User(asked) => {
            let stream = FrameStream::new(user_network::start(asked)?);
            Wire::Stream(stream.map_err(UserNetworkError::Host)?)
        }
    };
    Ok(Net::new(options, wire))
}

/// The console's port; a file is put in `to_empty` if it is to be.
fn port(
    console: &VirtioConsole,
    output: Output,
    tty: Option<&TtyPort>,
    to_empty: &mut Option<ToEmpty>,
) -> Result<Option<Port>, DeviceError> {
    const NAME: &str = "console";
    Ok(match console {
        VirtioConsole::Off => None,
        VirtioConsole::Tty => {
            let port = tty.map(|tty| tty.port(NAME));
            port.transpose().map_err(DeviceError::Tty)?
        }
        VirtioConsole::Null => Some(Port::new(NAME, io::sink())),
        VirtioConsole::File(path) => {
            let opened = output_file::open("--console file", path, output);
            let (file, when_it_starts) = opened.map_err(|source| DeviceError::ConsoleFile {
                path: path.clone(),
                source,
            })?;
            *to_empty = when_it_starts;
            Some(Port::new(NAME, file))
        }
        VirtioConsole::Pty => {
            let terminal = PseudoTerminal::open().map_err(DeviceError::Pty)?;
            let output = terminal.output().map_err(DeviceError::Pty)?;
            crate::stderr::line(format_args!("vmm: console on {}", terminal.name()));
            Some(Port::new(NAME, output).with_input(terminal))
        }
    })
}
