// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers as memory slots of this machine's own KVM.

#[path = "support/kvm.rs"]
mod kvm;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use hvkit_vmm::passthrough::pages::Pages;
use hvkit_vmm::passthrough::{KvmSlots, Slots};
use kvm::has_kvm;
use kvm_ioctls::Kvm;

const AT: u64 = 0xc000_0000;

fn pages() -> Arc<Pages> {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x2000).unwrap();
    Arc::new(Pages::map(file.as_fd(), 0, 0x2000).unwrap())
}

#[test]
fn slots_are_taken_and_given_back() {
    if !has_kvm() {
        return;
    }
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    let slots = KvmSlots::new(Arc::clone(&vm), 2, 4).unwrap();
    let pages = pages();
    let first = slots.map(AT, Arc::clone(&pages)).unwrap();
    // KVM takes no two slots at one address, and the slot of the failure is free again.
    for _ in 0..3 {
        let error = slots.map(AT + 0x1000, Arc::clone(&pages)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
    }
    let second = slots.map(AT + 0x2000, Arc::clone(&pages)).unwrap();
    let error = slots.map(AT + 0x4000, Arc::clone(&pages)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
    drop(first);
    // Where the first was, there is room again, and its pages were let go.
    let first = slots.map(AT, Arc::clone(&pages)).unwrap();
    assert_eq!(Arc::strong_count(&pages), 3);
    drop((first, second));
    assert_eq!(Arc::strong_count(&pages), 1);
}

#[test]
fn a_kvm_without_slots_has_none() {
    if !has_kvm() {
        return;
    }
    let vm = Arc::new(Kvm::new().unwrap().create_vm().unwrap());
    for (first, limit) in [(0, 0), (2, 2), (3, 2)] {
        let slots = KvmSlots::new(Arc::clone(&vm), first, limit);
        assert!(slots.is_none(), "{first} {limit}");
    }
}
