// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Transports: how a driver finds, configures and notifies a device.
//!
//! What all of them share, the life of a device between reset and DRIVER_OK, is in `session`; a transport
//! is a register layout over it and a way to interrupt.
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

mod news;
mod queue_registers;
mod session;
pub mod state;

pub mod mmio;
pub mod pci;

use std::sync::Arc;

use self::news::News;
use crate::device::{Failure, Trouble};

/// Tells the VMM why a device stopped.
type Report = Arc<dyn Fn(&Failure) + Send + Sync>;

/// Tells the VMM what went wrong on the host.
type TroubleReport = Arc<dyn Fn(&Trouble) + Send + Sync>;

bitflags::bitflags! {
    /// The device status field.
    ///
    /// "Device Status Field" (2.1).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Status: u8 {
        /// The guest has found the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is ready: the device is live.
        const DRIVER_OK = 4;
        /// Features are settled.
        const FEATURES_OK = 8;
        /// The device has failed and waits for a reset.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }
}
