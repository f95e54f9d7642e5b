// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables of the host that follow the guest's, and hosts that do not do what they should. The guest's words are raw.

use super::*;
use crate::config::Vtd;
use crate::interrupts::fake::FakeKernel;
use crate::interrupts::{Remapper, Source};
use crate::machine::address_map::AddressMap;
use crate::machine::memory;
use crate::machine::stop::StopReason;
use hvkit_virtio_devices::pci::MsiMessage;
use hvkit_vtd_iommu::emulation::Mapping;
use std::io;
use std::sync::Mutex;
use vm_memory::{Bytes, GuestAddress};

const DEVICE: RequesterId = RequesterId(0x18);
const MEMORY: u64 = 8 << 20;

/// What the host was told, and whether it refuses.
#[derive(Default)]
struct Told {
    /// First, last, target; none: unmapped.
    pieces: Vec<(u64, u64, Option<u64>)>,
    refuses_maps: bool,
    refuses_unmaps: bool,
}

struct Table(Arc<Mutex<Told>>);

impl DmaTable for Table {
    fn map(&mut self, piece: Mapping) -> io::Result<()> {
        let mut told = self.0.lock().unwrap();
        if told.refuses_maps {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        told.pieces
            .push((piece.first, piece.last, Some(piece.target)));
        Ok(())
    }

    fn unmap(&mut self, piece: Mapping) -> io::Result<()> {
        let mut told = self.0.lock().unwrap();
        if told.refuses_unmaps {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        told.pieces.push((piece.first, piece.last, None));
        Ok(())
    }
}

struct Bench {
    unit: RemappingUnit,
    ram: GuestRam,
    stop: Stop,
    told: Arc<Mutex<Told>>,
    /// Held for the unit.
    _router: Arc<Router>,
}

impl Bench {
    fn new() -> Self {
        let map = AddressMap::new(MEMORY, 40).unwrap();
        let ram = memory::reserve(&map).unwrap();
        let router = Arc::new(Router::new(Arc::new(FakeKernel::default()), 4096).unwrap());
        let stop = Stop::new().unwrap();
        let vtd = Vtd {
            caching: true,
            ..Vtd::default()
        };
        let options = unit_options(&vtd, 40).unwrap();
        let unit = RemappingUnit::new(UnitNumber(0), options, &ram, &router, &stop).unwrap();
        Bench {
            unit,
            ram,
            stop,
            told: Arc::default(),
            _router: router,
        }
    }

    fn follow(&self) -> io::Result<()> {
        let table = Table(Arc::clone(&self.told));
        self.unit.follow(DEVICE, "disk", Box::new(table))
    }

    fn set(&self, at: u64, word: u64) {
        self.ram.write_obj(word, GuestAddress(at)).unwrap();
    }

    /// Tables for the device, of three levels, with one page: 0x1000 leads to 0x30_0000; and translation on.
    fn translate(&self) {
        self.set(0x1000, 0x2001);
        self.set(0x2180, 0x3001);
        self.set(0x2188, 0x0701);
        self.set(0x3000, 0x4003);
        self.set(0x4000, 0x5003);
        self.set(0x5008, 0x30_0003);
        let unit = self.unit.shared();
        unit.write(0x20, &0x1000u64.to_le_bytes());
        unit.write(0x18, &(1u32 << 30).to_le_bytes());
        unit.write(0x18, &(1u32 << 31).to_le_bytes());
    }

    /// An invalidation of everything, by register.
    fn invalidate(&self) {
        let unit = self.unit.shared();
        unit.write(0x508, &(9u64 << 60).to_le_bytes());
    }

    fn take(&self) -> Vec<(u64, u64, Option<u64>)> {
        std::mem::take(&mut self.told.lock().unwrap().pieces)
    }
}

const ALL: (u64, u64) = (0, MEMORY - 1);

#[test]
fn the_host_follows_the_guest() {
    let bench = Bench::new();
    bench.follow().unwrap();
    assert_eq!(bench.take(), [(ALL.0, ALL.1, Some(0))]);
    bench.translate();
    let page = (0x1000, 0x1fff);
    let told = bench.take();
    assert_eq!(told.first(), Some(&(ALL.0, ALL.1, None)));
    assert_eq!(told.last(), Some(&(page.0, page.1, Some(0x30_0000))));
    // Where there is no memory, nothing is mapped.
    bench.set(0x5010, 0xfed9_0003);
    bench.set(0x5008, 0);
    bench.invalidate();
    assert_eq!(bench.take(), [(page.0, page.1, None)]);
    assert!(!bench.stop.is_asked());
}

#[test]
fn a_host_that_maps_nothing_is_told_at_the_start_and_does_no_harm_later() {
    let bench = Bench::new();
    bench.told.lock().unwrap().refuses_maps = true;
    let error = bench.follow().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    let bench = Bench::new();
    bench.follow().unwrap();
    bench.told.lock().unwrap().refuses_maps = true;
    bench.translate();
    assert_eq!(bench.take().last(), Some(&(ALL.0, ALL.1, None)));
    assert!(!bench.stop.is_asked());
}

#[test]
fn a_host_that_keeps_a_page_mapped_stops_the_machine() {
    let bench = Bench::new();
    bench.follow().unwrap();
    bench.told.lock().unwrap().refuses_unmaps = true;
    bench.translate();
    let device = "disk".to_owned();
    let reason = StopReason::Unbounded { device };
    assert_eq!(bench.stop.reason(), Some(&reason));
}

/// Destinations beyond 8 bits: the interrupt table is in extended mode, and KVM is told the upper bits as its local APICs
/// read them. VT-d, "Extended Interrupt Mode"; KVM API, "KVM_X2APIC_API_USE_32BIT_IDS".
#[test]
fn interrupts_reach_processors_beyond_255() {
    let bench = Bench::new();
    // Present, fixed, vector 0x31, destination 0x12345; and the same for what is 8 bits wide.
    for (entry, destination) in [(0u64, 0x1_2345u64), (1, 0x45)] {
        bench.set(0x6000 + entry * 16, destination << 32 | 0x31 << 16 | 1);
    }
    let unit = bench.unit.shared();
    // IRTA: extended mode, 4 entries; taken, then remapping on.
    unit.write(0xb8, &0x6801u64.to_le_bytes());
    unit.write(0x18, &(1u32 << 24).to_le_bytes());
    unit.write(0x18, &(1u32 << 25).to_le_bytes());
    let remapper = remapper::UnitRemapper(vec![Arc::clone(unit)]);
    let source = Source {
        id: DEVICE,
        unit: Some(UnitNumber(0)),
    };
    let leads = |handle: u64| {
        let message = MsiMessage {
            // Remappable format, handle in bits 19:5.
            address: 0xfee0_0010 | handle << 5,
            data: 0,
        };
        let mut to = None;
        remapper.resolve(source, message, &mut |found| to = found);
        to.map(|to| to.address)
    };
    assert_eq!(leads(0), Some(0x0001_2300_fee4_5000));
    assert_eq!(leads(1), Some(0xfee4_5000));
    assert_eq!(leads(2), None);
}

#[test]
fn a_saved_unit_goes_on_in_a_new_one_and_no_other() {
    let bench = Bench::new();
    bench.translate();
    let state = bench.unit.save();
    let again = Bench::new();
    bench.unit.restore(&state).unwrap();
    again.unit.restore(&state).unwrap();
    assert_eq!(again.unit.save(), state);
    // RTADDR, and GSTS: translation on, root table taken.
    let mut root = [0; 8];
    again.unit.shared().read(0x20, &mut root);
    assert_eq!(u64::from_le_bytes(root), 0x1000);
    let mut status = [0; 4];
    again.unit.shared().read(0x1c, &mut status);
    assert_eq!(u32::from_le_bytes(status), 3 << 30);
    let mut other = state;
    // ECAP: without interrupt remapping.
    other.registers[2] ^= 1 << 3;
    assert!(matches!(
        again.unit.restore(&other).unwrap_err(),
        StateError::OtherUnit { .. }
    ));
}
