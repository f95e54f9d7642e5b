// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The driver of a disk, in raw words.

use std::sync::Arc;

use hvkit_virtio_devices::fake::{Buffer, Driver, Ring, TestFunction};

use crate::machine::*;

/// VIRTIO_F_VERSION_1, VIRTIO_F_ACCESS_PLATFORM.
pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
/// virtio-blk's requests.
pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
/// What is in the status byte before the device writes it.
pub(crate) const UNTOUCHED: u8 = 0x77;

/// A queue of a disk, in memory at [`DATA`], with a page for headers and status behind it.
pub(crate) struct Disk<F> {
    pub(crate) driver: Driver<F>,
    pub(crate) ring: Ring,
}

pub(crate) const RING: u64 = DATA;
pub(crate) const RING_PAGES: u64 = 2;
pub(crate) const HEADER: u64 = DATA + RING_PAGES * PAGE;
pub(crate) const STATUS: u64 = HEADER + 64;

impl<F: TestFunction> Disk<F> {
    /// The device as its driver brings it up, its queue at addresses that are mapped to themselves.
    pub(crate) fn start(machine: &Machine, mut driver: Driver<F>) -> Self {
        let features = driver.negotiate(VERSION_1 | ACCESS_PLATFORM);
        assert_eq!(features, VERSION_1 | ACCESS_PLATFORM);
        let ring = driver.queue(0, &Arc::new(machine.ram().clone()), RING, 16);
        assert_eq!(driver.set_status(0xf), 0xf, "DRIVER_OK was refused");
        Disk { driver, ring }
    }

    /// Starts a request for a sector, whose data lies at `address` for the device.
    pub(crate) fn submit(&mut self, machine: &Machine, kind: u32, sector: u64, address: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        machine.fill(HEADER, &header);
        machine.fill(STATUS, &[UNTOUCHED]);
        let data = match kind {
            READ => Buffer::Writable(address, 512),
            _ => Buffer::Readable(address, 512),
        };
        let chain = [
            Buffer::Readable(HEADER, 16),
            data,
            Buffer::Writable(STATUS, 1),
        ];
        self.ring.submit(&chain);
        self.driver.kick(0);
    }

    /// The status byte of a request, when the device has answered.
    pub(crate) fn request(
        &mut self,
        machine: &Machine,
        kind: u32,
        sector: u64,
        address: u64,
    ) -> u8 {
        self.submit(machine, kind, sector, address);
        until("no answer", || self.ring.take().is_some());
        machine.bytes(STATUS, 1)[0]
    }
}
