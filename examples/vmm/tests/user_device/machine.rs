// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What stands for a machine: memory in files, threads, and sockets that somebody listens at.

use hvkit_vmm::config::{Dma, Place};
use hvkit_vmm::confine::{Confiner, Nursery};
use hvkit_vmm::machine::address_map::AddressMap;
use hvkit_vmm::machine::memory::{GuestRam, Sharing, reserve_as};
use hvkit_vmm::machine::stop::Stop;
use hvkit_vmm::vfio_user::{Given, UserDevice, UserDeviceError, UserFunction, open};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long anything may take: far longer than it does.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Machine {
    pub(crate) ram: Arc<GuestRam>,
    nursery: Nursery,
}

impl Machine {
    /// Of 4 MiB.
    pub(crate) fn new() -> Self {
        let map = AddressMap::new(4 << 20, 40).unwrap();
        let stop = Stop::new().unwrap();
        Machine {
            ram: Arc::new(reserve_as(&map, Sharing::Shared).unwrap()),
            nursery: Nursery::new(&Confiner::off(), &stop).unwrap(),
        }
    }

    /// The device at `socket`, as the machine opens it.
    pub(crate) fn open(&self, socket: &Path) -> Result<UserFunction, UserDeviceError> {
        open(&device(socket), &self.ram, &self.nursery.starter())
    }
}

pub(crate) fn device(socket: &Path) -> UserDevice {
    UserDevice {
        socket: socket.to_owned(),
        id: Some("edu".to_owned()),
        dma: Dma::Direct,
        given: Given::Files,
        place: Place::default(),
    }
}

/// Waits until `done`.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
