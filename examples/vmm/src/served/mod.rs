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
//! Nothing else is shared: no register, no persistent memory, no firmware table outside RAM.
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

use crate::config::Dma;
use hvkit_virtio_devices::net::MacAddress;
use hvkit_virtio_devices::vhost_user::{Options, SharedMemory, VhostUser, VhostUserError};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use vm_memory::GuestMemoryMmap;

/// A device that another process serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// What it is.
    pub what: What,
    /// Where the process listens.
    pub socket: PathBuf,
    /// Queues: a disk's, or a file system's of requests; none: one.
    pub queues: Option<u16>,
    /// Descriptors of a queue; none: what is usual.
    pub queue_size: Option<u16>,
    /// How it reaches the guest's memory.
    pub dma: Dma,
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
    /// Behind the remapping unit.
    #[error(
        "--{option}: socket {}: iommu=on cannot be had with vhost_user: the other process has all of the guest's memory, and no translations",
        socket.display()
    )]
    Translated {
        /// The option.
        option: &'static str,
        /// The socket.
        socket: PathBuf,
    },
}

/// Connects to who serves it, and gives them `memory`.
pub fn open(served: &Served, memory: &GuestMemoryMmap) -> Result<VhostUser, ServedError> {
    let option = served.what.option();
    let socket = || served.socket.clone();
    if served.dma == Dma::Translated {
        let socket = socket();
        return Err(ServedError::Translated { option, socket });
    }
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
    let memory = SharedMemory::of(memory).map_err(failed)?;
    let stream = UnixStream::connect(&served.socket).map_err(|source| ServedError::Connect {
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

fn shared(device: &VhostUser) -> impl Iterator<Item = (u64, u64)> + '_ {
    device.memory().ranges()
}
