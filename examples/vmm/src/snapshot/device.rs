// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A device on the PCI bus that can be saved.

use hvkit_virtio_devices::transport::pci::{PciState, VirtioPci};
use hvkit_virtio_devices::transport::state::{RestoreError, SaveError};
use vm_memory::GuestAddressSpace;

/// What can stand still, be saved, and be restored into a new one.
pub trait Saveable: Send {
    /// Finishes what it has begun, and begins nothing more.
    fn pause(&mut self);

    /// Goes on.
    fn resume(&mut self);

    /// What it is in the middle of, while it is paused.
    ///
    /// # Errors
    ///
    /// It is not paused, or has what cannot be saved.
    fn save(&self) -> Result<PciState, SaveError>;

    /// Becomes what was saved; a new one, that is paused.
    ///
    /// # Errors
    ///
    /// The state is none of such a device; it is as it was.
    fn restore(&mut self, state: &PciState) -> Result<(), RestoreError>;
}

impl<A: GuestAddressSpace + Send> Saveable for VirtioPci<A> {
    fn pause(&mut self) {
        self.pause();
    }

    fn resume(&mut self) {
        self.resume();
    }

    fn save(&self) -> Result<PciState, SaveError> {
        self.save()
    }

    fn restore(&mut self, state: &PciState) -> Result<(), RestoreError> {
        self.restore(state)
    }
}
