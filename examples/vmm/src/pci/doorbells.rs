// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guest writes that become events without waking the VMM.

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::fmt;
use std::io;
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Who turns writes into events.
pub trait Doorbells: Send + Sync {
    /// From now on a write of any size at guest-physical `address` signals `event`.
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Ends what [`attach`](Self::attach) began.
    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()>;
}

/// KVM's ioeventfd. KVM API, "KVM_IOEVENTFD".
pub struct KvmDoorbells(Arc<VmFd>);

impl fmt::Debug for KvmDoorbells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KvmDoorbells")
    }
}

impl KvmDoorbells {
    /// Doorbells of this virtual machine.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        KvmDoorbells(vm)
    }
}

impl Doorbells for KvmDoorbells {
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.register_ioevent(event, &address, NoDatamatch)?)
    }

    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(address);
        Ok(self.0.unregister_ioevent(event, &address, NoDatamatch)?)
    }
}
