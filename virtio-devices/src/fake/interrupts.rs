// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupts that go nowhere but into a list.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::pci::{InterruptLine, Level, MsiError, MsiMessage, MsiVectors};

/// A call that a function made of its vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`MsiVectors::route`].
    Routed(u16, MsiMessage),
    /// [`MsiVectors::mask`].
    Masked(u16),
    /// [`MsiVectors::deliver`].
    Delivered(u16),
}

/// What the fake host refuses from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Refuse {
    /// Nothing.
    #[default]
    Nothing,
    /// Every call.
    Everything,
    /// Deliveries.
    Deliveries,
}

/// Vectors that record what is asked of them.
///
/// Panics on a delivery while the vector is not routed, which no function may attempt.
#[derive(Debug, Default)]
pub struct Vectors {
    state: Mutex<(Vec<Event>, Refuse, Vec<u16>)>,
}

impl Vectors {
    /// The calls since the last time, in order.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.lock().0)
    }

    /// Vectors delivered since the last [`take`](Self::take); forgets the other calls too.
    pub fn delivered(&self) -> Vec<u16> {
        let delivered = |event| match event {
            Event::Delivered(vector) => Some(vector),
            _ => None,
        };
        self.take().into_iter().filter_map(delivered).collect()
    }

    /// Chooses what fails.
    pub fn refuse(&self, what: Refuse) {
        self.lock().1 = what;
    }

    fn lock(&self) -> MutexGuard<'_, (Vec<Event>, Refuse, Vec<u16>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(vector: u16, action: &'static str) -> MsiError {
    MsiError {
        vector,
        action,
        source: io::Error::from(io::ErrorKind::Other),
    }
}

impl MsiVectors for Vectors {
    fn route(&self, vector: u16, message: MsiMessage) -> Result<(), MsiError> {
        let mut state = self.lock();
        if state.1 == Refuse::Everything {
            return Err(refused(vector, "routed"));
        }
        state.0.push(Event::Routed(vector, message));
        state.2.push(vector);
        Ok(())
    }

    fn mask(&self, vector: u16) -> Result<(), MsiError> {
        let mut state = self.lock();
        if state.1 == Refuse::Everything {
            return Err(refused(vector, "masked"));
        }
        state.0.push(Event::Masked(vector));
        state.2.retain(|routed| *routed != vector);
        Ok(())
    }

    fn deliver(&self, vector: u16) -> Result<(), MsiError> {
        let mut state = self.lock();
        assert!(
            state.2.contains(&vector),
            "vector {vector} delivered while it is not routed"
        );
        if state.1 != Refuse::Nothing {
            return Err(refused(vector, "delivered"));
        }
        state.0.push(Event::Delivered(vector));
        Ok(())
    }

    fn event(&self, _vector: u16) -> Option<EventFd> {
        None
    }
}

/// An interrupt line that remembers its level.
#[derive(Debug)]
pub struct Line(Mutex<Level>);

impl Default for Line {
    fn default() -> Self {
        Self(Mutex::new(Level::Deasserted))
    }
}

impl Line {
    /// The level now.
    pub fn level(&self) -> Level {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InterruptLine for Line {
    fn set(&self, level: Level) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = level;
    }
}
