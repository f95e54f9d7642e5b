// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One edge-triggered interrupt line, such as a serial port's.

use super::router::{InterruptError, Router};
use super::routing::Gsi;
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A line that pulses when its event is written, for as long as this value lives.
#[derive(Debug)]
pub struct Line {
    router: Arc<Router>,
    gsi: Gsi,
    event: EventFd,
}

impl Line {
    /// The line to the pins of `gsi`.
    pub fn new(router: Arc<Router>, gsi: Gsi) -> Result<Self, InterruptError> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(InterruptError::Event)?;
        router
            .kernel()
            .attach(&event, gsi)
            .map_err(|source| InterruptError::Attach { gsi, source })?;
        Ok(Line { router, gsi, event })
    }

    /// The event, for who raises the line from elsewhere.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl vm_superio::Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Err(error) = self.router.kernel().detach(&self.event, self.gsi) {
            log::error!("{} stays with the kernel: {error}", self.gsi);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeKernel;
    use super::super::routing::Target;
    use super::*;
    use vm_superio::Trigger;

    #[test]
    fn a_line_raises_its_pins_until_it_is_dropped() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        let line = Line::new(Arc::clone(&router), Gsi(4)).unwrap();
        line.trigger().unwrap();
        assert_eq!(kernel.delivered(), [Target::Pic(4), Target::IoApic(4)]);
        line.event().write(1).unwrap();
        assert_eq!(kernel.delivered().len(), 2);
        drop(line);
        assert_eq!(kernel.listening(), 0);
    }

    #[test]
    fn a_kernel_that_does_not_listen_is_an_error() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        kernel.refuse(true);
        let error = Line::new(router, Gsi(4)).unwrap_err();
        assert!(matches!(error, InterruptError::Attach { gsi: Gsi(4), .. }));
    }
}
