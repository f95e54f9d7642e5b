// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host wants a device back: somebody unbinds it, or pulls it out.
//!
//! Whoever unbinds it waits until the device's file is closed, so the machine stops. Linux,
//! `include/uapi/linux/vfio.h`, `VFIO_PCI_REQ_IRQ_INDEX`.

use crate::confine::{Confiner, Kind};
use crate::machine::stop::{Stop, StopReason};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

/// Stops the machine when the host wants a device, for as long as this value lives.
#[derive(Debug)]
pub struct Reclaim {
    event: Arc<EventFd>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reclaim {
    /// Stops the machine by `stop` when [`event`](Self::event) is written, on behalf of the device
    /// that the user calls `name`. The thread that waits is confined by `confiner`.
    pub fn watch(name: &str, stop: Stop, confiner: Confiner) -> io::Result<Self> {
        let event = Arc::new(EventFd::new(EFD_CLOEXEC)?);
        let over = Arc::new(AtomicBool::new(false));
        let device = name.to_owned();
        let (waited_for, is_over) = (Arc::clone(&event), Arc::clone(&over));
        let thread = thread::Builder::new()
            .name("reclaim".to_owned())
            .spawn(move || {
                if let Err(error) = confiner.enter(Kind::Watch) {
                    log::error!("nobody listens for the host's wish for {device}: {error}");
                    return;
                }
                // Ends by the write in `drop` at the latest.
                if let Err(error) = waited_for.read() {
                    log::error!("nobody listens for the host's wish for {device}: {error}");
                } else if !is_over.load(Ordering::Acquire) {
                    stop.ask(StopReason::Reclaimed { device });
                }
            })?;
        Ok(Reclaim {
            event,
            over,
            thread: Some(thread),
        })
    }

    /// What the host writes when it wants the device.
    #[must_use]
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl Drop for Reclaim {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        // Fails only if the counter is full: then the thread has something to read as well.
        let _ = self.event.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that listens for the host's wishes panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn the_host_s_wish_stops_the_machine() {
        let stop = Stop::new().unwrap();
        let reclaim = Reclaim::watch("disk", stop.clone(), Confiner::off()).unwrap();
        reclaim.event().write(1).unwrap();
        let patience = Instant::now() + Duration::from_secs(10);
        while !stop.is_asked() {
            assert!(Instant::now() < patience, "nobody was told");
            thread::yield_now();
        }
        let device = "disk".to_owned();
        assert_eq!(stop.reason(), Some(&StopReason::Reclaimed { device }));
    }

    #[test]
    fn the_machine_s_own_end_is_no_wish() {
        let stop = Stop::new().unwrap();
        drop(Reclaim::watch("disk", stop.clone(), Confiner::off()).unwrap());
        assert!(!stop.is_asked());
    }
}
