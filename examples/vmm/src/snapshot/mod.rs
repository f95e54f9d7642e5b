// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine in a folder: saved while it stands still, and restored into a new one.
//!
//! ```text
//!   folder/manifest.json   processors, interrupt controllers, remapping unit, devices   written last
//!   folder/memory          the guest's RAM, byte for byte; what is zero is a hole
//!
//!   save      SIGUSR1 -> vCPUs stand still -> devices stand still -> memory, manifest -> the machine ends
//!   restore   a new machine of the same options -> memory -> processors -> controllers -> unit -> devices -> go on
//! ```
//!
//! Nothing in a snapshot names a file of the host: disks, taps and sockets are the options', which must be those that the
//! machine was saved with; of disks, [`Images`] tells. And nothing in it is believed: what cannot be is refused, by name, before the guest runs.
//!
//! What the host has of a device is not in it. So a device of the host cannot be saved, nor persistent memory whose writes
//! are discarded: [`check`] says so before the guest runs.
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

mod controllers;
mod device;
mod disk;
mod error;
mod features;
mod folder;
mod manifest;
mod memory;
mod processor;
mod serial;

pub use controllers::Controllers;
pub(crate) use controllers::refused;
pub use device::Saveable;
pub use disk::{DiskState, Images};
pub use error::{ManifestError, SnapshotError};
pub use features::{Leaf, leaves};
pub use folder::{Destination, Source};
pub use manifest::{
    ChipsetState, Description, DeviceState, LIMIT, Manifest, VERSION, WatchdogState, parse,
};
pub use processor::Processor;
pub use serial::SerialState;

use crate::config::{Config, Transport, Writes};

/// Whether a machine of `config` could be saved, if it is to be.
///
/// # Errors
///
/// [`SnapshotError::Unsaveable`]: the first device that cannot be, and why.
pub fn check(config: &Config) -> Result<(), SnapshotError> {
    let option = match (&config.snapshot, &config.restore) {
        (Some(_), _) => "snapshot",
        (None, Some(_)) => "restore",
        (None, None) => return Ok(()),
    };
    let refuse = |device: String, why| {
        Err(SnapshotError::Unsaveable {
            option,
            device,
            why,
        })
    };
    if config.transport == Transport::Mmio {
        return refuse(
            "virtio-mmio".to_owned(),
            "devices are saved on PCI only, so far",
        );
    }
    if let Some(device) = config.devices.first() {
        let path = || device.path.display().to_string();
        let name = device.id.clone().unwrap_or_else(path);
        return refuse(
            name,
            "it is a device of the host, whose state no one can read",
        );
    }
    if let Some(served) = config.served.first() {
        return refuse(
            served.socket.display().to_string(),
            "another process serves it, whose state no one can read",
        );
    }
    if let Some(device) = config.user_devices.first() {
        return refuse(
            device.name(),
            "another process serves it, whose state no one can read",
        );
    }
    if let Some(asked) = config.back_ends.first() {
        return refuse(
            asked.socket.display().to_string(),
            "another machine is at the other end",
        );
    }
    let discarding = |pmem: &&crate::config::Pmem| pmem.writes == Writes::Discarded;
    if let Some(pmem) = config.pmems.iter().find(discarding) {
        let name = pmem.path.display().to_string();
        return refuse(
            name,
            "with discard_writes=on, what the guest wrote to it is kept nowhere",
        );
    }
    Ok(())
}
