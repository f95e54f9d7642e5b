// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Why a device was not passed through: one line each, with what to do.

use super::host::HostError;
use std::io;
use std::path::PathBuf;
use vfio_ioctls::VfioError;

/// A device that is not passed through.
#[derive(Debug, thiserror::Error)]
pub enum PassthroughError {
    /// It is not there, or not ready.
    #[error("--device: {0}")]
    Host(#[from] HostError),
    /// The same one twice.
    #[error("--device: {0} is given twice")]
    Twice(String),
    /// The same name twice.
    #[error("--device: id={0} is given twice")]
    SameName(String),
    /// The host has no character devices of VFIO's.
    #[error(
        "--device: {address} cannot be had by iommufd=on: there is no {}; it takes a host kernel from 6.6 on with \
         CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV, and the module iommufd",
        missing.display()
    )]
    NoCdev {
        /// The device.
        address: String,
        /// The file that is not there.
        missing: PathBuf,
    },
    /// Two devices that the host cannot tell apart, by two interfaces.
    #[error(
        "--device: {address} and {other} share IOMMU group {group}: both need the same iommufd=, and the host both \
         character devices or none"
    )]
    TwoInterfaces {
        /// The device.
        address: String,
        /// The one before it.
        other: String,
        /// Their group.
        group: u32,
    },
    /// iommufd is not there, or not for this user.
    #[error("--device: cannot open /dev/iommu: {0}; iommufd=off does without")]
    OpenIommu(io::Error),
    /// iommufd does not take the device.
    #[error(
        "--device: {address} is in use by another process, or its IOMMU leaves caches as they are, which iommufd does not take \
         (iommufd=off may): {source}"
    )]
    NotBindable {
        /// The device.
        address: String,
        /// Why.
        source: VfioError,
    },
    /// VFIO is not there.
    #[error("--device: cannot open /dev/vfio/vfio: {0}; is the module vfio-pci loaded?")]
    NoVfio(io::Error),
    /// Somebody else has the group.
    #[error("--device: {address} is in use: another process has IOMMU group {group}")]
    Busy {
        /// The device.
        address: String,
        /// Its group.
        group: u32,
    },
    /// The user may not.
    #[error("--device: no permission to open {}, by which {address} is had", file.display())]
    Denied {
        /// The device.
        address: String,
        /// The file.
        file: PathBuf,
    },
    /// A guest could make the device interrupt the host.
    #[error(
        "--device: the host's IOMMU does not keep {address} from raising interrupts of its choice: enable \
         interrupt remapping in the firmware, and boot the host without intremap=off"
    )]
    NoInterruptRemapping {
        /// The device.
        address: String,
    },
    /// The kernel says no for another reason.
    #[error("--device: VFIO refused {address}: {source}")]
    Refused {
        /// The device.
        address: String,
        /// Why.
        source: VfioError,
    },
    /// Its state would pass from one machine to the next.
    #[error(
        "--device: {address} cannot be reset, neither by itself nor by its bus: what one guest leaves \
         in it, the next would find"
    )]
    NoReset {
        /// The device.
        address: String,
    },
    /// The reset failed.
    #[error("--device: {address} could not be reset: {source}")]
    Reset {
        /// The device.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The guest's memory cannot be pinned.
    #[error(
        "--device: the guest's memory cannot be pinned for the device: {0}; is the limit on locked \
         memory (ulimit -l) below the guest's size?"
    )]
    Pin(io::Error),
    /// The host's IOMMU cannot map it.
    #[error("--device: the host's IOMMU does not map the guest's memory: {0}")]
    Map(io::Error),
    /// The host's IOMMU cannot follow the guest's tables.
    #[error(
        "--device: the host's IOMMU translates {has} bits of address for {address}, fewer than --vtd aw={asked}: use a \
         smaller aw"
    )]
    Narrow {
        /// The device.
        address: String,
        /// Bits that the guest's unit translates.
        asked: u8,
        /// Bits that the host's does.
        has: u32,
    },
    /// VFIO does not say what the host's IOMMU can.
    #[error(
        "--device: VFIO does not say which addresses of {address} the host translates: {source}"
    )]
    Addresses {
        /// The device.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The host cannot tell the DMA of two devices apart.
    #[error(
        "--device: {address} and {other} share IOMMU group {group}: behind --vtd each would need tables of its own"
    )]
    OneSpace {
        /// The device.
        address: String,
        /// The one before it.
        other: String,
        /// Their group.
        group: u32,
    },
    /// KVM's half of VFIO.
    #[error("--device: KVM has no VFIO device: {0}")]
    Kvm(kvm_ioctls::Error),
    /// All of KVM's memory slots are taken.
    #[error("--device: KVM has no memory slot left")]
    Slots,
}
