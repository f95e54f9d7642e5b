// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A function that the host takes back while the guest uses it.

use super::*;
use crate::passthrough::fake::Told;
use crate::pci::fake::bench as bus_bench;
use crate::pci::{ConfigAddress, FunctionAddress};
use std::sync::Mutex;

#[test]
fn nothing_is_left_of_it() {
    let mut bench = Bench::new();
    bench.write(0x10, 0xc000_0004);
    bench.write(0x14, 0);
    // Memory space, and master of the bus.
    bench.write_half(0x04, 6);
    for window in bench.function.windows() {
        bench.function.window_added(window);
    }
    let entry = [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x31, 0, 0, 0, 0, 0, 0, 0];
    bench.function.bar_write(0, 0x2000, &entry);
    bench.write_half(MSIX + 2, 0x8000);
    bench.physical.interrupt(0);
    assert_eq!(bench.kernel.delivered().len(), 1);
    assert!(!bench.slots.mapped().is_empty());
    assert_eq!(bench.physical.others(), 1);

    bench.function.give_up();
    assert_eq!(bench.slots.mapped(), [], "the guest reaches its registers");
    assert_eq!(bench.physical.others(), 0, "it is not closed");
    assert_eq!(bench.kernel.listening(), 0);
    bench.physical.interrupt(0);
    assert_eq!(bench.kernel.delivered(), []);
    let before = {
        let device = bench.physical.device();
        // Quiet first, and no master of the bus.
        assert_eq!(device.told.last(), Some(&Told::Off));
        assert_eq!(device.config_writes.last(), Some(&(4, vec![0, 0])));
        (
            device.config_writes.len(),
            device.bar_writes.len(),
            device.resets,
        )
    };

    // Whatever the guest does now, among it a reset of the function and its MSI-X table.
    for offset in (0..256).step_by(4) {
        assert_eq!(bench.read(offset), u32::MAX, "{offset:#x}");
        bench.write(offset, u32::MAX);
        assert_eq!(bench.read(offset), u32::MAX, "{offset:#x}");
    }
    for bar in 0..6 {
        for offset in [0, 0x2000, 0x3000] {
            let mut data = [0; 8];
            bench.function.bar_read(bar, offset, &mut data);
            assert_eq!(data, [0xff; 8], "{bar} {offset:#x}");
            bench.function.bar_write(bar, offset, &entry);
        }
    }
    for window in bench.function.windows() {
        bench.function.window_added(window);
        bench.function.window_removed(window);
    }
    assert_eq!(bench.slots.mapped(), []);
    let device = bench.physical.device();
    let after = (
        device.config_writes.len(),
        device.bar_writes.len(),
        device.resets,
    );
    assert_eq!(after, before, "it was reached");
    drop(device);
    // Once is enough.
    bench.function.give_up();
}

#[test]
fn its_place_on_the_bus_is_free() {
    let (first, second) = (Bench::new(), Bench::new());
    let (mut root, ..) = bus_bench();
    let at = FunctionAddress::from_byte;
    for (byte, function) in [(0x18, first.function), (0x20, second.function)] {
        let function = Arc::new(Mutex::new(function));
        root.insert(at(byte), function).unwrap();
        let slot = u32::from(byte) << 12;
        root.write(ConfigAddress(slot | 0x10), &0xc000_0000u32.to_le_bytes());
        root.write(ConfigAddress(slot | 0x04), &[2, 0]);
    }
    assert_eq!(first.slots.mapped(), [(0xc000_0000, 0x2000)]);
    root.remove(at(0x18));
    // Who waited for the room has it.
    assert_eq!(first.slots.mapped(), []);
    assert_eq!(second.slots.mapped(), [(0xc000_0000, 0x2000)]);
    let mut word = [0; 4];
    root.read(ConfigAddress(0x18 << 12), &mut word);
    assert_eq!(word, [0xff; 4]);
    root.write(ConfigAddress(0x18 << 12 | 4), &[0xff; 4]);
    root.remove(at(0x18));
    root.read(ConfigAddress(0x20 << 12), &mut word);
    assert_eq!(u32::from_le_bytes(word), 0x0010_1b36);
}
