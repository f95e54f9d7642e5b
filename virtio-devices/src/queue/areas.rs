// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The three areas of a queue, in either layout: how large they are, and where they are in memory.
//!
//! "Split Virtqueues" (2.7), "Packed Virtqueues" (2.8).

use vm_memory::{GuestMemory, Permissions};

use super::reach::{Reach, Slice};
use super::words::{Fault, Place, Scattered};
use super::{Area, QueueConfig, QueueError};

/// Which words the areas hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Descriptor table, available ring, used ring.
    Split,
    /// Descriptor ring, two event suppression structures.
    Packed,
}

/// What an area must be like.
pub(super) struct AreaShape {
    pub(super) area: Area,
    pub(super) address: u64,
    pub(super) alignment: u64,
    pub(super) length: u64,
    pub(super) access: Permissions,
}

impl QueueConfig {
    /// Bytes of the descriptor, driver and device areas of a queue of that layout, and what is done there.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn lengths(&self, layout: Layout) -> [(u64, Permissions); 3] {
        self.areas(layout).map(|area| (area.length, area.access))
    }

    /// The three areas: what they are called, where they lie, how many bytes they have, how they must be
    /// aligned and what we do there.
    #[inline(always)]
    pub(super) fn areas(&self, layout: Layout) -> [AreaShape; 3] {
        use Permissions::{Read, ReadWrite, Write};
        // At most 2^15 of at most 16 bytes: no sum below overflows.
        let entries = u64::from(self.size);
        let table = entries << 4;
        let shape = |area, address, (alignment, length, access)| AreaShape {
            area,
            address,
            alignment,
            length,
            access,
        };
        let (descriptor, driver, device) = match layout {
            Layout::Split => (
                (16, table, Read),
                (2, (entries << 1).wrapping_add(6), Read),
                (4, (entries << 3).wrapping_add(6), Write),
            ),
            Layout::Packed => ((16, table, ReadWrite), (4, 4, Read), (4, 4, Write)),
        };
        [
            shape(Area::Descriptor, self.descriptor_area, descriptor),
            shape(Area::Driver, self.driver_area, driver),
            shape(Area::Device, self.device_area, device),
        ]
    }
}

/// The words of the three areas.
pub(super) struct Areas<W> {
    pub(super) descriptors: W,
    pub(super) driver: W,
    pub(super) device: W,
}

/// The three areas, found in memory.
pub(super) enum Places<'m, M: GuestMemory + ?Sized> {
    /// Each in one piece.
    Whole(Areas<Slice<'m, M>>),
    /// At least one in several pieces, and so all are accessed the slow way.
    Scattered(Areas<Scattered<'m, M>>),
}

/// Finds the three areas.
#[inline(always)]
pub(super) fn find<'m, M: GuestMemory + ?Sized>(
    config: &QueueConfig,
    layout: Layout,
    reach: &Reach<'m, M>,
) -> Places<'m, M> {
    let shapes = config.areas(layout);
    let places = shapes
        .each_ref()
        .map(|area| Place::find(reach, area.address, area.length, area.access));
    match places {
        [
            Place::Whole(descriptors),
            Place::Whole(driver),
            Place::Whole(device),
        ] => Places::Whole(Areas {
            descriptors,
            driver,
            device,
        }),
        _ => {
            let [descriptors, driver, device] =
                shapes.map(|area| Place::scattered(reach, area.address, area.length));
            Places::Scattered(Areas {
                descriptors,
                driver,
                device,
            })
        }
    }
}

impl From<Fault> for Box<QueueError> {
    #[cold]
    fn from(fault: Fault) -> Self {
        Box::new(fault.into())
    }
}

impl From<Fault> for QueueError {
    #[cold]
    fn from(fault: Fault) -> Self {
        Self::Access {
            address: fault.address,
            source: fault.source,
        }
    }
}
