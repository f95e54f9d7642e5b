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
mod cache;
mod capacity;
mod config;
mod direct;
mod error;
mod image;
#[cfg(feature = "imago")]
mod qcow2;
mod request;
mod ring;
mod server;
#[cfg(test)]
mod tests;
mod transfer;
mod under_way;

use std::sync::{Arc, Mutex};

use vm_memory::GuestAddressSpace;

pub use capacity::{Capacity, ResizeError};
pub use config::{Engine, Options, feature};
pub use error::{NoRing, OpenError};
pub use image::{Access, Backing, Format, HostCache, Metadata};

use self::cache::Cache;
use self::image::Image;
use self::server::Server;
use self::under_way::{SharedRing, UnderWay};
use crate::bytes::read_at;
use crate::counters::Counters;
use crate::device::{ActivateError, Activation, ActiveQueue, ConfigEvents, Device, StateError};
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
    cache: Arc<Cache>,
    events: ConfigEvents,
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
            ..Self::over(image, options)
        })
    }

    /// Over an image that is open, without rings.
    fn over(image: Image, options: Options) -> Self {
        Self {
            rings: Err(NoRing::NotWanted),
            image: Arc::new(image),
            counters: Counters::each(options.queue_count()),
            allowance: Allowance::new(options.limits()),
            cache: Arc::default(),
            events: ConfigEvents::default(),
            options,
        }
    }

    /// Why requests are served by system calls that wait, one after another; `None` if they go by rings.
    pub fn no_ring(&self) -> Option<&NoRing> {
        self.rings.as_ref().err()
    }

    /// The disk's size, to be looked for again while a guest uses it.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            image: Arc::clone(&self.image),
            events: self.events.clone(),
        }
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
        let config = self.options.config(&self.image, self.cache.writeback());
        read_at(&config, offset, data);
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        // No other field can be written.
        let at = config::WRITEBACK.checked_sub(offset);
        let at = at.and_then(|at| usize::try_from(at).ok());
        if let Some(value) = at.and_then(|at| data.get(at)) {
            self.cache.set(*value);
        }
    }

    fn negotiated(&mut self, features: Features) {
        self.cache.begin(features);
    }

    fn activate(
        &mut self,
        activation: Activation<A>,
    ) -> Result<Vec<Box<dyn Worker>>, ActivateError> {
        if activation.queues.is_empty() {
            return Err(ActivateError::QueueMissing { index: 0 });
        }
        self.cache.accept(activation.features);
        self.events
            .connect(Some(Arc::clone(&activation.interrupts)));
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
                cache: Arc::clone(&self.cache),
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

    fn reset(&mut self) {
        self.events.connect(None);
        self.cache.clear();
    }

    /// Nothing, or, if its driver has chosen that writes are not cached, a byte of 0.
    fn save(&self) -> Result<Vec<u8>, StateError> {
        if self.image.access() == Access::ReadWrite {
            let flushed = self.image.flush();
            flushed.map_err(|error| StateError::Storage { kind: error.kind() })?;
        }
        Ok(self.cache.save())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        match (self.cache.restore(state), state.len()) {
            (true, _) => Ok(()),
            (false, 1) => Err(StateError::Content { at: 0 }),
            (false, saved) => Err(StateError::Length { saved, expected: 1 }),
        }
    }
}
