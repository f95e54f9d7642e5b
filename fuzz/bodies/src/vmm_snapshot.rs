// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine that was saved, of any bytes: its manifest, and the parts that are restored without KVM.

use std::io;
use std::sync::Arc;

use hvkit_virtio_devices::entropy::Entropy;
use hvkit_virtio_devices::fake::{ByHand, Vectors};
use hvkit_virtio_devices::pci::PciFunction;
use hvkit_virtio_devices::transport::pci::{PciState, VirtioPci};
use hvkit_vmm::config::Vtd;
use hvkit_vmm::interrupts::IoApic;
use hvkit_vmm::snapshot::{Controllers, parse};
use hvkit_vmm::viommu::{IO_APIC, unit_options};
use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Access, Nobody, Request, State, Unit};
use hvkit_vtd_iommu::spec::RequesterId;
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Bytes of guest memory.
const MEMORY: usize = 0x1_0000;
/// Bits of a physical address.
const HOST_BITS: u8 = 40;
/// Rounds in which workers must come to rest: queues of 256 chains, 32 a round, and some.
const ROUNDS: usize = 100;

/// Refused in words, or understood: then what is written again reads the same, and what takes its state goes on with it.
pub fn run(data: &[u8]) {
    let manifest = match parse(data) {
        Ok(manifest) => manifest,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let bytes = serde_json::to_vec(&manifest).expect("plain data");
    let again = parse(&bytes).expect("what was written");
    assert_eq!(serde_json::to_vec(&again).expect("plain data"), bytes);
    if let Controllers::Ours(state) = &manifest.interrupts {
        let [first, second] = [(); 2].map(|()| IoApic::new(IO_APIC.into()));
        first.restore(state);
        second.restore(&first.save());
        assert_eq!(second.save(), first.save());
    }
    for state in &manifest.units {
        unit(state);
    }
    for device in &manifest.devices {
        self::device(&device.state);
    }
}

/// A unit that takes the state has it, and does what a driver and devices ask.
fn unit(state: &State) {
    let options = unit_options(&Vtd::default(), HOST_BITS).expect("a unit");
    let Ok(mut unit) = Unit::try_from((options, state)) else {
        return;
    };
    assert_eq!(unit.save(), *state);
    let memory = Ram::new(MEMORY as u64);
    for address in [0, 0x1234, u64::MAX] {
        let request = Request::new(RequesterId(0x18), address, Access::Read);
        // Whether it is refused is the state's business.
        let _ = unit.translate(&memory, &mut Nobody, &request);
    }
    for offset in (0..0x1000).step_by(8) {
        let value = unit.read64(offset);
        unit.write64(&memory, &mut Nobody, offset, value);
    }
}

/// A device that takes the state comes to rest.
fn device(state: &PciState) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let (workers, vectors) = (ByHand::default(), Arc::new(Vectors::default()));
    let device = Box::new(Entropy::new(io::repeat(7)));
    let runner = Box::new(workers.clone());
    let made = VirtioPci::new(device, Arc::new(memory), vectors, runner);
    let mut function = made.expect("a function");
    function.pause();
    if let Err(error) = function.restore(state) {
        assert!(!error.to_string().is_empty());
        return;
    }
    function.resume();
    assert!(workers.step(ROUNDS) < ROUNDS, "workers come to rest");
    let mut header = [0; 64];
    function.config_read(0, &mut header);
    assert_eq!(header[..2], [0xf4, 0x1a]);
}
