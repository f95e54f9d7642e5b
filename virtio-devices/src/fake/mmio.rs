// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of virtio-mmio, which knows nothing but the registers.

use std::sync::Arc;

use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::driver::RING_PACKED;
use super::slots::{Slots, packed, split};
use super::{PackedRing, Ring};
use crate::transport::mmio::VirtioMmio;

/// A driver of one virtio-mmio device.
#[derive(Debug)]
pub struct MmioDriver<A> {
    /// The device.
    pub device: VirtioMmio<A>,
}

impl<A: GuestAddressSpace> MmioDriver<A> {
    /// Finds a device of version 2; panics if there is none.
    pub fn probe(device: VirtioMmio<A>) -> Self {
        let mut driver = Self { device };
        assert_eq!(driver.get(0x000), 0x7472_6976, "magic");
        assert_eq!(driver.get(0x004), 2, "version");
        driver
    }

    /// Reads a register.
    pub fn get(&mut self, offset: u64) -> u32 {
        let mut raw = [0; 4];
        self.device.read(offset, &mut raw);
        u32::from_le_bytes(raw)
    }

    /// Writes a register.
    pub fn put(&mut self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    /// Reads the status field.
    pub fn status(&mut self) -> u8 {
        self.get(0x070) as u8
    }

    /// Writes the status field and reads it back.
    pub fn set_status(&mut self, status: u8) -> u8 {
        self.put(0x070, status.into());
        self.status()
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        let mut word = |select| {
            self.put(0x014, select);
            u64::from(self.get(0x010))
        };
        word(0) | word(1) << 32
    }

    /// Writes the driver's features.
    pub fn accept(&mut self, features: u64) {
        for (select, word) in [(0, features), (1, features >> 32)] {
            self.put(0x024, select);
            self.put(0x020, word as u32);
        }
    }

    /// As [`Driver::negotiate`](super::Driver::negotiate).
    pub fn negotiate(&mut self, features: u64) -> u64 {
        self.negotiate_packed(features & !RING_PACKED)
    }

    /// As [`Driver::negotiate_packed`](super::Driver::negotiate_packed).
    pub fn negotiate_packed(&mut self, features: u64) -> u64 {
        assert_eq!(self.set_status(0), 0, "reset");
        self.set_status(1);
        self.set_status(3);
        let accepted = self.offered() & features;
        self.accept(accepted);
        assert_eq!(self.set_status(0xb), 0xb, "FEATURES_OK was refused");
        accepted
    }

    /// Sets a queue up, of at most `size` descriptors, with its ring at `base`, and makes it ready.
    pub fn queue(
        &mut self,
        queue: u16,
        memory: &Arc<GuestMemoryMmap>,
        base: u64,
        size: u16,
    ) -> Ring {
        split(self, queue, memory, base, size)
    }

    /// As [`queue`](Self::queue), for a packed queue.
    pub fn queue_packed(
        &mut self,
        queue: u16,
        memory: &Arc<GuestMemoryMmap>,
        base: u64,
        size: u16,
    ) -> PackedRing {
        packed(self, queue, memory, base, size)
    }

    /// Notifies the device of a queue.
    pub fn kick(&mut self, queue: u16) {
        self.put(0x050, queue.into());
    }
}

impl<A: GuestAddressSpace> Slots for MmioDriver<A> {
    fn queue_max(&mut self, queue: u16) -> u16 {
        self.put(0x030, queue.into());
        assert_eq!(self.get(0x044), 0, "queue {queue} is in use");
        let max = self.get(0x034) as u16;
        assert_ne!(max, 0, "queue {queue} does not exist");
        max
    }

    fn place(&mut self, queue: u16, size: u16, areas: [u64; 3]) {
        self.put(0x038, size.into());
        for (offset, address) in [0x080, 0x090, 0x0a0].into_iter().zip(areas) {
            self.put(offset, address as u32);
            self.put(offset + 4, (address >> 32) as u32);
        }
        self.put(0x044, 1);
        assert_eq!(self.get(0x044), 1, "queue {queue} was not made ready");
    }
}
