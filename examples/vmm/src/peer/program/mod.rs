// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The other side, in the guest: `vmm serve --device`, which serves a disk to another machine by the device that carries
//! vhost-user into this guest.
//!
//! ```text
//!   BackEnd --- pair of sockets --- Bridge --- two queues in memory that VFIO maps --- the device
//!     |                               '--- doorbells <--- call events
//!     |<-- kick events: VFIO's own, of the notifications' vectors
//!     '--- the other machine's memory: pieces of the BAR's file in sysfs
//! ```
//!
//! So the library's back end serves here as it does behind a socket: its files are the device's. This guest assigns the
//! device to this program by VFIO, which needs a remapping unit in it, and makes it reach these queues and nothing else.

mod bridge;
mod function;
mod ring;

pub use bridge::Bridge;
pub use function::Function;

use crate::passthrough::HostError;
use std::io;
use vfio_ioctls::VfioError;

/// Why a device does not carry anything.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It cannot be opened.
    #[error("--device: {0}")]
    Find(#[from] HostError),
    /// VFIO.
    #[error("--device: {0}")]
    Vfio(#[from] VfioError),
    /// The host, which is a guest.
    #[error("--device: {0}")]
    Host(#[from] io::Error),
    /// It is another kind of device.
    #[error("--device: {0} (vendor {1:#06x}, device {2:#06x}) does not carry vhost-user")]
    Kind(String, u16, u16),
    /// It lacks something.
    #[error("--device: it has no {0}")]
    Lacks(&'static str),
    /// It does not do what such a device does.
    #[error("--device: it {0}")]
    Wrong(&'static str),
}

impl From<vm_memory::GuestMemoryError> for ProgramError {
    fn from(error: vm_memory::GuestMemoryError) -> Self {
        io::Error::other(error).into()
    }
}
