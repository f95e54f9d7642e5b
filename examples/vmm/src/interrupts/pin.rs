// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt pins that share a level-triggered line.
//!
//! ```text
//!   Pin of one function --.
//!                          SharedLine: asserted while any pin is --> I/O APIC
//!   Pin of another -------'
//! ```

use super::router::{InterruptError, Router};
use super::routing::Gsi;
use hvkit_virtio_devices::pci::{InterruptLine, Level};
use std::sync::{Arc, Mutex, PoisonError};

/// A line that any number of pins may assert.
#[derive(Debug)]
pub struct SharedLine {
    router: Arc<Router>,
    gsi: Gsi,
    asserting: Mutex<u32>,
}

impl SharedLine {
    /// The line to the pin of the I/O APIC that is `gsi`.
    pub fn new(router: Arc<Router>, gsi: Gsi) -> Result<Arc<Self>, InterruptError> {
        let line = SharedLine {
            router,
            gsi,
            asserting: Mutex::new(0),
        };
        line.router
            .kernel()
            .set_level(gsi, Level::Deasserted)
            .map_err(|source| InterruptError::Attach { gsi, source })?;
        Ok(Arc::new(line))
    }

    /// One more pin on this line, deasserted.
    #[must_use]
    pub fn pin(self: &Arc<Self>) -> Pin {
        Pin {
            line: Arc::clone(self),
            level: Mutex::new(Level::Deasserted),
        }
    }

    fn change(&self, to: Level) {
        let mut asserting = self
            .asserting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = *asserting;
        *asserting = match to {
            Level::Asserted => before.saturating_add(1),
            Level::Deasserted => before.saturating_sub(1),
        };
        // The kernel is told in the order of the changes: the lock is held.
        if (before == 0) != (*asserting == 0)
            && let Err(error) = self.router.kernel().set_level(self.gsi, to)
        {
            log::error!("{} did not become {to:?}: {error}", self.gsi);
        }
    }
}

/// A function's interrupt pin.
#[derive(Debug)]
pub struct Pin {
    line: Arc<SharedLine>,
    level: Mutex<Level>,
}

impl InterruptLine for Pin {
    fn set(&self, level: Level) {
        let mut now = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != level {
            *now = level;
            self.line.change(level);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.set(Level::Deasserted);
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeKernel;
    use super::*;

    #[test]
    fn a_line_is_asserted_while_any_pin_is() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        let line = SharedLine::new(router, Gsi(17)).unwrap();
        let [first, second] = [line.pin(), line.pin()];
        let seen = || std::mem::take(&mut *kernel.levels.lock().unwrap());
        let (up, down) = ((Gsi(17), Level::Asserted), (Gsi(17), Level::Deasserted));
        assert_eq!(seen(), [down]);
        first.set(Level::Asserted);
        first.set(Level::Asserted);
        second.set(Level::Asserted);
        assert_eq!(seen(), [up]);
        first.set(Level::Deasserted);
        first.set(Level::Deasserted);
        assert!(seen().is_empty());
        drop(second);
        assert_eq!(seen(), [down]);
        first.set(Level::Asserted);
        assert_eq!(seen(), [up]);
    }

    #[test]
    fn a_kernel_without_the_line_is_an_error() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        kernel.refuse(true);
        let error = SharedLine::new(router, Gsi(17)).unwrap_err();
        assert!(matches!(error, InterruptError::Attach { gsi: Gsi(17), .. }));
    }
}
