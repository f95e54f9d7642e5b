// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The window of what a device has beside queues and configuration.
//!
//! ```text
//!   00_0000 doorbells, 4 bytes each     00_1000 notification structure     20_0000 memory
//! ```
//!
//! Three capabilities say where: doorbells (`cfg_type` 6, with the bytes between two as `notify_off_multiplier` has them),
//! the notification structure (7), and memory (8, region 0). The numbers 6 and 7 are those of the proposal that
//! [`resources`](crate::resources) names; 8 is the specification's "Shared memory capability" (4.1.4.7).

use crate::pci::Window;
use crate::pci::bar::BarKind;
use crate::pci::config::ConfigSpace;
use crate::resources::{DOORBELL_STRIDE, MOST, Place, Resources};

use super::PciError;
use super::interrupts::State;
use super::layout::{VENDOR_CAPABILITY, capability};

/// The base address register of the window, which is 64 bits wide and prefetchable.
pub(super) const BAR: u8 = 2;

const NOTIFICATIONS: u64 = 0x1000;
/// Bytes of the notification structure: `notification_select`, `notification_msix_vector`.
const NOTIFICATIONS_LENGTH: u64 = 4;
/// Where a large page can begin.
const MEMORY: u64 = 0x20_0000;

const _: () = assert!(MOST as u64 * DOORBELL_STRIDE <= NOTIFICATIONS);

const DOORBELL_CFG: u8 = 6;
const NOTIFICATION_CFG: u8 = 7;
const SHARED_MEMORY_CFG: u8 = 8;

/// The window, and who is behind it.
pub(super) struct ResourceWindow {
    resources: Box<dyn Resources>,
}

impl ResourceWindow {
    pub(super) fn new(resources: Box<dyn Resources>) -> Self {
        Self { resources }
    }

    pub(super) fn notifications(&self) -> u16 {
        self.resources.notifications().min(MOST)
    }

    /// Bytes of the window.
    pub(super) fn length(&self) -> u64 {
        let length = MEMORY.saturating_add(self.resources.memory());
        length.checked_next_power_of_two().unwrap_or(u64::MAX)
    }

    /// Gives the function the window, and the capabilities that say what is where.
    pub(super) fn declare(&self, config: &mut ConfigSpace) -> Result<(), PciError> {
        let memory = self.resources.memory();
        config.add_bar(BAR, BarKind::Memory64Prefetchable, self.length())?;
        let doorbells = u64::from(self.resources.doorbells().min(MOST)) * DOORBELL_STRIDE;
        let mut body = capability(DOORBELL_CFG, BAR, 20, &(0..doorbells)).to_vec();
        body.extend((DOORBELL_STRIDE as u32).to_le_bytes());
        config.add_capability(VENDOR_CAPABILITY, &body, &[])?;
        let place = NOTIFICATIONS..NOTIFICATIONS + NOTIFICATIONS_LENGTH;
        let body = capability(NOTIFICATION_CFG, BAR, 16, &place);
        config.add_capability(VENDOR_CAPABILITY, &body, &[])?;
        // "struct virtio_pci_cap64": the high halves of offset and length follow.
        let mut body = capability(
            SHARED_MEMORY_CFG,
            BAR,
            24,
            &(MEMORY..MEMORY.saturating_add(memory)),
        )
        .to_vec();
        body.extend([0; 4]);
        body.extend(((memory >> 32) as u32).to_le_bytes());
        config.add_capability(VENDOR_CAPABILITY, &body, &[])?;
        Ok(())
    }

    /// Reads the window while `selected` is `notification_select`.
    pub(super) fn read(interrupts: &State, selected: u16, offset: u64, data: &mut [u8]) {
        let [s0, s1] = selected.to_le_bytes();
        let [v0, v1] = interrupts.notification_vector(selected).to_le_bytes();
        data.fill(0);
        for (byte, at) in data.iter_mut().zip(offset..) {
            let structure = at
                .checked_sub(NOTIFICATIONS)
                .and_then(|at| usize::try_from(at).ok());
            *byte = structure
                .and_then(|at| [s0, s1, v0, v1].get(at).copied())
                .unwrap_or(0);
        }
    }

    /// Takes each field of the notification structure that a write covers whole. A doorbell that comes here rings for
    /// nobody: those that do are events of the host's.
    pub(super) fn write(interrupts: &mut State, selected: &mut u16, offset: u64, data: &[u8]) {
        let field = |at: u64| {
            let start =
                usize::try_from(NOTIFICATIONS.checked_add(at)?.checked_sub(offset)?).ok()?;
            let bytes = data.get(start..start.checked_add(2)?)?;
            Some(u16::from_le_bytes(bytes.try_into().ok()?))
        };
        if let Some(written) = field(0) {
            *selected = written;
        }
        if let Some(vector) = field(2) {
            interrupts.set_notification_vector(*selected, vector);
        }
    }

    pub(super) fn added(&mut self, window: Window) {
        if window.bar == BAR
            && let Some(memory) = window.address.checked_add(MEMORY)
        {
            self.resources.placed(Place {
                doorbells: window.address,
                memory,
            });
        }
    }

    pub(super) fn removed(&mut self, window: Window) {
        if window.bar == BAR {
            self.resources.removed();
        }
    }
}
