// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM's half of a machine whose I/O APIC is ours: local APICs and messages are KVM's, pins are not.
//!
//! KVM API, "KVM_CAP_SPLIT_IRQCHIP".

use super::io_apic::IoApic;
use super::router::Kernel;
use super::routing::{FIRST_MESSAGE, Gsi, Route};
use super::watcher::{Watched, Watcher};
use hvkit_virtio_devices::pci::{Level, MsiMessage};
use kvm_ioctls::VmFd;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Events of pins go to the I/O APIC by a thread, the others to KVM.
pub struct SplitKernel {
    vm: Arc<VmFd>,
    io_apic: Arc<IoApic>,
    watcher: Arc<Watcher>,
    lines: Mutex<BTreeMap<(i32, Gsi), Watching>>,
}

/// An event that is an input of the I/O APIC.
struct Watching {
    _watched: Watched,
    held: Option<u64>,
}

impl fmt::Debug for SplitKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SplitKernel")
            .field("io_apic", &self.io_apic)
            .finish_non_exhaustive()
    }
}

impl SplitKernel {
    /// Of the machine `vm`, with `io_apic`.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, io_apic: Arc<IoApic>, watcher: Arc<Watcher>) -> Self {
        SplitKernel {
            vm,
            io_apic,
            watcher,
            lines: Mutex::default(),
        }
    }

    fn watching(&self, event: &EventFd, gsi: Gsi, watching: Watching) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.insert((event.as_raw_fd(), gsi), watching);
    }
}

impl Kernel for SplitKernel {
    fn set_routes(&self, routes: &[Route]) -> io::Result<()> {
        self.vm.set_routes(routes)
    }

    fn attach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        if gsi >= FIRST_MESSAGE {
            return self.vm.attach(event, gsi);
        }
        let io_apic = Arc::clone(&self.io_apic);
        let _watched = self.watcher.watch(event, move || io_apic.pulse(gsi))?;
        let held = None;
        self.watching(event, gsi, Watching { _watched, held });
        Ok(())
    }

    fn attach_level(&self, event: &EventFd, resample: &EventFd, gsi: Gsi) -> io::Result<()> {
        let Some(key) = self.io_apic.hold(gsi, resample.try_clone()?) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let io_apic = Arc::clone(&self.io_apic);
        match self.watcher.watch(event, move || io_apic.assert(key)) {
            Ok(_watched) => {
                let held = Some(key);
                self.watching(event, gsi, Watching { _watched, held });
                Ok(())
            }
            Err(error) => {
                self.io_apic.release(key);
                Err(error)
            }
        }
    }

    fn detach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        if gsi >= FIRST_MESSAGE {
            return self.vm.detach(event, gsi);
        }
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let watching = lines.remove(&(event.as_raw_fd(), gsi));
        let watching = watching.ok_or(io::ErrorKind::NotFound)?;
        if let Some(key) = watching.held {
            self.io_apic.release(key);
        }
        Ok(())
    }

    fn set_level(&self, gsi: Gsi, level: Level) -> io::Result<()> {
        self.io_apic.set_level(gsi, level);
        Ok(())
    }

    fn send(&self, message: MsiMessage) -> io::Result<()> {
        self.vm.send(message)
    }
}
