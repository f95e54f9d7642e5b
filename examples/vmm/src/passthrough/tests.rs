// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function of bytes on the guest's bus, and guests of every kind: with raw words, not with what
//! the code under test would make of them.

mod given_up;
mod hostile;
mod interrupts;
mod registers;
mod view;

use super::assigned::{Assigned, AssignedError, Wiring};
use super::fake::{FakePhysical, FakeSlots};
use super::view::Windows;
use crate::interrupts::fake::FakeKernel;
use crate::interrupts::{Gsi, KvmMsiVectors, LevelEvent, Router};
use hvkit_virtio_devices::pci::PciFunction;
use std::sync::Arc;

/// Room as in a machine with 4 GiB: 512 MiB below, 64 GiB above.
pub(super) const WINDOWS: Windows = Windows {
    low: 0x2000_0000,
    high: 0x10_0000_0000,
};

/// Offsets of the capabilities in [`config`].
pub(super) const MSIX: u16 = 0x40;
pub(super) const POWER: u16 = 0x60;
pub(super) const EXPRESS: u16 = 0x80;
pub(super) const MSI: u16 = 0xc0;
pub(super) const VENDOR: u16 = 0xe0;

/// Lengths of the windows in [`config`].
pub(super) const LENGTHS: [usize; 6] = [0x4000, 0, 0x20, 0x100, 0x8000, 0];

/// The configuration space of a controller that has one of everything.
pub(super) fn config() -> [u8; 256] {
    let words: &[(u16, u32)] = &[
        (0x00, 0x0010_1b36),
        // Capabilities, and an error of the past; memory decodes.
        (0x04, 0x2010_0002),
        (0x08, 0x0108_0202),
        (0x0c, 0x0080_0010),
        // 64 bits; I/O; 32 bits; 64 bits, prefetchable.
        (0x10, 0xfebd_0004),
        (0x14, 0x0000_0001),
        (0x18, 0x0000_c001),
        (0x1c, 0xfebc_0000),
        (0x20, 0x0000_000c),
        (0x24, 0x0000_0002),
        (0x2c, 0x1100_1af4),
        (0x30, 0xfeb0_0001),
        (0x34, 0x0000_0040),
        (0x3c, 0x0000_030b),
        // MSI-X: five vectors, table at 0x2000, pending bits at 0x3000 of BAR 0.
        (0x40, 0x0004_8011),
        (0x44, 0x0000_2000),
        (0x48, 0x0000_3000),
        // Power management.
        (0x60, 0xc803_c001),
        (0x64, 0x0000_0003),
        // PCI Express 2, endpoint; FLR, role-based errors, extended tags, 256 bytes, latencies.
        (0x80, 0x0002_6010),
        (0x84, 0x1000_8fe1),
        (0x88, 0x0020_2810),
        (0x8c, 0x0041_5c11),
        (0xa4, 0x001f_0816),
        // MSI: four vectors, 64 bits, masks of its own.
        (0xc0, 0x0184_e005),
        // Vendor-specific, 16 bytes.
        (0xe0, 0xab10_0009),
        (0xe4, 0x1111_2222),
        (0xe8, 0x3333_4444),
        (0xec, 0x5555_6666),
    ];
    let mut config = [0; 256];
    for &(at, word) in words {
        config[usize::from(at)..][..4].copy_from_slice(&word.to_le_bytes());
    }
    config
}

/// The function on a guest's bus, with all that is around it.
pub(super) struct Bench {
    pub(super) function: Assigned,
    pub(super) physical: FakePhysical,
    pub(super) slots: FakeSlots,
    pub(super) kernel: Arc<FakeKernel>,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(FakePhysical::new(config(), LENGTHS)).unwrap()
    }

    pub(super) fn with(physical: FakePhysical) -> Result<Self, AssignedError> {
        use super::PhysicalFunction;
        let slots = FakeSlots::default();
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        let pin = physical
            .has_pin()
            .then(|| LevelEvent::new(Arc::clone(&router), Gsi(17)).unwrap());
        let wiring = Wiring {
            vectors: &mut |count| Ok(Arc::new(KvmMsiVectors::new(Arc::clone(&router), count)?)),
            pin,
            slots: Arc::new(slots.clone()),
            windows: WINDOWS,
        };
        Ok(Bench {
            function: Assigned::new(Box::new(physical.clone()), wiring)?,
            physical,
            slots,
            kernel,
        })
    }

    pub(super) fn read(&mut self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.function.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(super) fn write(&mut self, offset: u16, value: u32) {
        self.function.config_write(offset, &value.to_le_bytes());
    }

    pub(super) fn write_half(&mut self, offset: u16, value: u16) {
        self.function.config_write(offset, &value.to_le_bytes());
    }
}
