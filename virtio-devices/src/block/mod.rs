// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk: virtio-blk over an image, raw or qcow2.
//!
//! ```text
//!   Options::open --> Image (checked, locked) --> Block --activate--> Server, one a queue
//!                                                                       pop, Request, Image, status
//! ```
//!
//! Without the host's cache, requests go by an io_uring if the host has it ([`Engine`]): many are under way at once, and
//! the worker waits for none. Rings are made when the image is opened, and serve until it is closed: a process that
//! confines itself between can make no other.
//!
//! "Block Device" (5.2).
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

mod bounce;
mod config;
mod direct;
mod error;
mod image;
#[cfg(feature = "imago")]
mod qcow2;
mod request;
mod ring;
mod server;
mod transfer;
mod under_way;

use std::sync::{Arc, Mutex};

use vm_memory::GuestAddressSpace;

pub use config::{Engine, Options, feature};
pub use error::{NoRing, OpenError};
pub use image::{Access, Backing, Format, HostCache};

use self::image::Image;
use self::request::Caching;
use self::server::Server;
use self::under_way::{SharedRing, UnderWay};
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, Device};
use crate::features::{DeviceType, Features};
use crate::limit::Allowance;
use crate::serve::QueueServer;
use crate::worker::Worker;

/// Bytes of a sector, the unit of every address and capacity.
pub const SECTOR: u64 = 512;
/// Bytes of a serial number.
const SERIAL: usize = 20;

/// A block device.
#[derive(Debug)]
pub struct Block {
    image: Arc<Image>,
    options: Options,
    counters: Vec<Counters>,
    allowance: Allowance,
    /// One for each queue.
    rings: Result<Vec<SharedRing>, NoRing>,
}

impl Block {
    /// Opens the image that `options` name, and locks it.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        options.check()?;
        let image = Image::open(options.path(), options.how())?;
        let rings = match options.engine() {
            Engine::Ring => (0..options.queue_count())
                .map(|_| Ok(Arc::new(Mutex::new(image.ring()?))))
                .collect(),
            Engine::Calls => Err(NoRing::NotWanted),
        };
        Ok(Self {
            rings,
            image: Arc::new(image),
            counters: Counters::each(options.queue_count()),
            allowance: Allowance::new(options.limits()),
            options,
        })
    }

    /// Why requests are served by system calls that wait, one after another; `None` if they go by rings.
    pub fn no_ring(&self) -> Option<&NoRing> {
        self.rings.as_ref().err()
    }

    /// The numbers of each queue.
    pub fn counters(&self) -> &[Counters] {
        &self.counters
    }
}

impl<A: GuestAddressSpace + Send + 'static> Device<A> for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> Features {
        self.options.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        self.options.queue_sizes()
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        self.options.config_read(&self.image, offset, data);
    }

    fn config_write(&mut self, _offset: u64, _data: &[u8]) {
        // No field that we offer is writable.
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        // A driver that did not accept the flush cannot ask for one, so every write is flushed (5.2.6.2).
        let caching = if activation.features.contains(feature::FLUSH) {
            Caching::WriteBack
        } else {
            Caching::WriteThrough
        };
        let Activation {
            memory,
            queues,
            interrupts,
            ..
        } = activation;
        let server = |active: ActiveQueue| -> Result<Box<dyn Worker>, ActivateError> {
            let ring = self.rings.as_ref().ok();
            let ring = ring.and_then(|rings| rings.get(usize::from(active.index)));
            let handler = Server {
                under_way: ring.map(|ring| UnderWay::new(Arc::clone(ring))),
                index: active.index,
                image: Arc::clone(&self.image),
                serial: self.options.serial(),
                caching,
            };
            let counters = self.counters.get(usize::from(active.index));
            let server = QueueServer::new(memory.clone(), active, interrupts.clone(), handler)
                .with_limiter(self.allowance.limiter()?)
                .with_counters(counters.cloned().unwrap_or_default());
            Ok(Box::new(server))
        };
        queues.into_iter().map(server).collect()
    }

    fn counters(&self) -> Vec<Counters> {
        self.counters.clone()
    }

    fn reset(&mut self) {}
}
