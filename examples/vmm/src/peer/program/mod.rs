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
mod device;
mod function;
mod ring;

pub use bridge::Bridge;
pub use device::Device;
pub use function::Function;

use crate::passthrough::HostError;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;
use vfio_ioctls::VfioError;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

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
    #[error("--device: {path} (vendor {1:#06x}, device {2:#06x}) does not carry vhost-user", path = .0.display())]
    Kind(PathBuf, u16, u16),
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

fn watch(epoll: &Epoll, source: &impl AsRawFd, data: u64) -> io::Result<()> {
    let event = EpollEvent::new(EventSet::IN, data);
    epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)
}

/// Waits for what `epoll` watches, or so long: what is there to do.
fn wait(epoll: &Epoll, patience: Option<Duration>) -> io::Result<Vec<u64>> {
    let milliseconds = |patience: Duration| i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let mut events = [EpollEvent::default(); 32];
    match epoll.wait(patience.map_or(-1, milliseconds), &mut events) {
        Ok(count) => Ok(events.iter().take(count).map(EpollEvent::data).collect()),
        // The caller looks again.
        Err(error) if error.kind() == ErrorKind::Interrupted => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}
