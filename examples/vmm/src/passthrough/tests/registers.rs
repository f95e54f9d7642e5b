// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers: mapped where they can be, trapped where they must be.

use super::*;
use crate::pci::fake::{MMIO32, MMIO64, bench as bus_bench};
use crate::pci::{ConfigAddress, FunctionAddress};
use std::sync::Mutex;

const SLOT: u32 = 3 << 15;

#[test]
fn every_offset_and_width_of_every_window() {
    let mut bench = Bench::new();
    for (bar, length) in [(0u8, 0x4000u64), (3, 0x100), (4, 0x8000)] {
        let bytes = bench.physical.device().bars[usize::from(bar)].clone();
        let msix = |at: u64| bar == 0 && (0x2000..0x2050).contains(&at);
        let pending = |at: u64| bar == 0 && (0x3000..0x3008).contains(&at);
        for offset in 0..length + 16 {
            for width in [1, 2, 4, 8] {
                let mut data = vec![0x5a; width];
                bench.function.bar_read(bar, offset, &mut data);
                for (at, byte) in (offset..).zip(data) {
                    let expected = match at {
                        _ if at >= length => 0xff,
                        // Masked, all of them, and nothing else.
                        _ if msix(at) => u8::from(at % 16 == 12),
                        _ if pending(at) => 0,
                        _ => bytes[at as usize],
                    };
                    assert_eq!(byte, expected, "BAR {bar} {at:#x} of {offset:#x}/{width}");
                }
            }
        }
    }
    for bar in [1, 2, 5, 6, 255] {
        let mut data = [0; 4];
        bench.function.bar_read(bar, 0, &mut data);
        assert_eq!(data, [0xff; 4], "BAR {bar}");
        bench.function.bar_write(bar, 0, &[1; 4]);
    }
    assert!(bench.physical.device().bar_writes.is_empty());
}

#[test]
fn writes_around_msix_structures_reach_the_function_without_them() {
    let mut bench = Bench::new();
    bench
        .function
        .bar_write(0, 0x1ffc, &[1, 2, 3, 4, 5, 6, 7, 8]);
    bench.function.bar_write(0, 0x204e, &[1, 2, 3, 4]);
    bench.function.bar_write(0, 0x2ffe, &[1, 2, 3, 4]);
    bench.function.bar_write(0, 0x3006, &[1, 2, 3, 4]);
    bench.function.bar_write(0, 0x3ffe, &[1, 2, 3, 4]);
    bench.function.bar_write(0, u64::MAX, &[1, 2]);
    assert_eq!(
        bench.physical.device().bar_writes,
        [
            (0, 0x1ffc, vec![1, 2, 3, 4]),
            (0, 0x2050, vec![3, 4]),
            (0, 0x2ffe, vec![1, 2]),
            (0, 0x3008, vec![3, 4]),
            (0, 0x3ffe, vec![1, 2]),
        ]
    );
    let mut entry = [0; 4];
    bench.function.bar_read(0, 0x2000, &mut entry);
    // The two low bits of a message address are 0.
    assert_eq!(entry, [4, 6, 7, 8]);
}

#[test]
fn whole_pages_are_mapped_where_the_guest_puts_the_window() {
    let Bench {
        function,
        slots,
        physical,
        ..
    } = Bench::new();
    let (mut root, ..) = bus_bench();
    let at = FunctionAddress::from_byte(0x18);
    root.insert(at, Arc::new(Mutex::new(function))).unwrap();
    let mut write = |register: u32, value: u32| {
        root.write(ConfigAddress(SLOT | register), &value.to_le_bytes());
    };
    write(0x10, 0xc001_0000);
    write(0x1c, 0xc002_0000);
    write(0x20, 0x0001_0000);
    write(0x24, 0x0000_0002);
    assert_eq!(slots.mapped(), []);
    write(0x04, 0x0002);
    // BAR 0 up to its table's page, none of BAR 3, which is less than a page, all of BAR 4.
    let all = [(0xc001_0000, 0x2000), (0x2_0001_0000, 0x8000)];
    assert_eq!(slots.mapped(), all);
    // Moved; moved half way, where no window of the host bridge is; off; on.
    write(0x10, 0xd000_0000);
    assert_eq!(slots.mapped()[0], (0xd000_0000, 0x2000));
    write(0x24, 0x7fff_ffff);
    assert_eq!(slots.mapped(), [(0xd000_0000, 0x2000)]);
    write(0x04, 0);
    assert_eq!(slots.mapped(), []);
    write(0x04, 2);
    assert_eq!(slots.mapped(), [(0xd000_0000, 0x2000)]);
    // Onto RAM: nowhere.
    write(0x10, 0x0010_0000);
    assert_eq!(slots.mapped(), []);
    assert!(!MMIO32.contains(&0x10_0000));
    write(0x10, 0xd000_0000);
    root.clear();
    assert_eq!(slots.mapped(), []);
    // Gone with the machine: quiet, and no master of the bus.
    assert_eq!(
        physical.device().config_writes.last(),
        Some(&(4, vec![0, 0]))
    );
}

#[test]
fn the_machine_places_windows_before_the_guest_runs() {
    let Bench {
        function, slots, ..
    } = Bench::new();
    let (mut root, ..) = bus_bench();
    let at = FunctionAddress::from_byte(0x18);
    root.insert(at, Arc::new(Mutex::new(function))).unwrap();
    root.assign(0, MMIO32, MMIO64).unwrap();
    assert!(
        root.windows().next().is_none(),
        "decoding is the guest's to begin"
    );
    root.write(ConfigAddress(SLOT | 0x04), &[2, 0]);
    // The largest first; 64-bit ones above 4 GiB.
    let windows: Vec<_> = root.windows().map(|(_, w)| (w.bar, w.address)).collect();
    for expected in [(4, 0x1_0000_0000), (0, 0x1_0000_8000), (3, 0xc000_0000)] {
        assert!(windows.contains(&expected), "{windows:x?}");
    }
    assert_eq!(
        slots.mapped(),
        [(0x1_0000_0000, 0x8000), (0x1_0000_8000, 0x2000)]
    );
}

#[test]
fn two_windows_at_one_address_are_mapped_once() {
    let first = Bench::new();
    let second = Bench::new();
    let (mut root, ..) = bus_bench();
    for (byte, function) in [(0x18, first.function), (0x20, second.function)] {
        let at = FunctionAddress::from_byte(byte);
        root.insert(at, Arc::new(Mutex::new(function))).unwrap();
    }
    for slot in [SLOT, 4 << 15] {
        root.write(ConfigAddress(slot | 0x10), &0xc000_0000u32.to_le_bytes());
        root.write(ConfigAddress(slot | 0x04), &[2, 0]);
    }
    assert_eq!(first.slots.mapped(), [(0xc000_0000, 0x2000)]);
    assert_eq!(second.slots.mapped(), []);
    root.write(ConfigAddress(SLOT | 0x04), &[0, 0]);
    assert_eq!(first.slots.mapped(), []);
    assert_eq!(second.slots.mapped(), [(0xc000_0000, 0x2000)]);
}

#[test]
fn what_cannot_be_mapped_is_trapped() {
    // By the kernel's word, by mmap's, by KVM's.
    for refuse in 0..3 {
        let physical = FakePhysical::new(config(), LENGTHS);
        physical.device().mappable = refuse != 0;
        physical.device().refuse = refuse == 1;
        let mut bench = Bench::with(physical).unwrap();
        *bench.slots.refuse.lock().unwrap() = refuse == 2;
        bench.write(0x10, 0xc000_0004);
        bench.write_half(0x04, 2);
        for window in bench.function.windows() {
            bench.function.window_added(window);
        }
        assert_eq!(bench.slots.mapped(), [], "{refuse}");
        let mut data = [0; 4];
        bench.function.bar_read(0, 0x10, &mut data);
        assert_eq!(data, bench.physical.device().bars[0][0x10..0x14]);
    }
}
