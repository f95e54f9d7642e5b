// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One interrupt line, and a register that says what it is about.
//!
//! "InterruptStatus", "InterruptACK" in "MMIO Device Register Layout" (4.2.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::{Failure, Interrupts, Trouble};
use crate::pci::{InterruptLine, Level};
use crate::transport::session::SharedStatus;
use crate::transport::{News, Report, Status, TroubleReport};

const USED_BUFFER: u32 = 1;
const CONFIGURATION: u32 = 2;

/// A device's interrupt, shared by its registers and its workers.
pub(super) struct MmioInterrupts {
    status: Arc<SharedStatus>,
    state: Mutex<State>,
}

/// What the lock guards.
pub(super) struct State {
    pending: u32,
    line: Arc<dyn InterruptLine>,
    report: Option<Report>,
    trouble: Option<TroubleReport>,
    news: News,
}

impl MmioInterrupts {
    pub(super) fn new(line: Arc<dyn InterruptLine>, status: Arc<SharedStatus>) -> Self {
        Self {
            status,
            state: Mutex::new(State {
                pending: 0,
                line,
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
    pub(super) fn set_report(&mut self, report: Report) {
        self.report = Some(report);
    }

    pub(super) fn set_trouble_report(&mut self, report: TroubleReport) {
        self.trouble = Some(report);
    }

    pub(super) fn pending(&self) -> u32 {
        self.pending
    }

    pub(super) fn generation(&mut self) -> u32 {
        self.news.generation()
    }

    /// What changes are told by is about to be restored.
    pub(super) fn keep_news(&mut self) {
        self.news.keep();
    }

    /// Tells of a change that was kept, and of each from now on.
    pub(super) fn tell(&mut self) {
        if self.news.end() {
            self.raise(CONFIGURATION);
        }
    }

    /// Takes what was saved.
    pub(super) fn restore(&mut self, pending: u32, generation: u32) {
        self.pending = pending & (USED_BUFFER | CONFIGURATION);
        self.news.restore(generation);
        self.drive();
    }

    pub(super) fn acknowledge(&mut self, bits: u32) {
        self.pending &= !bits;
        self.drive();
    }

    fn raise(&mut self, bit: u32) {
        self.pending |= bit;
        self.drive();
    }

    fn drive(&self) {
        self.line.set(match self.pending {
            0 => Level::Deasserted,
            _ => Level::Asserted,
        });
    }
}

impl Interrupts for MmioInterrupts {
    fn queue(&self, _index: u16) {
        self.lock().raise(USED_BUFFER);
    }

    fn config(&self) {
        self.config_changes(&mut || ());
    }

    fn config_changes(&self, change: &mut dyn FnMut()) {
        let mut state = self.lock();
        change();
        if state.news.comes() {
            state.raise(CONFIGURATION);
        }
    }

    fn needs_reset(&self, why: &Failure) {
        self.status.add(Status::DEVICE_NEEDS_RESET);
        let report = {
            let mut state = self.lock();
            state.raise(CONFIGURATION);
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
