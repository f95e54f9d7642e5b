// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From "queue 3 has news" to a message, or to the ISR status byte and the interrupt pin.
//!
//! "ISR status capability" (4.1.4.5), "MSI-X Vector Configuration" (4.1.5.1.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{Failure, Interrupts, Trouble};
use crate::pci::msix::{Msix, VectorState};
use crate::pci::{InterruptLine, Level};
use crate::transport::session::SharedStatus;
use crate::transport::{News, Report, Status, TroubleReport};

/// VIRTIO_MSI_NO_VECTOR.
pub(super) const NO_VECTOR: u16 = 0xffff;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Interrupts as they were saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct InterruptState {
    /// The MSI-X table and its pending bits.
    pub vectors: Vec<VectorState>,
    /// The vector for changes of configuration.
    pub config_vector: u16,
    /// The vector of each queue.
    pub queue_vectors: Vec<u16>,
    /// ISR status.
    pub isr: u8,
    /// `config_generation`.
    pub generation: u8,
}

/// A device's interrupts, shared by its registers and its workers.
pub(super) struct PciInterrupts {
    status: Arc<SharedStatus>,
    state: Mutex<State>,
}

/// What the lock guards: registers that workers read and vCPUs write.
pub(super) struct State {
    pub(super) msix: Msix,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    /// Of the device's resources.
    notification_vectors: Vec<u16>,
    isr: u8,
    pin_disabled: bool,
    line: Option<Arc<dyn InterruptLine>>,
    report: Option<Report>,
    trouble: Option<TroubleReport>,
    news: News,
}

impl PciInterrupts {
    pub(super) fn new(
        msix: Msix,
        queues: u16,
        notifications: u16,
        status: Arc<SharedStatus>,
    ) -> Self {
        Self {
            status,
            state: Mutex::new(State {
                msix,
                config_vector: NO_VECTOR,
                queue_vectors: vec![NO_VECTOR; queues.into()],
                notification_vectors: vec![NO_VECTOR; notifications.into()],
                isr: 0,
                pin_disabled: false,
                line: None,
                report: None,
                trouble: None,
                news: News::default(),
            }),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere left the registers in a state that a driver could have made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn set_line(&mut self, line: Arc<dyn InterruptLine>) {
        self.line = Some(line);
    }

    pub(super) fn set_report(&mut self, report: Report) {
        self.report = Some(report);
    }

    pub(super) fn set_trouble_report(&mut self, report: TroubleReport) {
        self.trouble = Some(report);
    }

    pub(super) fn save(&mut self) -> InterruptState {
        InterruptState {
            vectors: self.msix.save(),
            config_vector: self.config_vector,
            queue_vectors: self.queue_vectors.clone(),
            isr: self.isr,
            generation: self.generation(),
        }
    }

    /// What changes are told by is about to be restored.
    pub(super) fn keep_news(&mut self) {
        self.news.keep();
    }

    /// Tells of a change that was kept, and of each from now on; and by the pin, of what was not taken before.
    pub(super) fn tell(&mut self) {
        if self.news.end() {
            self.config_event();
        }
        self.drive();
    }

    /// Takes what was saved, of as many vectors and queues as there are.
    pub(super) fn restore(&mut self, state: &InterruptState) {
        self.msix.restore(&state.vectors);
        self.config_vector = self.checked(state.config_vector);
        for (queue, vector) in (0..).zip(&state.queue_vectors) {
            self.set_queue_vector(queue, *vector);
        }
        self.isr = state.isr & (ISR_QUEUE | ISR_CONFIG);
        self.news.restore(state.generation.into());
    }

    /// The virtio part of a reset. MSI-X belongs to PCI and keeps its state.
    pub(super) fn reset(&mut self) {
        self.config_vector = NO_VECTOR;
        self.queue_vectors.fill(NO_VECTOR);
        self.notification_vectors.fill(NO_VECTOR);
        self.isr = 0;
        self.drive();
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector
    }

    pub(super) fn set_config_vector(&mut self, vector: u16) {
        self.config_vector = self.checked(vector);
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(queue))
            .copied()
            .unwrap_or(NO_VECTOR)
    }

    pub(super) fn set_queue_vector(&mut self, queue: u16, vector: u16) {
        let vector = self.checked(vector);
        if let Some(place) = self.queue_vectors.get_mut(usize::from(queue)) {
            *place = vector;
        }
    }

    pub(super) fn notification_vector(&self, index: u16) -> u16 {
        let vector = self.notification_vectors.get(usize::from(index));
        vector.copied().unwrap_or(NO_VECTOR)
    }

    pub(super) fn set_notification_vector(&mut self, index: u16, vector: u16) {
        let vector = self.checked(vector);
        if let Some(place) = self.notification_vectors.get_mut(usize::from(index)) {
            *place = vector;
        }
    }

    /// A vector that does not exist reads back as NO_VECTOR, which is how the driver learns of it.
    fn checked(&self, vector: u16) -> u16 {
        if vector < self.msix.count() {
            vector
        } else {
            NO_VECTOR
        }
    }

    pub(super) fn generation(&mut self) -> u8 {
        // What there is room for.
        self.news.generation() as u8
    }

    /// The ISR status byte; reading clears it and takes the pin back.
    pub(super) fn take_isr(&mut self) -> u8 {
        let isr = std::mem::take(&mut self.isr);
        self.drive();
        isr
    }

    /// Whether something waits for the driver to read the ISR status byte.
    pub(super) fn level(&self) -> Level {
        if self.isr != 0 && !self.msix.is_enabled() {
            Level::Asserted
        } else {
            Level::Deasserted
        }
    }

    /// The command register's Interrupt Disable has changed, or MSI-X was switched.
    pub(super) fn set_pin_disabled(&mut self, disabled: bool) {
        self.pin_disabled = disabled;
        self.drive();
    }

    fn queue_event(&mut self, queue: u16) {
        if self.msix.is_enabled() {
            self.msix.trigger(self.queue_vector(queue));
        } else {
            self.isr |= ISR_QUEUE;
            self.drive();
        }
    }

    fn config_event(&mut self) {
        self.isr |= ISR_CONFIG;
        if self.msix.is_enabled() {
            self.msix.trigger(self.config_vector);
        } else {
            self.drive();
        }
    }

    fn drive(&self) {
        // Half restored, it does not know yet whether the pin is used at all.
        if self.news.are_kept() {
            return;
        }
        if let Some(line) = &self.line {
            line.set(if self.pin_disabled {
                Level::Deasserted
            } else {
                self.level()
            });
        }
    }
}

impl Interrupts for PciInterrupts {
    fn queue(&self, index: u16) {
        self.lock().queue_event(index);
    }

    fn notification(&self, index: u16) {
        let mut state = self.lock();
        // By messages only: the ISR status has no bit for it.
        let vector = state.notification_vector(index);
        state.msix.trigger(vector);
    }

    fn config(&self) {
        self.config_changes(&mut || ());
    }

    fn config_changes(&self, change: &mut dyn FnMut()) {
        let mut state = self.lock();
        change();
        if state.news.comes() {
            state.config_event();
        }
    }

    fn needs_reset(&self, why: &Failure) {
        self.status.add(Status::DEVICE_NEEDS_RESET);
        let report = {
            let mut state = self.lock();
            state.config_event();
            state.report.clone()
        };
        if let Some(report) = report {
            report(why);
        }
    }

    fn trouble(&self, trouble: &Trouble) {
        let told = self.lock().trouble.clone();
        if let Some(told) = told {
            told(trouble);
        }
    }
}
