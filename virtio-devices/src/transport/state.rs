// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device is in the middle of, as plain data: to be saved while it is paused, and restored into a new one.
//!
//! Nothing in it is believed: a restore checks all of it before the first change, as if a driver had written it.

use crate::device::{ActivateError, StateError};
use crate::features::Features;
use crate::queue::{Position, QueueConfig, QueueError};

/// A queue as its driver has set it up, and where it goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct QueueState {
    /// Size and addresses.
    pub config: QueueConfig,
    /// The driver has enabled it.
    pub enabled: bool,
    /// Where it goes on; none if nobody serves it.
    pub position: Option<Position>,
}

/// What every transport has of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct SessionState {
    /// Its type.
    pub device_type: u8,
    /// Feature bits that the driver has accepted.
    pub accepted: u64,
    /// The status field.
    pub status: u8,
    /// Its queues.
    pub queues: Vec<QueueState>,
    /// The device's own: see [`Device::save`](crate::device::Device::save).
    pub device: Vec<u8>,
}

/// A device that cannot be saved.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// It is not paused, or a worker of it is in a call that does not return.
    #[error("the device is not paused")]
    Running,
    /// It has what cannot be saved.
    #[error(transparent)]
    Device(#[from] StateError),
}

/// A state that a device cannot be restored to. The device is as it was.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It has a driver already, or is not paused.
    #[error("the device is not a new one that is paused")]
    InUse,
    /// It is another device's.
    #[error("the state of a device of type {saved}; this one is {ours}")]
    DeviceType {
        /// In the state.
        saved: u8,
        /// Of the device.
        ours: u8,
    },
    /// Of another number of queues or vectors.
    #[error("{saved} {what} in the state; this device has {ours}")]
    Count {
        /// Of what.
        what: &'static str,
        /// In the state.
        saved: usize,
        /// Of the device.
        ours: usize,
    },
    /// The driver has accepted what this device does not offer, or not what it needs.
    #[error("features {:#x} are not for a device that offers {:#x}", saved.bits(), ours.bits())]
    Features {
        /// In the state.
        saved: Features,
        /// Offered.
        ours: Features,
    },
    /// A status that no driver comes to.
    #[error("status {status:#x}")]
    Status {
        /// In the state.
        status: u8,
    },
    /// A queue's size is none that it may have.
    #[error("queue {index} of {size} descriptors")]
    QueueSize {
        /// Which one.
        index: usize,
        /// In the state.
        size: u16,
    },
    /// A queue cannot be where it is said to be.
    #[error("queue {index}")]
    Queue {
        /// Which one.
        index: u16,
        /// Why.
        #[source]
        source: QueueError,
    },
    /// The device's own state.
    #[error(transparent)]
    Device(#[from] StateError),
    /// The device could not be brought to life.
    #[error("the device could not be activated")]
    Activate(#[from] ActivateError),
}
