// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The common configuration structure, "struct virtio_pci_common_cfg".
//!
//! A write takes effect on each field that it covers whole, in order of offset, a 64-bit field being two of
//! 32; what it covers of a field in part is dropped. Reads may have any shape.
//!
//! "Common configuration structure layout" (4.1.4.3).

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::interrupts::PciInterrupts;
use super::layout::COMMON;
use crate::bytes::read_at;
use crate::device::Interrupts;
use crate::transport::queue_registers::Half;
use crate::transport::session::{Outcome, Session};

/// Offsets of the fields.
mod field {
    pub(super) const DEVICE_FEATURE_SELECT: u16 = 0x00;
    pub(super) const DEVICE_FEATURE: u16 = 0x04;
    pub(super) const DRIVER_FEATURE_SELECT: u16 = 0x08;
    pub(super) const DRIVER_FEATURE: u16 = 0x0c;
    pub(super) const CONFIG_VECTOR: u16 = 0x10;
    pub(super) const NUM_QUEUES: u16 = 0x12;
    pub(super) const DEVICE_STATUS: u16 = 0x14;
    pub(super) const CONFIG_GENERATION: u16 = 0x15;
    pub(super) const QUEUE_SELECT: u16 = 0x16;
    pub(super) const QUEUE_SIZE: u16 = 0x18;
    pub(super) const QUEUE_VECTOR: u16 = 0x1a;
    pub(super) const QUEUE_ENABLE: u16 = 0x1c;
    pub(super) const QUEUE_NOTIFY_OFF: u16 = 0x1e;
    pub(super) const QUEUE_DESC: u16 = 0x20;
    pub(super) const QUEUE_DESC_HIGH: u16 = 0x24;
    pub(super) const QUEUE_DRIVER: u16 = 0x28;
    pub(super) const QUEUE_DRIVER_HIGH: u16 = 0x2c;
    pub(super) const QUEUE_DEVICE: u16 = 0x30;
    pub(super) const QUEUE_DEVICE_HIGH: u16 = 0x34;
}

/// The fields that a driver may write, with their widths in bytes.
const WRITABLE: [(u16, u16); 15] = [
    (field::DEVICE_FEATURE_SELECT, 4),
    (field::DRIVER_FEATURE_SELECT, 4),
    (field::DRIVER_FEATURE, 4),
    (field::CONFIG_VECTOR, 2),
    (field::DEVICE_STATUS, 1),
    (field::QUEUE_SELECT, 2),
    (field::QUEUE_SIZE, 2),
    (field::QUEUE_VECTOR, 2),
    (field::QUEUE_ENABLE, 2),
    (field::QUEUE_DESC, 4),
    (field::QUEUE_DESC_HIGH, 4),
    (field::QUEUE_DRIVER, 4),
    (field::QUEUE_DRIVER_HIGH, 4),
    (field::QUEUE_DEVICE, 4),
    (field::QUEUE_DEVICE_HIGH, 4),
];

/// The registers that exist once, to say which of many the others are about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Selectors {
    device_feature: u32,
    driver_feature: u32,
    queue: u16,
    /// `notification_select` of the window beside: which of the device's notifications.
    pub(super) notification: u16,
}

impl Selectors {
    pub(super) fn save(self) -> [u32; 3] {
        [self.device_feature, self.driver_feature, self.queue.into()]
    }

    /// A queue that has no 16 bits is none that there is.
    pub(super) fn restore(&mut self, [device_feature, driver_feature, queue]: [u32; 3]) {
        *self = Self {
            device_feature,
            driver_feature,
            queue: u16::try_from(queue).unwrap_or(u16::MAX),
            notification: 0,
        };
    }
}

/// The structure, over the device it configures.
pub(super) struct Common<'a, A> {
    pub(super) selectors: &'a mut Selectors,
    pub(super) session: &'a mut Session<A>,
    pub(super) interrupts: &'a Arc<PciInterrupts>,
}

impl<A: GuestAddressSpace> Common<'_, A> {
    pub(super) fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_at(&self.image(), offset, data);
    }

    fn image(&mut self) -> [u8; COMMON as usize] {
        let mut image = [0; COMMON as usize];
        let mut put = |offset: u16, value: &[u8]| {
            // Every field below is inside.
            let there = image.iter_mut().skip(offset.into());
            there.zip(value).for_each(|(byte, given)| *byte = *given);
        };
        let status = self.status();
        let queue = self.selectors.queue;
        put(
            field::DEVICE_FEATURE_SELECT,
            &self.selectors.device_feature.to_le_bytes(),
        );
        let offered = self.session.offered(self.selectors.device_feature);
        put(field::DEVICE_FEATURE, &offered.to_le_bytes());
        put(
            field::DRIVER_FEATURE_SELECT,
            &self.selectors.driver_feature.to_le_bytes(),
        );
        let accepted = self.session.accepted(self.selectors.driver_feature);
        put(field::DRIVER_FEATURE, &accepted.to_le_bytes());
        put(field::NUM_QUEUES, &self.session.queue_count().to_le_bytes());
        put(field::DEVICE_STATUS, &[status]);
        put(field::QUEUE_SELECT, &queue.to_le_bytes());
        {
            let mut interrupts = self.interrupts.lock();
            put(
                field::CONFIG_VECTOR,
                &interrupts.config_vector().to_le_bytes(),
            );
            put(field::CONFIG_GENERATION, &[interrupts.generation()]);
            put(
                field::QUEUE_VECTOR,
                &interrupts.queue_vector(queue).to_le_bytes(),
            );
        }
        // A queue that does not exist has size 0 (4.1.4.3.1).
        if let Some(registers) = self.session.queue(queue) {
            let config = registers.config();
            put(field::QUEUE_SIZE, &config.size.to_le_bytes());
            put(
                field::QUEUE_ENABLE,
                &u16::from(registers.is_enabled()).to_le_bytes(),
            );
            put(field::QUEUE_NOTIFY_OFF, &queue.to_le_bytes());
            put(field::QUEUE_DESC, &config.descriptor_area.to_le_bytes());
            put(field::QUEUE_DRIVER, &config.driver_area.to_le_bytes());
            put(field::QUEUE_DEVICE, &config.device_area.to_le_bytes());
        }
        image
    }

    /// Resets the device, as by the driver.
    pub(super) fn reset(&mut self) {
        self.set_status(0);
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (field, width) in WRITABLE {
            let start = u64::from(field)
                .checked_sub(offset)
                .and_then(|s| usize::try_from(s).ok());
            let value = start.and_then(|s| data.get(s..s.checked_add(width.into())?));
            if let Some(value) = value {
                let mut word = [0; 4];
                let there = word.iter_mut().zip(value);
                there.for_each(|(byte, given)| *byte = *given);
                self.set(field, u32::from_le_bytes(word));
            }
        }
    }

    fn set(&mut self, field: u16, value: u32) {
        let half = value as u16;
        let index = self.selectors.queue;
        match field {
            field::DEVICE_FEATURE_SELECT => self.selectors.device_feature = value,
            field::DRIVER_FEATURE_SELECT => self.selectors.driver_feature = value,
            field::DRIVER_FEATURE => self.session.accept(self.selectors.driver_feature, value),
            field::CONFIG_VECTOR => self.interrupts.lock().set_config_vector(half),
            field::DEVICE_STATUS => self.set_status(value as u8),
            field::QUEUE_SELECT => self.selectors.queue = half,
            field::QUEUE_VECTOR => self.interrupts.lock().set_queue_vector(index, half),
            _ => {
                let layout = self.session.layout();
                let Some(queue) = self.session.queue_mut(index) else {
                    return;
                };
                match field {
                    field::QUEUE_SIZE => queue.set_size(half, layout),
                    // "The driver MUST NOT write a 0 to queue_enable" (4.1.4.3.2).
                    field::QUEUE_ENABLE if half == 1 => queue.enable(),
                    field::QUEUE_DESC => queue.set_descriptor_area(Half::Low, value),
                    field::QUEUE_DESC_HIGH => queue.set_descriptor_area(Half::High, value),
                    field::QUEUE_DRIVER => queue.set_driver_area(Half::Low, value),
                    field::QUEUE_DRIVER_HIGH => queue.set_driver_area(Half::High, value),
                    field::QUEUE_DEVICE => queue.set_device_area(Half::Low, value),
                    field::QUEUE_DEVICE_HIGH => queue.set_device_area(Half::High, value),
                    _ => {}
                }
            }
        }
    }

    fn status(&mut self) -> u8 {
        let (status, outcome) = self.session.status();
        self.after(outcome);
        status.bits()
    }

    fn set_status(&mut self, value: u8) {
        let interrupts: Arc<dyn Interrupts> = self.interrupts.clone();
        let outcome = self.session.set_status(value, &interrupts);
        self.after(outcome);
    }

    fn after(&mut self, outcome: Outcome) {
        if outcome == Outcome::Reset {
            *self.selectors = Selectors::default();
            self.interrupts.lock().reset();
        }
    }
}
