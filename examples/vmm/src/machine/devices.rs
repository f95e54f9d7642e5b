// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the configuration to the virtio devices that it asks for.

use crate::chipset::DeviceMemory;
use crate::config::{self, Access, Config, Dma, VirtioConsole};
use crate::console::pty::PseudoTerminal;
use crate::viommu::TranslatedMemory;
use hvkit_virtio_devices::block::{self, Block, OpenError};
use hvkit_virtio_devices::console::{Console, ConsoleError, Port};
use hvkit_virtio_devices::device::Device;
use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::net::{self, MacAddress, Net, OptionsError, Tap, TapError, Wire};
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A disk.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// A tap interface.
    #[error("{error}{}", because(error))]
    Tap {
        /// What is wrong.
        error: TapError,
    },
    /// A network card.
    #[error(transparent)]
    Net(#[from] OptionsError),
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
    /// The pseudo-terminal for the paravirtual console.
    #[error("cannot make a pseudo-terminal: {0}")]
    Pty(io::Error),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
}

/// What the host said, on the same line.
fn because(error: &TapError) -> String {
    std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"))
}

/// A device, and how it reaches memory.
pub(super) enum Opened {
    /// By physical addresses.
    Direct(Box<dyn Device<DeviceMemory>>),
    /// Behind the remapping unit.
    Translated(Box<dyn Device<TranslatedMemory>>),
}

impl Opened {
    fn new<D>(dma: Dma, device: D) -> Self
    where
        D: Device<DeviceMemory> + Device<TranslatedMemory> + 'static,
    {
        match dma {
            Dma::Direct => Opened::Direct(Box::new(device)),
            Dma::Translated => Opened::Translated(Box::new(device)),
        }
    }
}

type Named = (&'static str, Opened);

/// Opens all devices, in the order in which the guest finds them.
pub(super) fn open(config: &Config) -> Result<Vec<Named>, DeviceError> {
    let mut devices: Vec<Named> = Vec::new();
    for disk in &config.disks {
        devices.push(("disk", Opened::new(disk.dma, self::disk(disk)?)));
    }
    for net in &config.nets {
        devices.push(("network card", Opened::new(net.dma, self::net(net)?)));
    }
    if let Some(rng) = &config.rng {
        let file = File::open(&rng.source).map_err(|source| DeviceError::Rng {
            path: rng.source.clone(),
            source,
        })?;
        devices.push(("random bytes", Opened::new(rng.dma, Entropy::new(file))));
    }
    if let Some(port) = port(&config.console)? {
        let console = Console::new(vec![port])?;
        devices.push(("console", Opened::new(config.console_dma, console)));
    }
    Ok(devices)
}

fn disk(disk: &config::Disk) -> Result<Block, OpenError> {
    let access = match disk.access {
        Access::ReadOnly => block::Access::ReadOnly,
        Access::ReadWrite => block::Access::ReadWrite,
    };
    let mut options = block::Options::new(&disk.path)
        .with_access(access)
        .with_serial(disk.serial.as_str())
        .with_limits(disk.limits);
    if let Some(queues) = disk.queues {
        options = options.with_queues(queues);
    }
    if let Some(size) = disk.queue_size {
        options = options.with_queue_size(size);
    }
    Block::open(options)
}

fn net(net: &config::Net) -> Result<Net, DeviceError> {
    let mut options = net::Options::new().with_limits(net.limits);
    if let Some(mac) = net.mac {
        options = options.with_mac(MacAddress(mac))?;
    }
    if let Some(mtu) = net.mtu {
        options = options.with_mtu(mtu)?;
    }
    let tap = Tap::open(&net.tap).map_err(|error| DeviceError::Tap { error })?;
    Ok(Net::new(options, Wire::Tap(tap)))
}

fn port(console: &VirtioConsole) -> Result<Option<Port>, DeviceError> {
    const NAME: &str = "console";
    Ok(match console {
        VirtioConsole::Off => None,
        VirtioConsole::Null => Some(Port::new(NAME, io::sink())),
        VirtioConsole::File(path) => {
            let file = File::create(path).map_err(|source| DeviceError::ConsoleFile {
                path: path.clone(),
                source,
            })?;
            Some(Port::new(NAME, file))
        }
        VirtioConsole::Pty => {
            let terminal = PseudoTerminal::open().map_err(DeviceError::Pty)?;
            let output = terminal.output().map_err(DeviceError::Pty)?;
            eprintln!("vmm: console on {}", terminal.name());
            Some(Port::new(NAME, output).with_input(terminal))
        }
    })
}
