// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device as its transport sees it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::Host;
use super::carrier::{Carrier, Report};
use super::link::PeerError;
use super::shared::{BACKEND_UP, Shared, Window};
use crate::bytes::read_at;
use crate::device::{ActivateError, Activation, ActiveQueue, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::listener::{ListenError, Listener};
use crate::resources::Resources;
use crate::worker::Worker;

/// The most queues that the other machine's device can have.
const MOST_QUEUES: u16 = 16;
/// Bytes of the window, if nobody says otherwise.
const MEMORY: u64 = 4 << 30;
const QUEUE_SIZE: u16 = 128;
const PAGE: u64 = 4096;
/// What a window's memory may have at most, so that a window can be described.
const MOST_MEMORY: u64 = 1 << 46;

/// The queue for messages to the driver, and that for its answers.
pub(super) const RECEIVE: u16 = 0;
pub(super) const TRANSMIT: u16 = 1;

/// What a [`GuestBackEnd`] should be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { memory: MEMORY }
    }
}

impl Options {
    /// A window for 4 GiB of the other machine's memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses how much of the other machine's memory the window has room for, in bytes: as much as that machine has. It
    /// is made at least a page, and whole pages.
    #[must_use]
    pub fn with_memory(mut self, memory: u64) -> Self {
        self.memory = memory.clamp(PAGE, MOST_MEMORY).next_multiple_of(PAGE);
        self
    }
}

/// A device by which a program in the guest serves a device to another machine.
///
/// It listens at a socket, takes one connection at a time, and only while the driver wants one.
pub struct GuestBackEnd {
    shared: Arc<Shared>,
    listener: Listener,
    report: Arc<Report>,
    /// Until it is asked for.
    window: bool,
}

impl std::fmt::Debug for GuestBackEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestBackEnd")
            .field("shared", &self.shared)
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

/// Why there is no such device.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum GuestBackEndError {
    /// The socket is somebody's, or no socket.
    #[error("{} is in use, or no socket", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("cannot listen at {}: {source}", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl GuestBackEnd {
    /// Listens at `path`, in place of a socket that nobody listens at any more, with `host` to show memory and doorbells in
    /// the guest. The beginning and the end of each connection are told to `report`: nothing for a beginning, why for an
    /// end.
    pub fn new(
        path: &Path,
        options: Options,
        host: Arc<dyn Host>,
        report: impl Fn(Option<&PeerError>) + Send + Sync + 'static,
    ) -> Result<Self, GuestBackEndError> {
        let failed = |error| {
            let path = path.to_path_buf();
            match error {
                ListenError::InUse => GuestBackEndError::InUse { path },
                ListenError::Host(source) => GuestBackEndError::Socket { path, source },
            }
        };
        let shared = Shared::new(host, MOST_QUEUES, options.memory);
        Ok(Self {
            shared: Arc::new(shared.map_err(|error| failed(error.into()))?),
            listener: Listener::bind(path).map_err(failed)?,
            report: Arc::new(report),
            window: true,
        })
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for GuestBackEnd {
    fn device_type(&self) -> DeviceType {
        DeviceType::VHOST_USER_BACK_END
    }

    fn features(&self) -> Features {
        Features::empty()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        // "status", "max_vhost_queues"; the "uuid" behind them is 0, which is nobody's.
        let words = [self.shared.status(), MOST_QUEUES.into()].map(u32::to_le_bytes);
        read_at(words.as_flattened(), offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        // The one bit that is the driver's is in the first byte.
        if let (0, Some(byte)) = (offset, data.first()) {
            self.shared.set_wanted(u32::from(*byte) & BACKEND_UP != 0);
        }
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let mut queues = activation.queues;
        let receive = ActiveQueue::take(&mut queues, RECEIVE)?;
        let transmit = ActiveQueue::take(&mut queues, TRANSMIT)?;
        Ok(vec![Box::new(Carrier::new(
            Arc::clone(&self.shared),
            self.listener.socket().try_clone()?,
            Arc::clone(&self.report),
            activation.memory,
            activation.interrupts,
            [receive, transmit],
        )?)])
    }

    fn reset(&mut self) {
        self.shared.reset();
    }

    fn resources(&mut self) -> Option<Box<dyn Resources>> {
        let window = std::mem::take(&mut self.window);
        window.then(|| Box::new(Window(Arc::clone(&self.shared))) as _)
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        // Another machine is at the other end.
        Err(StateError::Unsaveable)
    }
}
