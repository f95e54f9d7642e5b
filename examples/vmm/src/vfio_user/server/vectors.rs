// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts as a server raises them: events that the client gave, one a vector.

use hvkit_virtio_devices::pci::{MsiError, MsiMessage, MsiVectors};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// The client's events.
#[derive(Debug)]
pub struct Events(Mutex<Vec<Option<EventFd>>>);

impl Events {
    /// `count` vectors, which nobody hears yet.
    #[must_use]
    pub fn new(count: u16) -> Self {
        Events(Mutex::new((0..count).map(|_| None).collect()))
    }

    fn events(&self) -> MutexGuard<'_, Vec<Option<EventFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many vectors there are.
    pub(super) fn count(&self) -> u32 {
        // As many as `new` was told of.
        self.events().len() as u32
    }

    /// From now on `vector` is told by `event`, or not at all; false if there is no such vector.
    pub(super) fn set(&self, vector: u32, event: Option<EventFd>) -> bool {
        let mut events = self.events();
        let place = usize::try_from(vector)
            .ok()
            .and_then(|at| events.get_mut(at));
        place.map(|place| *place = event).is_some()
    }

    pub(super) fn clear(&self) {
        self.events().fill_with(|| None);
    }
}

impl MsiVectors for Events {
    fn route(&self, _vector: u16, _message: MsiMessage) -> Result<(), MsiError> {
        // The client's table says where it leads.
        Ok(())
    }

    fn mask(&self, _vector: u16) -> Result<(), MsiError> {
        Ok(())
    }

    fn deliver(&self, vector: u16) -> Result<(), MsiError> {
        if let Some(Some(event)) = self.events().get(usize::from(vector)) {
            // Fails only if the counter is full, and then the client has been told.
            let _ = event.write(1);
        }
        Ok(())
    }

    fn event(&self, _vector: u16) -> Option<EventFd> {
        // It may be another one tomorrow.
        None
    }
}
