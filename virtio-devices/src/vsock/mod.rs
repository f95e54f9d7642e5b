// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sockets between guest and host without a network: virtio-vsock, with Unix sockets on the host's side, in the
//! form that users of Firecracker and cloud-hypervisor know.
//!
//! ```text
//!   queue 0  receive     packets to the guest
//!   queue 1  transmit    packets from the guest
//!   queue 2  event       "all connections are gone", after a restore
//!
//!   guest connects to (2, P)     Unix socket PATH_P of the host
//!   host connects to PATH        writes "CONNECT P\n", reads "OK N\n", and is connected to the guest's port P
//! ```
//!
//! Streams, half-closed ones too; no seqpacket. A connection buffers at most 256 KiB, and there are at most 1024: what
//! a guest can make this use is bounded.
//!
//! "Socket Device" (5.10).
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
mod host;
mod mux;
mod packet;
mod server;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddressSpace;

use self::mux::Mux;
use self::server::{Queues, Server, SharedMux, lock};
use crate::bytes::read_at;
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, Device, StateError};
use crate::features::{DeviceType, Features};
use crate::listener::Listener;
use crate::queue::{Chain, Layout, Position};
use crate::worker::Worker;

/// The host's context identifier, as every guest knows it.
pub const HOST_CID: u64 = 2;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
/// Queues.
const QUEUES: usize = 3;
const QUEUE_SIZE: u16 = 256;

/// A socket device that cannot be had.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// No guest can have that identifier.
    #[error("context identifier {cid}; a guest has one from 3 to 4294967294")]
    Cid {
        /// Asked for.
        cid: u64,
    },
    /// Somebody listens there, or it is no socket.
    #[error("{}: in use, or not a socket", path.display())]
    InUse {
        /// As given.
        path: PathBuf,
    },
    /// The host refused.
    #[error("{}: cannot listen: {source}", path.display())]
    Socket {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket device.
#[derive(Debug)]
pub struct Vsock {
    cid: u64,
    host: Arc<Listener>,
    counters: [Counters; QUEUES],
    lost: Arc<AtomicBool>,
    /// The connections, from the first activation to a reset.
    mux: Option<SharedMux>,
}

impl Vsock {
    /// The guest `cid`, whose sockets on the host are at `path` and beside it. The socket at `path` is made now, and
    /// removed with the device.
    ///
    /// # Errors
    ///
    /// [`VsockError`]; nothing is made then.
    pub fn new(cid: u64, path: &Path) -> Result<Self, VsockError> {
        if cid <= HOST_CID || cid >= u64::from(u32::MAX) {
            return Err(VsockError::Cid { cid });
        }
        Ok(Self {
            cid,
            host: Arc::new(host::listen(path)?),
            counters: Default::default(),
            lost: Arc::default(),
            mux: None,
        })
    }

    /// The connections of the driver whose queues are `queues`.
    fn mux(&mut self, queues: &Queues, layout: Layout) -> io::Result<SharedMux> {
        let Some(mux) = &self.mux else {
            let mux = Arc::new(Mutex::new(Mux::new(self.cid, Arc::clone(&self.host))?));
            self.mux = Some(Arc::clone(&mux));
            return Ok(mux);
        };
        // Who serves the device to another VMM is told of no reset, but a driver that begins anew has queues that do. Should those of one that
        // goes on be there again by chance, it is told that its connections are gone.
        let start = Position::start(layout);
        let both = [&queues.receive, &queues.transmit];
        if both.iter().all(|active| active.queue.position() == start) && lock(mux).begin_anew() {
            self.lost.store(true, Ordering::SeqCst);
        }
        Ok(Arc::clone(mux))
    }

    /// The numbers of the queues for receiving and for sending, as the guest sees them, and for events.
    pub fn counters(&self) -> &[Counters; QUEUES] {
        &self.counters
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::VSOCK
    }

    fn features(&self) -> Features {
        // Without one of its own, a driver takes it that there are streams (5.10.3).
        Features::empty()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        read_at(&self.cid.to_le_bytes(), offset, data);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {
        // The identifier is not the driver's to choose.
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        let Activation {
            memory,
            features,
            mut queues,
            interrupts,
        } = activation;
        let queues = Queues {
            receive: ActiveQueue::take(&mut queues, RECEIVE)?,
            transmit: ActiveQueue::take(&mut queues, TRANSMIT)?,
            event: ActiveQueue::take(&mut queues, EVENT).ok(),
        };
        Ok(vec![Box::new(Server {
            mux: self.mux(&queues, Layout::of(features))?,
            memory,
            queues,
            interrupts,
            counters: self.counters.clone(),
            lost: Arc::clone(&self.lost),
            chain: Chain::new(),
        })])
    }

    fn counters(&self) -> Vec<Counters> {
        self.counters.to_vec()
    }

    fn reset(&mut self) {
        self.mux = None;
        self.lost.store(false, Ordering::SeqCst);
    }

    /// Connections do not move: their other ends are sockets of this host.
    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        if !state.is_empty() {
            return Err(StateError::Length {
                saved: state.len(),
                expected: 0,
            });
        }
        self.lost.store(true, Ordering::SeqCst);
        Ok(())
    }
}
