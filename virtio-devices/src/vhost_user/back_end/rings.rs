// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queues as the VMM sets them up, and how their driver is told.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vmm_sys_util::eventfd::EventFd;

use crate::device::{Failure, Interrupts, Trouble};
use crate::queue::{Position, QueueConfig};

/// A queue as far as it was set up.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) config: QueueConfig,
    /// Where it goes on.
    pub(super) base: Position,
    /// Present while it is started.
    pub(super) kick: Option<EventFd>,
    pub(super) enabled: bool,
}

impl Ring {
    /// Whether it is to be served.
    pub(super) fn is_live(&self) -> bool {
        self.enabled && self.kick.is_some()
    }
}

/// An event of the VMM's, made of the file that it sent: one that does not block, whatever the file is. None if the host
/// does not let us see to that.
#[expect(
    unsafe_code,
    reason = "an EventFd can be made of a descriptor in no other way"
)]
pub fn event(file: OwnedFd) -> Option<EventFd> {
    let flags = fcntl_getfl(&file).ok()?;
    fcntl_setfl(&file, flags | OFlags::NONBLOCK).ok()?;
    // SAFETY: the descriptor is ours alone, and the event becomes its owner. That it may be no eventfd matters to
    // nobody: it is read, written and watched, and each of these can fail.
    Some(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}

/// What a device's troubles are told to.
pub(super) type Report = Box<dyn Fn(&dyn std::error::Error) + Send + Sync>;

/// Tells the driver by the VMM's events.
pub(super) struct Calls {
    calls: Mutex<Vec<Option<EventFd>>>,
    errors: Mutex<Vec<Option<EventFd>>>,
    /// Whether each queue has failed since it was started last.
    failed: Vec<AtomicBool>,
    report: Report,
}

impl Calls {
    pub(super) fn new(queues: usize, report: Report) -> Arc<Self> {
        let none = || Mutex::new((0..queues).map(|_| None).collect());
        Arc::new(Self {
            calls: none(),
            errors: none(),
            failed: (0..queues).map(|_| AtomicBool::new(false)).collect(),
            report,
        })
    }

    /// From now on queue `index` is told by `event`, or not at all.
    pub(super) fn set_call(&self, index: usize, event: Option<EventFd>) {
        put(&self.calls, index, event);
    }

    /// Whether queue `index` is served no more until it is started again.
    pub(super) fn has_failed(&self, index: usize) -> bool {
        let failed = self.failed.get(index);
        failed.is_some_and(|failed| failed.load(Ordering::Acquire))
    }

    /// The queues are started.
    pub(super) fn forget_failures(&self) {
        for failed in &self.failed {
            failed.store(false, Ordering::Release);
        }
    }

    /// From now on errors of queue `index` are told by `event`, or not at all.
    pub(super) fn set_error(&self, index: usize, event: Option<EventFd>) {
        put(&self.errors, index, event);
    }
}

fn put(events: &Mutex<Vec<Option<EventFd>>>, index: usize, event: Option<EventFd>) {
    let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = events.get_mut(index) {
        *place = event;
    }
}

impl Interrupts for Calls {
    fn queue(&self, index: u16) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(call)) = calls.get(usize::from(index)) {
            // Fails only if the counter is full, and then the VMM has been told.
            let _ = call.write(1);
        }
    }

    fn config(&self) {
        // The VMM is not asked for the channel by which it could be told.
    }

    fn needs_reset(&self, why: &Failure) {
        let only = match why {
            Failure::Queue { index, .. } | Failure::Unanswerable { index, .. } => Some(*index),
            _ => None,
        };
        for (failed, index) in self.failed.iter().zip(0..) {
            if only.is_none_or(|only| only == index) {
                failed.store(true, Ordering::Release);
            }
        }
        (self.report)(why);
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        for error in errors.iter().flatten() {
            let _ = error.write(1);
        }
    }

    fn trouble(&self, trouble: &Trouble) {
        (self.report)(trouble);
    }
}
