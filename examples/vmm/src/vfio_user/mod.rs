// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PCI devices that other processes serve, by the vfio-user protocol: a second back end of what passes devices of the
//! host through, and a server.
//!
//! ```text
//!   --user-device socket=          guest --- Assigned (passthrough) --- UserFunction --- Connection --- socket
//!                                  remapping unit --- UserTable ----------------'            |
//!                                                                      the server's requests: Dma
//!   vmm serve --protocol vfio-user     socket --- Server --- any PciFunction, whose DMA is in memory that is given
//! ```
//!
//! The client is our own: the crate `vfio_user` waits for answers without end, does not look whether they refuse, and
//! answers no requests for memory. That crate, its server and its client, is the peer in the tests.
//!
//! Two ways to memory:
//!
//! - [`Given::Files`]: the server has the files of the guest's RAM, and is told where it may use them. What it maps, it
//!   reaches; a server that does not keep to what it is told reaches all of it. A remapping unit of the guest's then
//!   holds errors of the guest's driver and of an honest device, and no hostile process.
//! - [`Given::Nothing`]: it has none, asks for each transfer (DMA_READ, DMA_WRITE), and each is looked up here. It
//!   reaches what is mapped now and nothing else, whatever it does.
//!
//! "vfio-user Protocol Specification", version 0.1 (in libvfio-user's documentation); Linux,
//! `include/uapi/linux/vfio.h`.
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

mod connection;
mod dma;
mod function;
mod message;
mod open;
mod outbox;
mod regions;
pub mod server;
mod table;
mod version;

pub use connection::CallError;
pub use dma::{Access, Astray, TellAstray};
pub use function::{FunctionError, News, UserFunction};
pub use message::Command;
pub use open::{UserDeviceError, check, open};
pub use server::{ServeError, Server};
pub use table::{Given, UserTable};
pub use version::VersionError;

use crate::config::{Dma, Place};
use std::path::PathBuf;

/// A PCI device that another process serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserDevice {
    /// Where the process listens.
    pub socket: PathBuf,
    /// By which name messages call it; its socket if none is given.
    pub id: Option<String>,
    /// How it reaches the guest's memory.
    pub dma: Dma,
    /// What it is given of that.
    pub given: Given,
    /// Its segment and unit.
    pub place: Place,
}

impl UserDevice {
    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> String {
        let socket = || self.socket.display().to_string();
        self.id.clone().unwrap_or_else(socket)
    }
}
