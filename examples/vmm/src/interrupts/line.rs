// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One edge-triggered interrupt line, such as a serial port's.

use super::router::{InterruptError, Router};
use super::routing::Gsi;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// A line that pulses when its event is written, for as long as this value lives.
#[derive(Debug)]
pub struct Line {
    router: Arc<Router>,
    gsi: Gsi,
    event: EventFd,
}

impl Line {
    /// Connects `event` to the pins of `gsi`.
    pub fn new(router: Arc<Router>, gsi: Gsi, event: EventFd) -> Result<Self, InterruptError> {
        router
            .kernel()
            .attach(&event, gsi)
            .map_err(|source| InterruptError::Attach { gsi, source })?;
        Ok(Line { router, gsi, event })
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
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn a_line_raises_its_pins_until_it_is_dropped() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let serial = event.try_clone().unwrap();
        let line = Line::new(router, Gsi(4), event).unwrap();
        serial.write(1).unwrap();
        assert_eq!(kernel.delivered(), [Target::Pic(4), Target::IoApic(4)]);
        drop(line);
        assert_eq!(kernel.listening(), 0);
    }

    #[test]
    fn a_kernel_that_does_not_listen_is_an_error() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        kernel.refuse(true);
        let error = Line::new(router, Gsi(4), EventFd::new(0).unwrap()).unwrap_err();
        assert!(matches!(error, InterruptError::Attach { gsi: Gsi(4), .. }));
    }
}
