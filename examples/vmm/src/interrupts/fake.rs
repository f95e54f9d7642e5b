// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A kernel that listens to events and remembers what it would have delivered.

use super::router::Kernel;
use super::routing::{Gsi, Route, Target};
use hvkit_virtio_devices::pci::{Level, MsiMessage};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vmm_sys_util::eventfd::EventFd;

#[derive(Default)]
pub(crate) struct FakeKernel {
    pub(crate) routes: Mutex<Vec<Route>>,
    events: Mutex<Vec<(i32, EventFd, Gsi)>>,
    /// Every change of a level, in order.
    pub(crate) levels: Mutex<Vec<(Gsi, Level)>>,
    /// Every message that was sent without an event, in order.
    pub(crate) sent: Mutex<Vec<MsiMessage>>,
    refuse: AtomicBool,
    refuse_routes: AtomicBool,
    routes_refused: AtomicUsize,
}

impl FakeKernel {
    /// From now on every call fails, or none does.
    pub(crate) fn refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }

    /// From now on no routing table is taken, or each is.
    pub(crate) fn refuse_routes(&self, refuse: bool) {
        self.refuse_routes.store(refuse, Ordering::Relaxed);
    }

    /// Routing tables that were not taken.
    pub(crate) fn routes_refused(&self) -> usize {
        self.routes_refused.load(Ordering::Relaxed)
    }

    /// Events listened to.
    pub(crate) fn listening(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// What reached the guest since the last call: as KVM, an event written twice counts once, and
    /// one without a route is swallowed.
    pub(crate) fn delivered(&self) -> Vec<Target> {
        let events = self.events.lock().unwrap();
        let routes = self.routes.lock().unwrap();
        let fired = events.iter().filter(|(_, event, _)| event.read().is_ok());
        fired
            .flat_map(|(_, _, gsi)| routes.iter().filter(move |route| route.gsi == *gsi))
            .map(|route| route.target)
            .collect()
    }

    fn check(&self) -> io::Result<()> {
        match self.refuse.load(Ordering::Relaxed) {
            true => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            false => Ok(()),
        }
    }
}

impl Kernel for FakeKernel {
    fn set_routes(&self, routes: &[Route]) -> io::Result<()> {
        self.check()?;
        if self.refuse_routes.load(Ordering::Relaxed) {
            self.routes_refused.fetch_add(1, Ordering::Relaxed);
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        *self.routes.lock().unwrap() = routes.to_vec();
        Ok(())
    }

    fn attach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        self.check()?;
        let mut events = self.events.lock().unwrap();
        let fd = event.as_raw_fd();
        if events.iter().any(|&(other, _, _)| other == fd) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        events.push((fd, event.try_clone()?, gsi));
        Ok(())
    }

    fn attach_level(&self, event: &EventFd, _resample: &EventFd, gsi: Gsi) -> io::Result<()> {
        self.attach(event, gsi)
    }

    fn detach(&self, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        self.check()?;
        let key = (event.as_raw_fd(), gsi);
        let mut events = self.events.lock().unwrap();
        events.retain(|&(fd, _, gsi)| (fd, gsi) != key);
        Ok(())
    }

    fn set_level(&self, gsi: Gsi, level: Level) -> io::Result<()> {
        self.check()?;
        self.levels.lock().unwrap().push((gsi, level));
        Ok(())
    }

    fn send(&self, message: MsiMessage) -> io::Result<()> {
        self.check()?;
        self.sent.lock().unwrap().push(message);
        Ok(())
    }
}
