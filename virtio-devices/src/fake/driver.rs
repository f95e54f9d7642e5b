// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A driver of virtio-pci, which knows nothing but configuration space and what it finds there.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use super::slots::{Slots, behind, packed, split};
use super::{PackedRing, Ring};
use crate::pci::PciFunction;

/// VIRTIO_F_RING_PACKED.
pub(super) const RING_PACKED: u64 = 1 << 34;

/// Something that can be driven as a PCI function: a function itself, or one on a bus.
pub trait TestFunction {
    /// Reads configuration space.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);
    /// Writes configuration space.
    fn config_write(&mut self, offset: u16, data: &[u8]);
    /// Reads a window.
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes a window.
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]);
}

impl<F: PciFunction> TestFunction for F {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        PciFunction::config_read(self, offset, data);
    }
    fn config_write(&mut self, offset: u16, data: &[u8]) {
        PciFunction::config_write(self, offset, data);
    }
    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        PciFunction::bar_read(self, bar, offset, data);
    }
    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        PciFunction::bar_write(self, bar, offset, data);
    }
}

/// Where a structure is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Base address register.
    pub bar: u8,
    /// Offset in its window.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A driver of one virtio-pci function.
#[derive(Debug)]
pub struct Driver<F> {
    /// The function.
    pub function: F,
    /// Common configuration.
    pub common: Region,
    /// Notification addresses.
    pub notify: Region,
    /// Bytes between the notification addresses of two queues.
    pub notify_stride: u32,
    /// ISR status.
    pub isr: Region,
    /// Device-specific configuration.
    pub device: Region,
    /// MSI-X table.
    pub table: Region,
    /// MSI-X pending bits.
    pub pending: Region,
    /// Offset of the MSI-X capability.
    pub msix: u16,
    /// Offset of the capability for access by configuration space.
    pub access: u16,
}

impl<F: TestFunction> Driver<F> {
    /// Finds the structures of a modern virtio function by its capabilities.
    pub fn probe(function: F) -> Self {
        let none = Region::default();
        let mut driver = Self {
            function,
            common: none,
            notify: none,
            notify_stride: 0,
            isr: none,
            device: none,
            table: none,
            pending: none,
            msix: 0,
            access: 0,
        };
        assert_eq!(driver.config(0, 2), 0x1af4, "vendor");
        assert_ne!(driver.config(6, 2) & 0x10, 0, "no capabilities");
        let mut at = driver.config(0x34, 1) as u16;
        let mut left = 48;
        while at != 0 {
            left -= 1;
            assert!(left > 0, "the list of capabilities does not end");
            assert_eq!(at % 4, 0, "capability at {at:#x}");
            match driver.config(at, 1) {
                0x09 => driver.virtio_capability(at),
                0x11 => {
                    let count = u64::from(driver.config(at + 2, 2) & 0x7ff) + 1;
                    let place = |word: u32, length| Region {
                        bar: (word & 7) as u8,
                        offset: u64::from(word & !7),
                        length,
                    };
                    driver.msix = at;
                    driver.table = place(driver.config(at + 4, 4), 16 * count);
                    driver.pending = place(driver.config(at + 8, 4), count.div_ceil(64) * 8);
                }
                _ => {}
            }
            at = driver.config(at + 1, 1) as u16;
        }
        // Memory, bus master.
        driver.function.config_write(4, &6u16.to_le_bytes());
        driver
    }

    fn virtio_capability(&mut self, at: u16) {
        let region = Region {
            bar: self.config(at + 4, 1) as u8,
            offset: self.config(at + 8, 4).into(),
            length: self.config(at + 12, 4).into(),
        };
        match self.config(at + 3, 1) {
            1 => self.common = region,
            2 => {
                self.notify = region;
                self.notify_stride = self.config(at + 16, 4);
            }
            3 => self.isr = region,
            4 => self.device = region,
            5 => self.access = at,
            _ => {}
        }
    }

    /// Reads 1, 2 or 4 bytes of configuration space.
    pub fn config(&mut self, offset: u16, width: usize) -> u32 {
        let mut raw = [0; 4];
        self.function.config_read(offset, &mut raw[..width]);
        u32::from_le_bytes(raw)
    }

    /// Reads `width` bytes, at most 8, of a structure.
    pub fn get(&mut self, region: Region, offset: u64, width: usize) -> u64 {
        let mut raw = [0; 8];
        self.function
            .bar_read(region.bar, region.offset + offset, &mut raw[..width]);
        u64::from_le_bytes(raw)
    }

    /// Writes the low `width` bytes of `value` to a structure.
    pub fn put(&mut self, region: Region, offset: u64, width: usize, value: u64) {
        let raw = value.to_le_bytes();
        self.function
            .bar_write(region.bar, region.offset + offset, &raw[..width]);
    }

    /// Reads the status field.
    pub fn status(&mut self) -> u8 {
        self.get(self.common, 0x14, 1) as u8
    }

    /// Writes the status field and reads it back.
    pub fn set_status(&mut self, status: u8) -> u8 {
        self.put(self.common, 0x14, 1, status.into());
        self.status()
    }

    /// The features that the device offers.
    pub fn offered(&mut self) -> u64 {
        self.put(self.common, 0x00, 4, 0);
        let low = self.get(self.common, 0x04, 4);
        self.put(self.common, 0x00, 4, 1);
        low | self.get(self.common, 0x04, 4) << 32
    }

    /// Writes the driver's features.
    pub fn accept(&mut self, features: u64) {
        for word in [0, 1] {
            self.put(self.common, 0x08, 4, word);
            self.put(
                self.common,
                0x0c,
                4,
                (features >> (32 * word)) & 0xffff_ffff,
            );
        }
    }

    /// Resets the device, then goes as far as FEATURES_OK with those of `features` that are offered, but
    /// without packed queues. Panics if the device refuses. Gives changes of configuration MSI-X vector 0. Returns
    /// the features.
    pub fn negotiate(&mut self, features: u64) -> u64 {
        self.negotiate_packed(features & !RING_PACKED)
    }

    /// As [`negotiate`](Self::negotiate), with packed queues if `features` have them.
    pub fn negotiate_packed(&mut self, features: u64) -> u64 {
        assert_eq!(self.set_status(0), 0, "reset");
        self.set_status(1);
        self.set_status(3);
        let accepted = self.offered() & features;
        self.accept(accepted);
        assert_eq!(self.set_status(0xb), 0xb, "FEATURES_OK was refused");
        self.put(self.common, 0x10, 2, 0);
        accepted
    }

    /// Sets a queue up, of at most `size` descriptors, with its ring at `base` and MSI-X vector
    /// `queue + 1`, and enables it.
    pub fn queue(
        &mut self,
        queue: u16,
        memory: &Arc<GuestMemoryMmap>,
        base: u64,
        size: u16,
    ) -> Ring {
        split(self, queue, memory, base, size)
    }

    /// As [`queue`](Self::queue), for a device behind an IOMMU, which has all of the ring `distance` further up than memory.
    pub fn queue_behind(
        &mut self,
        queue: u16,
        memory: &Arc<GuestMemoryMmap>,
        base: u64,
        size: u16,
        distance: u64,
    ) -> Ring {
        behind(self, queue, memory, base, size, distance)
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

    /// Enables MSI-X and unmasks every vector, with the address 0xfee00000 and the vector's number as data.
    pub fn enable_msix(&mut self) {
        let at = self.msix + 2;
        let control = self.config(at, 2) as u16;
        for vector in 0..u64::from(control & 0x7ff) + 1 {
            self.put(self.table, 16 * vector, 4, 0xfee0_0000);
            self.put(self.table, 16 * vector + 4, 4, 0);
            self.put(self.table, 16 * vector + 8, 4, vector);
            self.put(self.table, 16 * vector + 12, 4, 0);
        }
        self.function
            .config_write(at, &(control | 0x8000).to_le_bytes());
    }

    /// Notifies the device of a queue.
    pub fn kick(&mut self, queue: u16) {
        self.put(self.common, 0x16, 2, queue.into());
        let offset = self.get(self.common, 0x1e, 2) * u64::from(self.notify_stride);
        self.put(self.notify, offset, 2, queue.into());
    }
}

impl<F: TestFunction> Slots for Driver<F> {
    fn queue_max(&mut self, queue: u16) -> u16 {
        self.put(self.common, 0x16, 2, queue.into());
        let max = self.get(self.common, 0x18, 2) as u16;
        assert_ne!(max, 0, "queue {queue} does not exist");
        max
    }

    fn place(&mut self, queue: u16, size: u16, areas: [u64; 3]) {
        self.put(self.common, 0x18, 2, size.into());
        self.put(self.common, 0x1a, 2, u64::from(queue) + 1);
        for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(areas) {
            self.put(self.common, offset, 4, address & 0xffff_ffff);
            self.put(self.common, offset + 4, 4, address >> 32);
        }
        self.put(self.common, 0x1c, 2, 1);
        assert_eq!(
            self.get(self.common, 0x1c, 2),
            1,
            "queue {queue} was not enabled"
        );
    }
}
