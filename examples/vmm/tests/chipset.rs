// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The chipset on real KVM, looked at through its buses as a guest would.

use hvkit_virtio_devices::block::{Block, Options};
use hvkit_vmm::acpi::power::{RESET_CODE, RESET_VECTOR};
use hvkit_vmm::chipset::{Chipset, Placement};
use hvkit_vmm::confine::{Confiner, Nursery};

use hvkit_vmm::machine::address_map::AddressMap;
use hvkit_vmm::machine::stop::{Stop, StopReason};
use hvkit_vmm::machine::threads::VcpuThreads;
use hvkit_vmm::machine::vcpu::{Buses, Vcpu};
use hvkit_vmm::machine::{kvm, memory, vm::Vm};
use kvm_bindings::kvm_regs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

struct Bench {
    chipset: Chipset,
    buses: Buses,
    stop: Stop,
    vm: Vm,
    map: AddressMap,
    _nursery: Nursery,
}

/// None where there is no usable `/dev/kvm`, which is said.
fn bench() -> Option<Bench> {
    let kvm = match kvm::open(Path::new("/dev/kvm")) {
        Ok(kvm) => kvm,
        Err(error) => {
            lab_kit::skip::skip(&error.to_string());
            return None;
        }
    };
    let map = AddressMap::new(64 << 20, 40).unwrap();
    let vm = Vm::new(&kvm, memory::reserve(&map).unwrap(), Vec::new()).unwrap();
    vm.add_interrupt_controllers().unwrap();
    let buses = Buses {
        ports: Arc::default(),
        memory: Arc::default(),
    };
    let stop = Stop::new().unwrap();
    let nursery = Nursery::new(&Confiner::off(), &stop).unwrap();
    let chipset = Chipset::new(vm.fd(), &buses, &map, &stop, nursery.starter()).unwrap();
    Some(Bench {
        chipset,
        buses,
        stop,
        vm,
        map,
        _nursery: nursery,
    })
}

fn disk() -> NamedTempFile {
    let mut image = NamedTempFile::new().unwrap();
    image.write_all(&[0; 64 << 10]).unwrap();
    image
}

impl Bench {
    fn add(&mut self, image: &NamedTempFile) -> String {
        let disk = Box::new(Block::open(Options::new(image.path())).unwrap());
        let memory = Arc::new(self.vm.ram().clone());
        self.chipset
            .add_virtio(Placement::default(), disk, memory)
            .unwrap()
            .to_string()
    }

    /// A dword of configuration space by ports.
    fn config(&self, device: u32, register: u32) -> u32 {
        let address = 0x8000_0000 | device << 11 | register;
        self.buses.ports.write(0xcf8, &address.to_le_bytes());
        let mut data = [0; 4];
        assert!(self.buses.ports.read(0xcfc, &mut data));
        u32::from_le_bytes(data)
    }

    /// The same by memory.
    fn ecam(&self, device: u64, register: u64) -> u32 {
        let mut data = [0; 4];
        let address = 0xe000_0000 + (device << 15) + register;
        assert!(self.buses.memory.read(address, &mut data));
        u32::from_le_bytes(data)
    }
}

#[test]
fn disks_are_where_the_guest_looks() {
    let Some(mut bench) = bench() else { return };
    let images = [disk(), disk()];
    let places = images.each_ref().map(|image| bench.add(image));
    assert_eq!(places, ["00:01.0", "00:02.0"]);
    bench.chipset.describe(2).unwrap();
    // Host bridge, virtio block devices, nothing.
    let identities = [0, 1, 2, 3].map(|device| bench.config(device, 0));
    assert_eq!(
        identities,
        [0x0008_1b36, 0x1042_1af4, 0x1042_1af4, 0xffff_ffff]
    );
    assert_eq!([0, 1, 2, 3].map(|device| bench.ecam(device, 0)), identities);

    // INTA#, and the line it is wired to.
    assert_eq!(bench.config(1, 0x3c) & 0xffff, 0x0111);
    assert_eq!(bench.config(2, 0x3c) & 0xffff, 0x0112);

    // A 64-bit memory BAR in the upper window, off until the guest switches it on.
    let window = bench.map.pci_mmio64();
    let bars = [1, 2].map(|device| {
        let low = bench.config(device, 0x10);
        assert_eq!(low & 0x7, 4);
        let address = u64::from(bench.config(device, 0x14)) << 32 | u64::from(low & !0xf);
        assert!(window.contains(&address), "{address:#x}");
        address
    });
    assert_ne!(bars[0], bars[1]);
    let features_selector = |address| {
        let mut data = [0xaa; 4];
        bench.buses.memory.read(address, &mut data).then_some(data)
    };
    assert_eq!(bars.map(features_selector), [None, None]);
    bench.config(2, 0x04);
    bench.buses.ports.write(0xcfc, &[2]);
    assert_eq!(bars.map(features_selector), [None, Some([0; 4])]);
}

#[test]
fn the_description_names_what_is_there() {
    let Some(mut bench) = bench() else { return };
    let plain = bench.chipset.describe(1).unwrap();
    let has = |bytes: &[u8], part: &[u8]| bytes.windows(part.len()).any(|w| w == part);
    assert_eq!(plain.address, 0xe_0000);
    assert!(!has(&plain.bytes, b"COM1"));
    let event = EventFd::new(0).unwrap();
    bench
        .chipset
        .add_serial(event.try_clone().unwrap())
        .unwrap();
    let serial = bench.chipset.describe(8).unwrap();
    assert!(has(&serial.bytes, b"COM1"));
    // Seven more processors of eight bytes each.
    assert!(serial.bytes.len() >= plain.bytes.len() + 56);
    // The kernel listens to the line: it is not free for another.
    bench.vm.fd().register_irqfd(&event, 4).unwrap_err();
}

#[test]
fn a_guest_switches_off_and_resets_by_ports() {
    for (port, value, reason) in [
        (0x600, 0x34, StopReason::PowerOff),
        (0xcf9, 0x06, StopReason::Reset),
    ] {
        let Some(bench) = bench() else { return };
        assert!(!bench.stop.is_asked());
        assert!(bench.buses.ports.write(port, &[value]));
        assert_eq!(bench.stop.reason(), Some(&reason));
    }
}

#[test]
fn a_jump_to_the_bios_resets() {
    let Some(bench) = bench() else { return };
    let Bench {
        buses, stop, vm, ..
    } = bench;
    vm.ram()
        .write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR))
        .unwrap();
    let fd = vm.fd().create_vcpu(0).unwrap();
    let mut system = fd.get_sregs().unwrap();
    // As after a far jump to f000:fff0; a processor out of reset has a base of its own.
    system.cs.base = 0xf_0000;
    fd.set_sregs(&system).unwrap();
    let registers = kvm_regs {
        rip: 0xfff0,
        rflags: 2,
        ..Default::default()
    };
    fd.set_regs(&registers).unwrap();
    let vcpu = Vcpu::new(0, fd, Arc::new(vm), buses, stop.clone());
    let threads = VcpuThreads::start(vec![vcpu], &Confiner::off(), &stop).unwrap();
    let patience = Instant::now() + Duration::from_secs(10);
    while !stop.is_asked() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.ask(StopReason::Quit);
    threads.join().unwrap();
    assert_eq!(stop.reason(), Some(&StopReason::Reset));
}
