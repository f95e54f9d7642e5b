// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A level-triggered line that two events drive, for a device that the kernel serves.
//!
//! ```text
//!   device: asserted --> trigger --irqfd--> I/O APIC pin up --> guest
//!   device: unmasked <-- resample <-------- pin down <--------- end of interrupt
//! ```
//!
//! KVM API, "KVM_IRQFD", `KVM_IRQFD_FLAG_RESAMPLE`. KVM keeps these levels apart from those of
//! [`SharedLine`](super::SharedLine)s and asserts the pin while either is.

use super::router::{InterruptError, Router};
use super::routing::Gsi;
use std::sync::Arc;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A line that its events drive for as long as this value lives.
#[derive(Debug)]
pub struct LevelEvent {
    router: Arc<Router>,
    gsi: Gsi,
    trigger: EventFd,
    resample: EventFd,
}

impl LevelEvent {
    /// The line to the pins of `gsi`.
    pub fn new(router: Arc<Router>, gsi: Gsi) -> Result<Self, InterruptError> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(InterruptError::Event);
        let (trigger, resample) = (event()?, event()?);
        router
            .kernel()
            .attach_level(&trigger, &resample, gsi)
            .map_err(|source| InterruptError::Attach { gsi, source })?;
        Ok(LevelEvent {
            router,
            gsi,
            trigger,
            resample,
        })
    }

    /// A write asserts the line.
    #[must_use]
    pub fn trigger(&self) -> &EventFd {
        &self.trigger
    }

    /// Written when the guest has served the interrupt, and the line is deasserted.
    #[must_use]
    pub fn resample(&self) -> &EventFd {
        &self.resample
    }
}

impl Drop for LevelEvent {
    fn drop(&mut self) {
        if let Err(error) = self.router.kernel().detach(&self.trigger, self.gsi) {
            log::error!("{} stays with the kernel: {error}", self.gsi);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeKernel;
    use super::super::routing::Target;
    use super::*;

    #[test]
    fn a_trigger_raises_the_pins_until_the_line_is_dropped() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        let line = LevelEvent::new(router, Gsi(17)).unwrap();
        line.trigger().write(1).unwrap();
        assert_eq!(kernel.delivered(), [Target::IoApic(17)]);
        drop(line);
        assert_eq!(kernel.listening(), 0);
    }

    #[test]
    fn a_kernel_without_resampling_is_an_error() {
        let kernel = Arc::new(FakeKernel::default());
        let router = Arc::new(Router::new(kernel.clone(), 4096).unwrap());
        kernel.refuse(true);
        let error = LevelEvent::new(router, Gsi(17)).unwrap_err();
        assert!(matches!(error, InterruptError::Attach { gsi: Gsi(17), .. }));
    }
}
