// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All of a machine but its memory, as JSON. KVM's own structures are in it as bytes, in their order in memory.

use super::controllers::Controllers;
use super::disk::DiskState;
use super::error::{ManifestError, SnapshotError};
use super::features::{self, Leaf};
use super::processor::Processor;
use super::serial::SerialState;
use hvkit_virtio_devices::transport::pci::PciState;
use hvkit_vtd_iommu::emulation::State as UnitState;
use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};

/// The version that is written and read.
pub const VERSION: u32 = 2;

/// Bytes of the largest manifest: 1024 processors have some 32 MB.
pub const LIMIT: u64 = 64 << 20;

/// A machine that was saved.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// What the options must say again.
    pub machine: Description,
    /// The vCPUs, in the order of their numbers.
    pub processors: Vec<Processor>,
    /// KVM's clock.
    pub clock: kvm_clock_data,
    /// The interrupt controllers.
    pub interrupts: Controllers,
    /// What joins processors and devices.
    pub chipset: ChipsetState,
    /// The remapping units, in the order of their numbers.
    pub units: Vec<UnitState>,
    /// The serial line.
    pub serial: Option<SerialState>,
    /// The watchdog.
    pub watchdog: Option<WatchdogState>,
    /// The images of disks, then files that are the guest's memory, in the options' order.
    pub disks: Vec<DiskState>,
    /// The devices on PCI, in the order of their addresses.
    pub devices: Vec<DeviceState>,
}

/// The machine's size, and what its processors were told of themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Bytes of RAM.
    pub memory: u64,
    /// Number of vCPUs.
    pub processors: u32,
    /// Bits of a physical address, by which windows are placed.
    pub address_bits: u8,
    /// The first vCPU's features.
    pub features: Vec<Leaf>,
}

/// Registers of the chipset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChipsetState {
    /// The latch of the configuration ports.
    pub config_address: u32,
    /// The reset control register.
    pub reset_control: u8,
}

/// A watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchdogState {
    /// The count register.
    pub count: u32,
    /// Milliseconds until it bites; none if it does not run.
    pub left: Option<u64>,
}

/// A device on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceState {
    /// On which segment of PCI.
    pub segment: u16,
    /// Where: device in bits 7:3, function in bits 2:0.
    pub at: u8,
    /// What it is in the middle of.
    pub state: PciState,
}

/// Reads a manifest of any bytes. It takes no more memory than a small multiple of their number.
///
/// # Errors
///
/// [`ManifestError`].
pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
    /// What every version has.
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    if bytes.is_empty() {
        return Err(ManifestError::Empty);
    }
    let length = bytes.len() as u64;
    if length > LIMIT {
        return Err(ManifestError::TooLarge {
            bytes: length,
            limit: LIMIT,
        });
    }
    let Head { version: saved } = serde_json::from_slice(bytes)?;
    if saved != VERSION {
        return Err(ManifestError::Version {
            saved,
            ours: VERSION,
        });
    }
    Ok(serde_json::from_slice(bytes)?)
}

impl Description {
    /// Whether the options describe the machine that was saved.
    ///
    /// # Errors
    ///
    /// What they differ in.
    pub fn check(&self, ours: &Description) -> Result<(), SnapshotError> {
        for (what, saved, ours) in [
            ("bytes of memory", self.memory, ours.memory),
            ("processors", self.processors.into(), ours.processors.into()),
            (
                "bits of physical address",
                self.address_bits.into(),
                ours.address_bits.into(),
            ),
        ] {
            if saved != ours {
                return Err(SnapshotError::Differs { what, saved, ours });
            }
        }
        features::compare(&self.features, &ours.features)
    }
}
