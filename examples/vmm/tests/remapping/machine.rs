// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A machine with a remapping unit, and what drivers need of it.

use std::convert::Infallible;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvkit_page_table::{Frames, GuestTables, OwnEntries, ReadEntry, UpdateEntry, Width};
use hvkit_virtio_devices::block::{Block, Options};
use hvkit_virtio_devices::fake::{Driver, TestFunction};
use hvkit_vmm::chipset::{Chipset, Placement};
use hvkit_vmm::config::Vtd;
use hvkit_vmm::confine::{Confiner, Nursery};
use hvkit_vmm::interrupts::UnitNumber;
use hvkit_vmm::machine::address_map::{AddressMap, ECAM_BASE, ECAM_BUS};
use hvkit_vmm::machine::cpuid::Features;
use hvkit_vmm::machine::memory::GuestRam;
use hvkit_vmm::machine::stop::Stop;
use hvkit_vmm::machine::vcpu::Buses;
use hvkit_vmm::machine::{kvm, memory, processors, vm::Vm};
use hvkit_vmm::viommu::registers;
use hvkit_vtd_iommu::driver::{self, Domain, Mmio};
use hvkit_vtd_iommu::emulation::Memory;
use hvkit_vtd_iommu::spec::RequesterId;
use hvkit_vtd_iommu::tables::{SecondStage, SecondStageAttributes};
use kvm_ioctls::VcpuFd;
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

pub(crate) const PAGE: u64 = 4096;
/// Where frames for tables come from.
const FRAMES: Range<u64> = 0x10_0000..0x40_0000;
/// Memory of the test's own.
pub(crate) const DATA: u64 = 0x80_0000;
const MEMORY: u64 = 16 << 20;
const ADDRESS_BITS: u8 = 40;

/// SDM 3A, "The Local APIC Block Diagram": the spurious-interrupt vector register, with the APIC's software enable in
/// bit 8; the interrupt request register, 32 vectors each 16 bytes.
const SPURIOUS: usize = 0xf0;
const REQUESTS: usize = 0x200;

pub(crate) const RW: SecondStageAttributes = SecondStageAttributes::READ_WRITE;

pub(crate) type OurUnit<'a> = driver::Unit<Registers<'a>, &'a Machine, &'a Machine>;
pub(crate) type OurDomain<'a> = Domain<SecondStage, &'a Machine, &'a Machine>;

pub(crate) struct Machine {
    // Dropped before what it stands on.
    pub(crate) chipset: Chipset,
    pub(crate) buses: Buses,
    pub(crate) vm: Vm,
    vcpu: VcpuFd,
    frames: Mutex<u64>,
    _nursery: Nursery,
}

impl Machine {
    /// None where there is no usable `/dev/kvm`, which is said.
    pub(crate) fn new(vtd: Vtd) -> Option<Self> {
        Machine::with(&[vtd])
    }

    /// The same with several units, each with a segment of its own.
    pub(crate) fn with(vtds: &[Vtd]) -> Option<Self> {
        let kvm = match kvm::open(Path::new("/dev/kvm")) {
            Ok(kvm) => kvm,
            Err(error) => {
                lab_kit::skip::skip(&error.to_string());
                return None;
            }
        };
        let map = AddressMap::new(MEMORY, ADDRESS_BITS).unwrap();
        let map = map.with_segments(vtds.len() as u16);
        let vm = Vm::new(&kvm, memory::reserve(&map).unwrap(), Vec::new()).unwrap();
        if vtds[0].interrupts {
            vm.add_local_apics().unwrap();
        } else {
            vm.add_interrupt_controllers().unwrap();
        }
        let buses = Buses {
            ports: Arc::default(),
            memory: Arc::default(),
        };
        let stop = Stop::new().unwrap();
        let nursery = Nursery::new(&Confiner::off(), &stop).unwrap();
        let starter = nursery.starter();
        let chipset = Chipset::with_remapping_units(vtds, &vm, &buses, &map, &stop, starter);
        let chipset = chipset.unwrap();
        let vcpu = processor(&vm, 0);
        Some(Machine {
            vcpu,
            chipset,
            buses,
            vm,
            frames: Mutex::new(FRAMES.start),
            _nursery: nursery,
        })
    }

    /// The vectors that processor 0 was ever asked to take: it runs nothing, and takes none.
    pub(crate) fn requested(&self) -> Vec<usize> {
        requested_of(&self.vcpu)
    }

    /// Adds a disk behind the first unit; its device number.
    pub(crate) fn translated_disk(&mut self, image: &NamedTempFile) -> u8 {
        self.translated_disk_at(0, 0, image)
    }

    /// Adds a disk behind a unit, on a segment; its device number.
    pub(crate) fn translated_disk_at(
        &mut self,
        segment: u16,
        unit: usize,
        image: &NamedTempFile,
    ) -> u8 {
        let disk = Block::open(Options::new(image.path())).unwrap();
        let place = Placement {
            segment,
            unit: Some(UnitNumber(unit)),
            ..Placement::default()
        };
        let at = self.chipset.add_translated_virtio(place, Box::new(disk));
        at.unwrap().device()
    }

    /// Adds a disk that is not.
    pub(crate) fn direct_disk(&mut self, image: &NamedTempFile) -> u8 {
        let disk = Block::open(Options::new(image.path())).unwrap();
        let memory = Arc::new(self.vm.ram().clone());
        let place = Placement {
            segment: 0,
            unit: Some(UnitNumber(0)),
            ..Placement::default()
        };
        let at = self.chipset.add_virtio(place, Box::new(disk), memory);
        at.unwrap().device()
    }

    pub(crate) fn ram(&self) -> &GuestRam {
        self.vm.ram()
    }

    /// The first unit, taken over and translating.
    pub(crate) fn drive(&self, options: driver::Options) -> OurUnit<'_> {
        self.drive_unit(0, options)
    }

    /// The same of any unit.
    pub(crate) fn drive_unit(&self, number: usize, options: driver::Options) -> OurUnit<'_> {
        let registers = Registers {
            machine: self,
            base: registers(UnitNumber(number)),
        };
        let mut unit = driver::Unit::take(registers, self, self, options).unwrap();
        unit.enable().unwrap();
        unit
    }

    /// The driver of the virtio device `device`, with memory and bus mastering on.
    pub(crate) fn driver(&self, device: u8) -> Driver<OnBus> {
        self.driver_at(0, device)
    }

    /// The same on any segment.
    pub(crate) fn driver_at(&self, segment: u16, device: u8) -> Driver<OnBus> {
        Driver::probe(OnBus {
            buses: self.buses.clone(),
            segment,
            device,
        })
    }

    pub(crate) fn fill(&self, at: u64, bytes: &[u8]) {
        self.ram().write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram().read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// All memory but `except`.
    pub(crate) fn everything(&self, except: Range<u64>) -> Vec<u8> {
        let mut all = self.bytes(0, except.start as usize);
        all.extend(self.bytes(except.end, (MEMORY - except.end) as usize));
        all
    }
}

/// A processor of `vm` whose local APIC is switched on.
pub(crate) fn processor(vm: &Vm, id: u64) -> VcpuFd {
    let vcpu = vm.fd().create_vcpu(id).unwrap();
    switch_on(&vcpu);
    vcpu
}

/// The same in x2APIC mode. SDM 3A, "Extended XAPIC (x2APIC)": bit 10 of IA32_APIC_BASE.
pub(crate) fn x2apic_processor(vm: &Vm, id: u32) -> VcpuFd {
    let kvm = kvm::open(Path::new("/dev/kvm")).unwrap();
    let features = Features::of(&kvm).unwrap();
    let vcpu = processors::create(vm, id, id + 1, &features).unwrap();
    let mut system = vcpu.get_sregs().unwrap();
    system.apic_base |= 1 << 10;
    vcpu.set_sregs(&system).unwrap();
    switch_on(&vcpu);
    vcpu
}

fn switch_on(vcpu: &VcpuFd) {
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[SPURIOUS..SPURIOUS + 2].copy_from_slice(&[-1, 1]);
    vcpu.set_lapic(&lapic).unwrap();
}

/// The vectors that a processor was ever asked to take.
pub(crate) fn requested_of(vcpu: &VcpuFd) -> Vec<usize> {
    let lapic = vcpu.get_lapic().unwrap();
    let bit = |v: usize| {
        let byte = lapic.regs[REQUESTS + v / 32 * 16 + v % 32 / 8];
        byte.cast_unsigned() >> (v % 8) & 1 == 1
    };
    (0..256).filter(|&v| bit(v)).collect()
}

/// As whom a device makes requests.
pub(crate) fn requester(device: u8) -> RequesterId {
    RequesterId::new(0, device, 0).unwrap()
}

/// Options of our driver for this machine.
pub(crate) fn legacy() -> driver::Options {
    driver::Options::legacy(ADDRESS_BITS.into())
}

/// Maps and publishes.
pub(crate) fn map<'a>(
    unit: &mut OurUnit<'a>,
    domain: &mut OurDomain<'a>,
    at: u64,
    to: u64,
    bytes: u64,
) {
    let fresh = domain.map(at..at + bytes, to, RW).unwrap();
    unit.publish(domain, fresh).unwrap();
}

/// Waits, ten seconds at most, for `what` to hold.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < patience, "{what}");
        std::thread::yield_now();
    }
}

/// An image of no two sectors alike.
pub(crate) fn image() -> NamedTempFile {
    let mut image = NamedTempFile::new().unwrap();
    let words = (0..16u32 << 10).map(|i| i.wrapping_mul(2_654_435_761) ^ 0x1234);
    let content: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    image.write_all(&content).unwrap();
    image
}

/// A function of bus 0 of a segment, reached as a guest reaches it.
pub(crate) struct OnBus {
    buses: Buses,
    segment: u16,
    device: u8,
}

impl OnBus {
    fn config(&self, offset: u16) -> u64 {
        let segment = ECAM_BUS * u64::from(self.segment);
        ECAM_BASE + segment + (u64::from(self.device) << 15) + u64::from(offset)
    }

    fn window(&mut self, bar: u8, offset: u64) -> u64 {
        let mut words = [0; 8];
        self.config_read(0x10 + 4 * u16::from(bar), &mut words);
        (u64::from_le_bytes(words) & !0xf) + offset
    }
}

impl TestFunction for OnBus {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        assert!(self.buses.memory.read(self.config(offset), data));
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        assert!(self.buses.memory.write(self.config(offset), data));
    }

    fn bar_read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        let at = self.window(bar, offset);
        assert!(self.buses.memory.read(at, data), "{at:#x}");
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        let at = self.window(bar, offset);
        assert!(self.buses.memory.write(at, data), "{at:#x}");
    }
}

/// The registers of a unit.
#[derive(Clone, Copy)]
pub(crate) struct Registers<'a> {
    machine: &'a Machine,
    base: u64,
}

impl Registers<'_> {
    fn get(&self, offset: u32, data: &mut [u8]) {
        let at = self.base + u64::from(offset);
        assert!(self.machine.buses.memory.read(at, data));
    }

    fn set(&self, offset: u32, data: &[u8]) {
        let at = self.base + u64::from(offset);
        assert!(self.machine.buses.memory.write(at, data));
    }
}

impl Mmio for Registers<'_> {
    fn read32(&self, offset: u32) -> u32 {
        let mut data = [0; 4];
        self.get(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read64(&self, offset: u32) -> u64 {
        let mut data = [0; 8];
        self.get(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.set(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u32, value: u64) {
        self.set(offset, &value.to_le_bytes());
    }

    fn keep_waiting(&self, asked: u32) -> bool {
        // All that a write starts is done when it returns.
        asked < 2
    }
}

impl ReadEntry for Machine {
    type Error = Infallible;

    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        Ok(GuestTables(self.ram()).read(at, width).unwrap())
    }
}

impl UpdateEntry for Machine {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let tables = GuestTables(self.ram());
        Ok(tables.compare_exchange(at, width, current, new).unwrap())
    }
}

impl OwnEntries for Machine {
    fn write(&self, at: u64, width: Width, entry: u64) {
        Memory::write(&GuestTables(self.ram()), at, width, entry).unwrap();
    }
}

impl Frames for Machine {
    fn allocate(&self) -> Option<u64> {
        let mut next = self.frames.lock().unwrap();
        let frame = *next;
        *next += PAGE;
        FRAMES.contains(&frame).then_some(frame)
    }

    fn free(&self, _: u64) {}
}
