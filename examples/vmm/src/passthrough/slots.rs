// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM memory slots for registers: an access of the guest goes to the device without an exit.

use super::pages::Pages;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_allocator::IdAllocator;

/// Who maps pages into the guest.
pub trait Slots: Send + Sync {
    /// Puts `pages` at guest-physical address `guest`, until the result is dropped.
    fn map(&self, guest: u64, pages: Arc<Pages>) -> io::Result<Slot>;
}

/// Pages that the guest reaches; dropped, they are gone from it.
pub struct Slot(Option<Box<dyn FnOnce() + Send>>);

impl Slot {
    /// A slot that `undo` ends.
    pub fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        Slot(Some(Box::new(undo)))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}

/// Slots of a virtual machine.
#[derive(Clone)]
pub struct KvmSlots {
    vm: Arc<VmFd>,
    free: Arc<Mutex<IdAllocator>>,
}

impl fmt::Debug for KvmSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KvmSlots")
    }
}

impl KvmSlots {
    /// The slots of `vm` numbered `first` and up; those below belong to somebody else. `limit` is how
    /// many KVM has (`KVM_CAP_NR_MEMSLOTS`). None if there are none left.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, first: u32, limit: u32) -> Option<Self> {
        let free = IdAllocator::new(first, limit.checked_sub(1)?).ok()?;
        Some(KvmSlots {
            vm,
            free: Arc::new(Mutex::new(free)),
        })
    }

    fn free(&self) -> MutexGuard<'_, IdAllocator> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, slot: u32) {
        if let Err(error) = self.free().free_id(slot) {
            log::error!("memory slot {slot} was not ours: {error}");
        }
    }
}

impl Slots for KvmSlots {
    fn map(&self, guest: u64, pages: Arc<Pages>) -> io::Result<Slot> {
        let slot = self.free().allocate_id();
        let slot = slot.map_err(|_| io::Error::from(io::ErrorKind::QuotaExceeded))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: guest,
            memory_size: pages.length(),
            userspace_addr: pages.address(),
        };
        if let Err(error) = set(&self.vm, region) {
            self.release(slot);
            return Err(error.into());
        }
        let slots = self.clone();
        Ok(Slot::new(move || {
            let gone = kvm_userspace_memory_region {
                memory_size: 0,
                ..region
            };
            match set(&slots.vm, gone) {
                Ok(()) => slots.release(slot),
                Err(error) => {
                    log::error!("memory slot {slot} stays with the guest: {error}");
                    // So do the pages that it shows.
                    std::mem::forget(Arc::clone(&pages));
                }
            }
        }))
    }
}

#[expect(unsafe_code, reason = "KVM is given a range of this process's memory")]
fn set(vm: &VmFd, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the range is that of a `Pages`, whose `Arc` the caller's `Slot` holds, or leaks, until
    // KVM has forgotten the range. No reference leads into the range, so what the guest writes there
    // changes nothing that Rust relies on.
    unsafe { vm.set_user_memory_region(region) }
}
