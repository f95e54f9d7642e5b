// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests share: a guest of two memory regions, and devices on PCI with fakes around them.

pub(crate) mod guest;
pub(crate) mod probe;

use std::io::Write;
use std::sync::Arc;

use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::fake::{ByHand, Driver, Ring, Vectors};
use hvkit_virtio_devices::transport::pci::VirtioPci;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Guest memory: two regions that touch, so that a buffer can lie across them, and nothing after.
pub(crate) const MIDDLE: u64 = 0x10_0000;
/// The first address at which there is no memory.
pub(crate) const END: u64 = 0x20_0000;

pub(crate) fn memory() -> Arc<GuestMemoryMmap> {
    let half = MIDDLE as usize;
    let ranges = [(GuestAddress(0), half), (GuestAddress(MIDDLE), half)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

/// An image of `sectors`, every byte of which depends on where it is.
pub(crate) fn image(sectors: u64) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&pattern(0, sectors * 512)).unwrap();
    file
}

pub(crate) fn pattern(offset: u64, length: u64) -> Vec<u8> {
    (offset..offset + length)
        .map(|at| (at / 512 * 7 + at % 251) as u8)
        .collect()
}

pub(crate) struct Machine {
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) vectors: Arc<Vectors>,
    pub(crate) workers: ByHand,
    pub(crate) driver: Driver<VirtioPci<Arc<GuestMemoryMmap>>>,
}

impl Machine {
    pub(crate) fn with_disk(options: Options) -> Self {
        let memory = memory();
        let vectors = Arc::new(Vectors::default());
        let workers = ByHand::default();
        let block = Block::open(options).unwrap();
        let function = VirtioPci::new(
            Box::new(block),
            Arc::clone(&memory),
            vectors.clone(),
            Box::new(workers.clone()),
        )
        .unwrap();
        let driver = Driver::probe(function);
        Self {
            memory,
            vectors,
            workers,
            driver,
        }
    }

    /// Brings the disk up with all features, MSI-X, and one queue.
    pub(crate) fn start(&mut self, features: u64) -> Ring {
        self.driver.enable_msix();
        self.driver.negotiate(features);
        let ring = self.driver.queue(0, &self.memory, 0x1000, 256);
        assert_eq!(self.driver.set_status(0xf), 0xf);
        self.vectors.take();
        ring
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(address))
            .unwrap();
    }

    pub(crate) fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory
            .read_slice(&mut data, GuestAddress(address))
            .unwrap();
        data
    }

    /// Notifies queue 0 and lets the workers finish.
    pub(crate) fn run(&mut self) {
        self.driver.kick(0);
        assert!(
            self.workers.step(100) < 100,
            "the workers do not come to rest"
        );
    }
}

/// A request's header: "struct virtio_blk_req", in raw words.
pub(crate) fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..4].copy_from_slice(&kind.to_le_bytes());
    raw[8..].copy_from_slice(&sector.to_le_bytes());
    raw
}
