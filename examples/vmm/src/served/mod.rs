// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices that other processes serve, by vhost-user: what is asked for, and how it is had.
//!
//! ```text
//!   --disk vhost_user=on,socket=   --net vhost_user=on,socket=   --fs tag=,socket=
//!        Served --> open: connect, SharedMemory (all of the guest's RAM) --> VhostUser
//! ```
//!
//! Where there is such a device, the guest's RAM is in files (memfd, sealed against shrinking), one for each of its
//! regions, and the other process is given all of them: it reads rings and buffers wherever the guest puts them.
//! Nothing else is shared: no register, no persistent memory, no firmware table outside RAM. Behind the remapping unit (`iommu=on`) the
//! process is told where the device's addresses lead ([`Told`]); that bounds the guest's driver, and not the process.
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

pub mod serve;

use crate::config::{Dma, Rings};
use crate::connect::{PATIENCE, connect};
use crate::viommu::DmaTable;
use hvkit_virtio_devices::net::MacAddress;
use hvkit_virtio_devices::vhost_user::{
    AddressSpace, Link, Options, Reconnection, SharedMemory, VhostUser, VhostUserError,
};
use hvkit_vtd_iommu::emulation::Mapping;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;
use vm_memory::{GuestMemoryMmap, Permissions};

/// A device that another process serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// What it is.
    pub what: What,
    /// Where the process listens.
    pub socket: PathBuf,
    /// Queues: a disk's, a file system's of requests, or a card's pairs; none: one.
    pub queues: Option<u16>,
    /// Descriptors of a queue; none: what is usual.
    pub queue_size: Option<u16>,
    /// How often a process is looked for in place of one that is gone; none: never.
    pub reconnect: Option<Duration>,
    /// How it reaches the guest's memory.
    pub dma: Dma,
    /// What its queues can be.
    pub rings: Rings,
}

/// What a device is that another process serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A disk.
    Disk,
    /// A network card.
    Net {
        /// The card's address; none: the guest chooses.
        mac: Option<[u8; 6]>,
        /// What the network carries at most; none: the guest chooses.
        mtu: Option<u16>,
    },
    /// Files of the host.
    FileSystem {
        /// By which name the guest mounts it.
        tag: String,
    },
}

impl What {
    /// The option that it comes from.
    #[must_use]
    pub fn option(&self) -> &'static str {
        match self {
            What::Disk => "disk",
            What::Net { .. } => "net",
            What::FileSystem { .. } => "fs",
        }
    }
}

/// Why such a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ServedError {
    /// Nobody is at the socket.
    #[error("--{option}: cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The option.
        option: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever is there does not serve it, or the option asks for what cannot be.
    #[error("--{option}: socket {}: {source}", socket.display())]
    Device {
        /// The option.
        option: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: VhostUserError,
    },
    /// The back end cannot be told what the device reaches behind the remapping unit.
    #[error("--{option}: socket {}: {source}", socket.display())]
    Memory {
        /// The option.
        option: &'static str,
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A device behind the remapping unit: its back end is told what the guest maps for it, and of each change before the
/// guest goes on.
#[derive(Debug)]
pub struct Told(AddressSpace);

impl Told {
    /// That of `device`, if it is behind a unit.
    #[must_use]
    pub fn of(device: &VhostUser) -> Option<Self> {
        device.address_space().map(Told)
    }
}

impl DmaTable for Told {
    fn map(&mut self, piece: Mapping) -> io::Result<()> {
        let access = match (piece.reads, piece.writes) {
            (true, true) => Permissions::ReadWrite,
            (true, false) => Permissions::Read,
            (false, true) => Permissions::Write,
            (false, false) => return Ok(()),
        };
        let mapped = self.0.map(addresses(&piece), piece.target, access);
        mapped.map_err(io::Error::other)
    }

    fn unmap(&mut self, piece: Mapping) -> io::Result<()> {
        self.0.unmap(addresses(&piece));
        Ok(())
    }
}

/// The last byte of all is left out; the unit's address widths end far below.
fn addresses(piece: &Mapping) -> Range<u64> {
    piece.first..piece.last.saturating_add(1)
}

/// Connects to who serves it, and gives them `memory`.
pub fn open(served: &Served, memory: &GuestMemoryMmap) -> Result<VhostUser, ServedError> {
    let option = served.what.option();
    let socket = || served.socket.clone();
    let failed = |source| ServedError::Device {
        option,
        socket: socket(),
        source,
    };
    let mut options = match &served.what {
        What::Disk => Options::block(),
        What::Net { mac, mtu } => Options::net(mac.map(MacAddress), *mtu),
        What::FileSystem { tag } => Options::file_system(tag).map_err(failed)?,
    };
    if let Some(queues) = served.queues {
        options = options.with_queues(queues);
    }
    if let Some(size) = served.queue_size {
        options = options.with_queue_size(size);
    }
    if served.dma == Dma::Translated {
        options = options.with_translations();
    }
    if served.rings == Rings::Both {
        options = options.with_packed_rings();
    }
    if let Some(interval) = served.reconnect {
        options = options.with_reconnection(reconnection(served, interval));
    }
    let memory = SharedMemory::of(memory).map_err(failed)?;
    let stream = connect(&served.socket, PATIENCE).map_err(|source| ServedError::Connect {
        option,
        socket: socket(),
        source,
    })?;
    let device = VhostUser::new(stream, options, memory).map_err(failed)?;
    for (start, length) in shared(&device) {
        log::info!(
            "memory at {start:#x} ({} MiB) is shared with {}",
            length >> 20,
            served.socket.display()
        );
    }
    Ok(device)
}

fn reconnection(served: &Served, interval: Duration) -> Reconnection {
    let name = format!(
        "--{}: socket {}",
        served.what.option(),
        served.socket.display()
    );
    let report = move |link: &Link<'_>| match link {
        Link::Lost(why) => log::warn!("{name}: {why}; the guest's requests wait for another"),
        Link::Refused(why) => log::warn!("{name}: {why}; trying again"),
        Link::Back => log::warn!("{name}: another back end goes on with the device"),
        _ => {}
    };
    Reconnection::new(&served.socket, interval).with_report(report)
}

fn shared(device: &VhostUser) -> impl Iterator<Item = (u64, u64)> + '_ {
    device.memory().ranges()
}
