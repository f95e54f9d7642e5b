// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where things are: one window, each structure in pages of its own.
//!
//! ```text
//!   0000 common configuration    2000 device configuration    4000 MSI-X table
//!   1000 ISR status              3000 notify, 4 bytes a queue  ...  MSI-X pending bits
//! ```
//!
//! "Virtio Structure PCI Capabilities" (4.1.4).

use std::ops::Range;

use crate::pci::config::{CapabilityError, ConfigSpace};
use crate::pci::msix::{self, Msix, Place};

/// The base address register of the one window, which is 64 bits wide.
pub(super) const BAR: u8 = 0;
/// Bytes between the notification addresses of two queues.
pub(super) const NOTIFY_STRIDE: u64 = 4;
/// What the notify structure has room for.
pub(super) const MAX_QUEUES: u16 = 1024;

const PAGE: u64 = 0x1000;
/// Bytes of the common configuration structure, `queue_reset` and the administration fields included.
pub(super) const COMMON: u64 = 0x40;
const DEVICE: u64 = 0x1000;

/// PCI's identifier of a vendor's own capability.
pub(super) const VENDOR_CAPABILITY: u8 = 0x09;

/// Offset of `pci_cfg_data` in the capability for access by configuration space.
pub(super) const CFG_DATA: u16 = 16;
/// Offset of Message Control in the MSI-X capability.
const MSIX_CONTROL: u16 = 2;

/// What is at an offset of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Structure {
    Common,
    Isr,
    Device,
    Notify,
    Table,
    Pending,
}

/// The values of `cfg_type`.
#[derive(Clone, Copy)]
#[repr(u8)]
enum CfgType {
    Common = 1,
    Notify = 2,
    Isr = 3,
    Device = 4,
    Pci = 5,
}

/// The window's layout, which depends on the number of vectors and queues.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    places: [(Structure, Range<u64>); 6],
}

impl Layout {
    pub(super) fn new(queues: u16, msix: &Msix) -> Self {
        // At most 2^16 queues and 2048 vectors: all is far below 4 GiB.
        let place = |start: u64, length: u64| start..start.saturating_add(length);
        let table = place(4 * PAGE, msix.table_length());
        let pending = table.end.next_multiple_of(PAGE);
        let notify = NOTIFY_STRIDE.saturating_mul(queues.into());
        Self {
            places: [
                (Structure::Common, 0..COMMON),
                (Structure::Isr, PAGE..PAGE + 1),
                (Structure::Device, 2 * PAGE..2 * PAGE + DEVICE),
                (Structure::Notify, place(3 * PAGE, notify)),
                (Structure::Table, table),
                (Structure::Pending, place(pending, msix.pending_length())),
            ],
        }
    }

    /// Bytes of the window.
    pub(super) fn length(&self) -> u64 {
        let end = self.places.iter().map(|(_, place)| place.end).max();
        end.unwrap_or(PAGE).next_power_of_two()
    }

    pub(super) fn place(&self, structure: Structure) -> &Range<u64> {
        // The array has all of them: the default is never used.
        let mut places = self.places.iter();
        let place = places.find(|(which, _)| *which == structure);
        place.map_or(&(0..0), |(_, place)| place)
    }

    /// The structure that holds the byte at `offset`, the offset in it, and how many bytes it has from there.
    pub(super) fn find(&self, offset: u64) -> Option<(Structure, u64, usize)> {
        let (structure, place) = self
            .places
            .iter()
            .find(|(_, place)| place.contains(&offset))?;
        let left = usize::try_from(place.end.checked_sub(offset)?).ok()?;
        Some((*structure, offset.checked_sub(place.start)?, left))
    }

    /// Appends the capabilities that say so.
    pub(super) fn declare(
        &self,
        config: &mut ConfigSpace,
        msix: &Msix,
    ) -> Result<Declared, CapabilityError> {
        for (cfg_type, structure) in [
            (CfgType::Common, Structure::Common),
            (CfgType::Isr, Structure::Isr),
            (CfgType::Device, Structure::Device),
        ] {
            let body = capability(cfg_type as u8, BAR, 16, self.place(structure));
            config.add_capability(VENDOR_CAPABILITY, &body, &[])?;
        }
        let place = self.place(Structure::Notify);
        let mut notify = capability(CfgType::Notify as u8, BAR, 20, place).to_vec();
        notify.extend((NOTIFY_STRIDE as u32).to_le_bytes());
        config.add_capability(VENDOR_CAPABILITY, &notify, &[])?;
        let at = |structure| Place {
            bar: BAR,
            offset: self.place(structure).start as u32,
        };
        let (body, writable) = msix.capability(at(Structure::Table), at(Structure::Pending));
        let msix = config.add_capability(msix::CAPABILITY, &body, &writable)?;
        // bar, offset, length and the data are the driver's to write (4.1.4.9).
        let mut access = capability(CfgType::Pci as u8, BAR, 20, &(0..0)).to_vec();
        access.extend([0; 4]);
        let mut writable = [0xff; 18];
        writable[..2].fill(0);
        writable[3..6].fill(0);
        let access = config.add_capability(VENDOR_CAPABILITY, &access, &writable)?;
        Ok(Declared { msix, access })
    }
}

/// Offsets of the capabilities that act when they are written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Declared {
    pub(super) msix: u16,
    /// For access by configuration space (4.1.4.9).
    pub(super) access: u16,
}

impl Declared {
    /// Its "pci_cfg_data".
    pub(super) fn access_data(self) -> u16 {
        self.access.saturating_add(CFG_DATA)
    }

    /// MSI-X's message control.
    pub(super) fn msix_control(self) -> u16 {
        self.msix.saturating_add(MSIX_CONTROL)
    }
}

/// "struct virtio_pci_cap" after its first two bytes.
pub(super) fn capability(cfg_type: u8, bar: u8, length: u8, place: &Range<u64>) -> [u8; 14] {
    // What is above 4 GiB goes into other fields, where there are any.
    let [a, b, c, d] = (place.start as u32).to_le_bytes();
    let [e, f, g, h] = (place.end.saturating_sub(place.start) as u32).to_le_bytes();
    [length, cfg_type, bar, 0, 0, 0, a, b, c, d, e, f, g, h]
}
