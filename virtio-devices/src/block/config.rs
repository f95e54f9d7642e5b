// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk is asked to be, and how it says so: feature bits and configuration space.
//!
//! "Feature bits" (5.2.3), "Device configuration layout" (5.2.4).

use std::path::{Path, PathBuf};

use super::image::{Backing, Format, HostCache, How, Image, Metadata};
use super::request::{MAX_HOLE_SECTORS, MAX_HOLES};
use super::{Access, OpenError, SECTOR, SERIAL};
use crate::bytes::put_at;
use crate::features::Features;
use crate::limit::Limits;
use crate::queue::MAX_SIZE;

/// Feature bits of a block device.
pub mod feature {
    use crate::features::Features;

    /// VIRTIO_BLK_F_SEG_MAX: `seg_max` is the largest number of data buffers in a request.
    pub const SEG_MAX: Features = Features::from_bits_retain(1 << 2);
    /// VIRTIO_BLK_F_RO: the disk is read-only.
    pub const RO: Features = Features::from_bits_retain(1 << 5);
    /// VIRTIO_BLK_F_BLK_SIZE: `blk_size` is the size of a block.
    pub const BLK_SIZE: Features = Features::from_bits_retain(1 << 6);
    /// VIRTIO_BLK_F_FLUSH: there is a cache, and a request to flush it.
    pub const FLUSH: Features = Features::from_bits_retain(1 << 9);
    /// VIRTIO_BLK_F_TOPOLOGY: there are hints on alignment.
    pub const TOPOLOGY: Features = Features::from_bits_retain(1 << 10);
    /// VIRTIO_BLK_F_CONFIG_WCE: `writeback` says whether there is a cache, and the driver may say it.
    pub const CONFIG_WCE: Features = Features::from_bits_retain(1 << 11);
    /// VIRTIO_BLK_F_MQ: several queues.
    pub const MQ: Features = Features::from_bits_retain(1 << 12);
    /// VIRTIO_BLK_F_DISCARD: a request to give space back.
    pub const DISCARD: Features = Features::from_bits_retain(1 << 13);
    /// VIRTIO_BLK_F_WRITE_ZEROES: a request to zero without sending zeros.
    pub const WRITE_ZEROES: Features = Features::from_bits_retain(1 << 14);
}

/// Bytes of "struct virtio_blk_config" as far as `unused1`.
const LENGTH: usize = 0x3c;
/// Where `writeback` is.
pub(super) const WRITEBACK: u64 = 0x20;

const QUEUE_SIZE: u16 = 256;
/// A header, one buffer of data and a status must fit.
const MIN_QUEUE_SIZE: u16 = 4;
const MAX_QUEUES: u16 = 256;

/// How the image is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Engine {
    /// By an io_uring for each queue, if the host's cache is bypassed and the host has it; otherwise by calls.
    /// [`Block::no_ring`](super::Block::no_ring) says which.
    #[default]
    Ring,
    /// By system calls that wait, one after another.
    Calls,
}

/// What a disk should be.
#[derive(Clone, Debug)]
pub struct Options {
    path: PathBuf,
    access: Access,
    serial: Vec<u8>,
    queues: u16,
    queue_size: u16,
    limits: Limits,
    format: Format,
    backing: Backing,
    cache: HostCache,
    metadata: Metadata,
    engine: Engine,
}

impl Options {
    /// A disk of one queue of 256 descriptors over the image at `path`, raw unless
    /// something else is said, to be read and written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            access: Access::default(),
            serial: Vec::new(),
            queues: 1,
            queue_size: QUEUE_SIZE,
            limits: Limits::default(),
            format: Format::default(),
            backing: Backing::default(),
            cache: HostCache::default(),
            metadata: Metadata::default(),
            engine: Engine::default(),
        }
    }

    /// Chooses what may be done to the image.
    #[must_use]
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Gives the disk a serial number: at most 20 bytes of printable ASCII.
    #[must_use]
    pub fn with_serial(mut self, serial: impl Into<Vec<u8>>) -> Self {
        self.serial = serial.into();
        self
    }

    /// Chooses the number of queues, 1 to 256.
    #[must_use]
    pub fn with_queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Chooses how many descriptors a queue has at most: a power of two from 4 to 32768.
    #[must_use]
    pub fn with_queue_size(mut self, size: u16) -> Self {
        self.queue_size = size;
        self
    }

    /// Says what the image is.
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Says whether the image may name others.
    #[must_use]
    pub fn with_backing(mut self, backing: Backing) -> Self {
        self.backing = backing;
        self
    }

    /// Chooses whether the host's page cache is used.
    #[must_use]
    pub fn with_host_cache(mut self, cache: HostCache) -> Self {
        self.cache = cache;
        self
    }

    /// Chooses when changed tables of a qcow2 image are in the file.
    #[must_use]
    pub fn with_metadata(mut self, metadata: Metadata) -> Self {
        self.metadata = metadata;
        self
    }

    /// Chooses how the image is read and written.
    #[must_use]
    pub fn with_engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    /// Limits what the device may do, all its queues together.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn engine(&self) -> Engine {
        self.engine
    }

    pub(super) fn queue_count(&self) -> usize {
        self.queues.into()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn how(&self) -> How {
        How {
            access: self.access,
            format: self.format,
            backing: self.backing,
            cache: self.cache,
            metadata: self.metadata,
        }
    }

    /// What can be said of the options without looking at the image.
    pub(super) fn check(&self) -> Result<(), OpenError> {
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(OpenError::Queues { count: self.queues });
        }
        let sizes = MIN_QUEUE_SIZE..=MAX_SIZE;
        if !self.queue_size.is_power_of_two() || !sizes.contains(&self.queue_size) {
            return Err(OpenError::QueueSize {
                size: self.queue_size,
            });
        }
        let printable = |byte: &u8| (b' '..=b'~').contains(byte);
        if self.serial.len() > SERIAL || !self.serial.iter().all(printable) {
            return Err(OpenError::Serial {
                serial: self.serial.clone(),
            });
        }
        Ok(())
    }

    /// The serial number as GET_ID gives it, padded with zeros.
    pub(super) fn serial(&self) -> [u8; SERIAL] {
        let mut padded = [0; SERIAL];
        for (byte, given) in padded.iter_mut().zip(&self.serial) {
            *byte = *given;
        }
        padded
    }

    pub(super) fn features(&self) -> Features {
        let mut features = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY;
        features |= match self.access {
            Access::ReadOnly => feature::RO,
            Access::ReadWrite => {
                feature::FLUSH | feature::CONFIG_WCE | feature::DISCARD | feature::WRITE_ZEROES
            }
        };
        if self.queues > 1 {
            features |= feature::MQ;
        }
        features
    }

    pub(super) fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    /// "struct virtio_blk_config". Fields of features that are not offered are zero.
    pub(super) fn config(&self, image: &Image, writeback: u8) -> [u8; LENGTH] {
        let mut config = [0; LENGTH];
        let mut put = |offset: usize, value: &[u8]| put_at(&mut config, offset, value);
        put(0x00, &image.sectors().to_le_bytes());
        // The header and the status take a descriptor each.
        put(
            0x0c,
            &u32::from(self.queue_size.saturating_sub(2)).to_le_bytes(),
        );
        put(0x14, &(SECTOR as u32).to_le_bytes());
        put(0x18, &[image.physical_block_exponent()]);
        if self.queues > 1 {
            put(0x22, &self.queues.to_le_bytes());
        }
        if self.access == Access::ReadWrite {
            put(WRITEBACK as usize, &[writeback]);
            let align = 1u32 << image.physical_block_exponent();
            put(0x24, &MAX_HOLE_SECTORS.to_le_bytes());
            put(0x28, &MAX_HOLES.to_le_bytes());
            put(0x2c, &align.to_le_bytes());
            put(0x30, &MAX_HOLE_SECTORS.to_le_bytes());
            put(0x34, &MAX_HOLES.to_le_bytes());
            // write_zeroes_may_unmap
            put(0x38, &[1]);
        }
        config
    }
}
