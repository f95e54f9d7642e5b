// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events, routes and masks on the kernel's own interrupt controllers.
//!
//! No guest runs: what KVM would inject is read from the local APIC's request register.

use hvkit_virtio_devices::pci::{MsiMessage, MsiVectors};
use hvkit_vmm::interrupts::{Gsi, KvmMsiVectors, Line, Router};
use hvkit_vmm::pci::{Doorbells, KvmDoorbells};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// SDM 3A, "The Local APIC Block Diagram": spurious-interrupt vector, with the APIC's software
/// enable in bit 8; interrupt request register, 32 vectors each 16 bytes.
const SPURIOUS: usize = 0xf0;
const REQUESTS: usize = 0x200;

struct Machine {
    vm: Arc<VmFd>,
    vcpu: VcpuFd,
    router: Arc<Router>,
}

/// None where there is no usable `/dev/kvm`, which is said.
fn machine() -> Option<Machine> {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            lab_kit::skip::skip(&format!("/dev/kvm: {error}"));
            return None;
        }
    };
    let vm = Arc::new(kvm.create_vm().unwrap());
    vm.create_irq_chip().unwrap();
    let vcpu = vm.create_vcpu(0).unwrap();
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[SPURIOUS..SPURIOUS + 2].copy_from_slice(&[-1, 1]);
    vcpu.set_lapic(&lapic).unwrap();
    let limit = u32::try_from(vm.check_extension_int(Cap::IrqRouting)).unwrap();
    let router = Arc::new(Router::new(vm.clone(), limit).unwrap());
    Some(Machine { vm, vcpu, router })
}

impl Machine {
    /// The vectors requested of vCPU 0.
    fn requested(&self) -> Vec<usize> {
        let lapic = self.vcpu.get_lapic().unwrap();
        let bit = |v: usize| {
            let byte = lapic.regs[REQUESTS + v / 32 * 16 + v % 32 / 8];
            byte.cast_unsigned() >> (v % 8) & 1 == 1
        };
        (0..256).filter(|&v| bit(v)).collect()
    }

    /// Waits for the kernel's worker, which may deliver later than the write returns.
    fn until_requested(&self, vectors: &[usize]) {
        let patience = Instant::now() + Duration::from_secs(10);
        while self.requested() != vectors {
            assert!(Instant::now() < patience, "{:?}", self.requested());
            std::thread::yield_now();
        }
    }
}

/// Fixed delivery, edge, to the processor with APIC id 0.
fn message(vector: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data: vector,
    }
}

#[test]
fn a_vector_requests_its_interrupt_of_the_processor() {
    let Some(machine) = machine() else { return };
    let vectors = KvmMsiVectors::new(Arc::clone(&machine.router), 2).unwrap();
    vectors.route(0, message(0x41)).unwrap();
    vectors.route(1, message(0x52)).unwrap();
    vectors.deliver(1).unwrap();
    machine.until_requested(&[0x52]);
    vectors.event(0).unwrap().write(1).unwrap();
    machine.until_requested(&[0x41, 0x52]);
    vectors.route(0, message(0x63)).unwrap();
    vectors.deliver(0).unwrap();
    machine.until_requested(&[0x41, 0x52, 0x63]);
}

#[test]
fn a_masked_vectors_event_waits_for_the_unmask() {
    let Some(machine) = machine() else { return };
    let vectors = KvmMsiVectors::new(Arc::clone(&machine.router), 2).unwrap();
    vectors.route(0, message(0x41)).unwrap();
    vectors.mask(0).unwrap();
    vectors.event(0).unwrap().write(1).unwrap();
    // Another vector's interrupt shows that the kernel had time for this one.
    vectors.route(1, message(0x52)).unwrap();
    vectors.deliver(1).unwrap();
    machine.until_requested(&[0x52]);
    assert_eq!(machine.requested(), [0x52]);
    vectors.route(0, message(0x44)).unwrap();
    machine.until_requested(&[0x44, 0x52]);
}

#[test]
fn a_whole_table_of_vectors_fits_and_is_given_back() {
    let Some(machine) = machine() else { return };
    for _ in 0..2 {
        let vectors = KvmMsiVectors::new(Arc::clone(&machine.router), 300).unwrap();
        for vector in [0, 299] {
            vectors.route(vector, message(0x41)).unwrap();
        }
        vectors.deliver(299).unwrap();
    }
    machine.until_requested(&[0x41]);
}

#[test]
fn the_kernel_takes_a_line_once() {
    let Some(machine) = machine() else { return };
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let ours = event.try_clone().unwrap();
    let line = Line::new(Arc::clone(&machine.router), Gsi(4), event).unwrap();
    machine.vm.register_irqfd(&ours, 4).unwrap_err();
    drop(line);
    machine.vm.register_irqfd(&ours, 4).unwrap();
}

#[test]
fn the_kernel_takes_a_doorbell_once_and_gives_it_back() {
    let Some(machine) = machine() else { return };
    let doorbells = KvmDoorbells::new(Arc::clone(&machine.vm));
    let event = EventFd::new(0).unwrap();
    doorbells.attach(0xc000_0000, &event).unwrap();
    doorbells.attach(0xc000_0000, &event).unwrap_err();
    doorbells.attach(0xc000_0004, &event).unwrap();
    doorbells.detach(0xc000_0000, &event).unwrap();
    doorbells.detach(0xc000_0000, &event).unwrap_err();
    doorbells.attach(0xc000_0000, &event).unwrap();
}
