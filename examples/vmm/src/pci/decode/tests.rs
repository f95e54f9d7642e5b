// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Windows on the move, driven through configuration space as a guest would.

use super::super::address::ConfigAddress;
use super::super::fake::{FakeDoorbells, FakeFunction, MMIO32, MMIO64, bench};
use super::super::root::Root;
use super::*;
use hvkit_virtio_devices::pci::PciFunction;

struct Bench {
    root: Root,
    bus: Arc<Bus>,
    doorbells: Arc<FakeDoorbells>,
}

const BAR_0: u32 = 0x10;
const COMMAND: u32 = 0x04;

impl Bench {
    /// Devices from 0 up, decoding off.
    fn new<const N: usize>(functions: [FakeFunction; N]) -> (Self, [Arc<Mutex<FakeFunction>>; N]) {
        let (mut root, bus, doorbells) = bench();
        let functions = functions.map(FakeFunction::shared);
        for function in &functions {
            root.append(function.clone()).unwrap();
        }
        let bench = Bench {
            root,
            bus,
            doorbells,
        };
        (bench, functions)
    }

    fn config(&mut self, device: u32, register: u32, value: u32) {
        let address = ConfigAddress(device << 15 | register);
        self.root.write(address, &value.to_le_bytes());
    }

    fn config_read(&mut self, device: u32, register: u32) -> u32 {
        let mut data = [0; 4];
        self.root
            .read(ConfigAddress(device << 15 | register), &mut data);
        u32::from_le_bytes(data)
    }

    fn decode_on(&mut self, device: u32) {
        self.config(device, COMMAND, 2);
    }

    /// The byte that the fake's BAR gives, or all ones where nothing is.
    fn byte(&self, address: u64) -> u8 {
        let mut data = [0];
        self.bus.read(address, &mut data);
        data[0]
    }
}

#[test]
fn a_window_is_there_while_decoding_is_on() {
    let (mut b, [function]) = Bench::new([FakeFunction::new().with_bar(0, 0x1000, 0)]);
    b.config(0, BAR_0, 0xc000_0000);
    assert_eq!(b.byte(0xc000_0005), 0xff);
    b.decode_on(0);
    assert_eq!(b.byte(0xc000_0005), 0x05);
    assert!(b.bus.write(0xc000_0ffe, &[1, 2]));
    assert_eq!(function.lock().unwrap().log, [(0, 0xffe, vec![1, 2])]);
    assert!(!b.bus.write(0xc000_0fff, &[1, 2]));
    b.config(0, COMMAND, 0);
    assert_eq!(b.byte(0xc000_0005), 0xff);
}

#[test]
fn a_moved_window_leaves_nothing_behind_even_where_it_overlaps_itself() {
    let (mut b, _) = Bench::new([FakeFunction::new().with_bar(1, 0x2_0000, 0)]);
    b.config(0, BAR_0 + 4, 0xc000_0000);
    b.decode_on(0);
    // A byte write moves it too.
    b.root.write(ConfigAddress(0x16), &[0x02]);
    assert_eq!(b.byte(0xc000_0000), 0xff);
    assert_eq!(b.byte(0xc002_0003), 0x13);
    let wide = FakeFunction::new().with_bar(0, 0x1000, 4);
    let (mut b, _) = Bench::new([wide]);
    b.config(0, BAR_0, 0xc000_0000);
    b.decode_on(0);
    // The upper half moves it above 4 GiB, out of all apertures until the lower half follows.
    b.config(0, BAR_0 + 4, 0x11);
    assert_eq!(b.byte(0xc000_0001), 0xff);
    assert_eq!(b.byte(0x11_c000_0001), 0xff);
    b.config(0, BAR_0 + 4, 0x1);
    assert_eq!(b.byte(0x1_c000_0001), 0x01);
}

#[test]
fn sizing_while_decoding_ends_where_it_began() {
    let function = FakeFunction::new().with_bar(0, 0x4000, 0).with_bell(0, 0);
    let (mut b, _) = Bench::new([function]);
    b.config(0, BAR_0, 0xd000_0000);
    b.decode_on(0);
    b.config(0, BAR_0, 0xffff_ffff);
    assert_eq!(b.config_read(0, BAR_0), 0xffff_c000);
    // All ones less the length is where the interrupt controller and the ROM are: not ours.
    assert_eq!(b.byte(0xffff_c000), 0xff);
    assert!(b.doorbells.addresses().is_empty());
    b.config(0, BAR_0, 0xd000_0000);
    assert_eq!(b.byte(0xd000_0007), 0x07);
    assert_eq!(b.doorbells.addresses(), [0xd000_0000]);
}

#[test]
fn only_the_apertures_are_given_away() {
    let (mut b, _) = Bench::new([FakeFunction::new().with_bar(0, 0x1000, 4)]);
    b.decode_on(0);
    // Guest RAM, ECAM, I/O APIC, local APIC, above the upper window, the very end.
    for address in [
        0x0000_1000,
        0xbfff_f000,
        0xe000_0000,
        0xfec0_0000,
        0xfee0_0000,
        0x11_0000_0000,
        u64::MAX - 0xfff,
    ] {
        b.config(0, BAR_0, (address & 0xffff_ffff) as u32);
        b.config(0, BAR_0 + 4, (address >> 32) as u32);
        assert_eq!(b.byte(address), 0xff, "{address:#x}");
        assert!(!b.bus.write(address, &[0]), "{address:#x}");
    }
    b.config(0, BAR_0, 0xdfff_f000);
    b.config(0, BAR_0 + 4, 0);
    assert_eq!(b.byte(0xdfff_f001), 0x01);
}

#[test]
fn the_second_to_come_waits_for_room() {
    let make = |bar| FakeFunction::new().with_bar(bar, 0x1000, 0);
    let (mut b, _) = Bench::new([make(0), make(1), make(2)]);
    for (device, bar) in [(0, 0), (1, 1), (2, 2)] {
        b.config(device, BAR_0 + 4 * bar, 0xc000_0000);
        b.decode_on(device);
    }
    assert_eq!(b.byte(0xc000_0000), 0x00);
    // The first goes: the next in the order of addresses moves in, the last still waits.
    b.config(0, BAR_0, 0xc000_8000);
    assert_eq!(b.byte(0xc000_0000), 0x10);
    assert_eq!(b.byte(0xc000_8000), 0x00);
    // It stops decoding: the last gets its turn.
    b.config(1, COMMAND, 0);
    assert_eq!(b.byte(0xc000_0000), 0x20);
    // One that waits no longer asks is not mapped when room comes.
    b.decode_on(1);
    b.config(1, COMMAND, 0);
    b.config(2, COMMAND, 0);
    assert_eq!(b.byte(0xc000_0000), 0xff);
}

#[test]
fn a_window_inside_its_own_function_is_refused_too() {
    let function = FakeFunction::new()
        .with_bar(0, 0x1000, 0)
        .with_bar(1, 0x100, 0);
    let (mut b, _) = Bench::new([function]);
    b.config(0, BAR_0, 0xc000_0000);
    b.config(0, BAR_0 + 4, 0xc000_0800);
    b.decode_on(0);
    assert_eq!(b.byte(0xc000_0801), 0x01);
    // Two windows that change places, one register at a time.
    b.config(0, BAR_0 + 4, 0xc000_1000);
    assert_eq!(b.byte(0xc000_1001), 0x11);
    b.config(0, BAR_0, 0xc000_1000);
    b.config(0, BAR_0 + 4, 0xc000_0000);
    assert_eq!(b.byte(0xc000_1001), 0x01);
    assert_eq!(b.byte(0xc000_0001), 0x11);
}

#[test]
fn doorbells_move_with_their_window() {
    let function = FakeFunction::new()
        .with_bar(0, 0x1000, 0)
        .with_bar(1, 0x1000, 0)
        .with_bell(0, 0x10)
        .with_bell(0, 0x20)
        .with_bell(1, 0x30)
        .with_bell(0, 0x1000)
        .with_bell(5, 0x40);
    let (mut b, _) = Bench::new([function]);
    b.config(0, BAR_0, 0xc000_0000);
    b.config(0, BAR_0 + 4, 0xc000_1000);
    assert!(b.doorbells.addresses().is_empty());
    b.decode_on(0);
    // Not those outside their window or of a BAR that is not there.
    let there = [0xc000_0010, 0xc000_0020, 0xc000_1030];
    assert_eq!(b.doorbells.addresses(), there);
    b.config(0, BAR_0, 0xc000_2000);
    let there = [0xc000_1030, 0xc000_2010, 0xc000_2020];
    assert_eq!(b.doorbells.addresses(), there);
    b.config(0, COMMAND, 0);
    assert!(b.doorbells.addresses().is_empty());
}

#[test]
fn a_kernel_without_room_for_doorbells_leaves_the_slow_way() {
    let function = FakeFunction::new()
        .with_bar(0, 0x1000, 0)
        .with_bell(0, 0x10);
    let (mut b, [function]) = Bench::new([function]);
    *b.doorbells.full.lock().unwrap() = true;
    b.config(0, BAR_0, 0xc000_0000);
    b.decode_on(0);
    assert!(b.bus.write(0xc000_0010, &[7]));
    assert_eq!(function.lock().unwrap().log, [(0, 0x10, vec![7])]);
    // What was not taken is not given back; the next place has room.
    *b.doorbells.full.lock().unwrap() = false;
    b.config(0, BAR_0, 0xc000_2000);
    assert_eq!(b.doorbells.addresses(), [0xc000_2010]);
}

#[test]
fn a_function_may_come_with_its_windows_open() {
    let mut function = FakeFunction::new().with_bar(0, 0x1000, 0);
    function.config[4] = 2;
    function.config[0x13] = 0xc0;
    let (b, _) = Bench::new([function]);
    assert_eq!(b.byte(0xc000_0009), 0x09);
}

/// Where BARs are written to in the walk below: few places, so that they collide.
const PLACES: [u32; 6] = [
    0xbfff_f000,
    0xc000_0000,
    0xc000_1000,
    0xdfff_f000,
    0xffff_ffff,
    0x0000_0010,
];

/// Ends of two ranges are addresses here that fit in 64 bits.
fn overlap(a: &Window, b: &Window) -> bool {
    a.address < b.address + b.length && b.address < a.address + a.length
}

proptest::proptest! {
    /// Whatever a guest writes to BARs and command registers: what is on the bus is wanted, inside an
    /// aperture and disjoint; what is wanted and not there is outside or in another's way; doorbells
    /// are where their windows are; and the bus answers there and nowhere else.
    #[test]
    fn any_walk_leaves_the_bus_in_line(
        writes in proptest::collection::vec((0u32..3, 0usize..7, 0usize..6, 1usize..=4), 1..60),
    ) {
        let make = || {
            FakeFunction::new()
                .with_bar(0, 0x1000, 0)
                .with_bar(1, 0x2000, 0)
                .with_bar(2, 0x1000, 4)
                .with_bell(0, 0x10)
                .with_bell(2, 0x20)
        };
        let (mut b, functions) = Bench::new([make(), make(), make()]);
        for (device, register, place, length) in writes {
            let (register, value) = match register {
                // Memory decoding on, or off, or the upper half of an address small.
                0 => (COMMAND, 2),
                1 => (COMMAND, 0),
                6 => (BAR_0 + 12, place as u32 / 3),
                bar => (BAR_0 + 4 * (bar as u32 - 2), PLACES[place]),
            };
            let address = ConfigAddress(device << 15 | register);
            b.root.write(address, &value.to_le_bytes()[..length]);

            let there: Vec<_> = b.root.windows().collect();
            for (i, (at, window)) in there.iter().enumerate() {
                let function = functions[usize::from(at.device())].lock().unwrap();
                assert!(function.windows().contains(window));
                let end = window.address + window.length;
                let inside = |a: &Range<u64>| a.start <= window.address && end <= a.end;
                assert!([MMIO32, MMIO64].iter().any(inside), "{window:x?}");
                assert!(there[..i].iter().all(|(_, other)| !overlap(window, other)));
                drop(function);
                let last = window.address + window.length - 1;
                assert_eq!(b.byte(last), window.bar << 4 | 0xf);
            }
            for (device, function) in (0u8..).zip(&functions) {
                for window in function.lock().unwrap().windows() {
                    let end = window.address.saturating_add(window.length);
                    let inside = |a: &Range<u64>| a.start <= window.address && end <= a.end;
                    let refused = !there
                        .iter()
                        .any(|(at, w)| at.device() == device && *w == window);
                    if refused && [MMIO32, MMIO64].iter().any(inside) {
                        assert!(there.iter().any(|(_, other)| overlap(&window, other)));
                    }
                }
            }
            for (device, function) in (0u8..).zip(&functions) {
                let of_it = there.iter().filter(|(at, _)| at.device() == device);
                let of_it: Vec<_> = of_it.map(|(_, window)| *window).collect();
                let told = &function.lock().unwrap().told;
                assert_eq!(told.len(), of_it.len());
                assert!(of_it.iter().all(|window| told.contains(window)));
            }
            let mut bells: Vec<u64> = there
                .iter()
                .filter_map(|(_, w)| match w.bar {
                    0 => Some(w.address + 0x10),
                    2 => Some(w.address + 0x20),
                    _ => None,
                })
                .collect();
            bells.sort_unstable();
            assert_eq!(b.doorbells.addresses(), bells);
            // Off the apertures nothing of ours answers, whatever was written there.
            assert_eq!(b.byte(0xbfff_f000), 0xff);
            assert_eq!(b.byte(0xffff_f000), 0xff);
        }
        b.root.clear();
        assert!(b.root.windows().next().is_none());
        assert!(b.doorbells.addresses().is_empty());
        assert!(functions.iter().all(|f| f.lock().unwrap().told.is_empty()));
        // Nothing but this test holds them any more.
        assert!(functions.iter().all(|f| Arc::strong_count(f) == 1));
    }
}
