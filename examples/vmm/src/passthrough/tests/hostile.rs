// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that writes anything anywhere: nothing panics, and nothing reaches the function that is
//! not the guest's to change.

use super::*;
use crate::pci::fake::{MMIO32, MMIO64, bench as bus_bench};
use crate::pci::{ConfigAddress, FunctionAddress};
use proptest::prelude::*;
use std::sync::Mutex;

/// Whether a write to the function's own configuration space is one that a guest may cause.
fn is_allowed(offset: u16, data: &[u8]) -> bool {
    let end = offset + data.len() as u16;
    match offset {
        // Memory space on, and no bit but bus master and interrupt disable; or all off, at the end.
        0x04 => matches!(data, [0x02 | 0x06, 0x00 | 0x04]),
        _ => VENDOR + 2 <= offset && end <= VENDOR + 16,
    }
}

#[test]
fn every_register_at_every_width_with_every_bit() {
    let mut bench = Bench::new();
    for offset in 0..4096u16 {
        for width in [1, 2, 4] {
            if offset % width != 0 {
                continue;
            }
            for value in [0x00, 0xff, 0xa5, 0x5a] {
                bench
                    .function
                    .config_write(offset, &vec![value; usize::from(width)]);
                let mut data = vec![0; usize::from(width)];
                bench.function.config_read(offset, &mut data);
            }
        }
    }
    for (offset, data) in &bench.physical.device().config_writes {
        assert!(is_allowed(*offset, data), "{offset:#x} {data:x?}");
    }
    // Who it is and where its capabilities are, is as before.
    let mut fresh = Bench::new();
    for offset in [0x00, 0x08, 0x2c, 0x34] {
        assert_eq!(bench.read(offset), fresh.read(offset));
    }
    for offset in [MSIX, EXPRESS, MSI] {
        assert_eq!(bench.read(offset) & 0xffff, fresh.read(offset) & 0xffff);
    }
    assert_eq!(bench.read(POWER), 0);
}

#[derive(Clone, Debug)]
enum Action {
    Config(u16, Vec<u8>),
    Bar(u8, u64, Vec<u8>),
    Interrupt(usize),
}

fn action() -> impl Strategy<Value = Action> {
    let bytes = || proptest::collection::vec(any::<u8>(), 1..=8);
    let interesting = prop_oneof![
        Just(0x04u16),
        Just(0x10),
        Just(0x14),
        Just(0x1c),
        Just(0x20),
        Just(0x24),
        Just(MSIX),
        Just(MSIX + 2),
        Just(EXPRESS + 8),
        Just(MSI + 2),
        0..4096u16,
    ];
    let place = prop_oneof![
        0u64..0x4020,
        0x1ff0..0x2060u64,
        0x2ff0..0x3010u64,
        any::<u64>()
    ];
    prop_oneof![
        (interesting, bytes()).prop_map(|(at, data)| Action::Config(at, data)),
        // Windows where the host bridge has room, and decoding on: else few would ever decode.
        (0u8..8, 0u8..4).prop_map(|(high, bar)| {
            let register = [0x10, 0x1c, 0x20, 0x04][usize::from(bar)];
            let value = if bar == 3 {
                2
            } else {
                0xc000_0000u32 | u32::from(high) << 14
            };
            Action::Config(register, value.to_le_bytes().to_vec())
        }),
        (any::<u8>(), place, bytes()).prop_map(|(bar, at, data)| Action::Bar(bar % 7, at, data)),
        (0usize..8).prop_map(Action::Interrupt),
    ]
}

proptest! {
    #[test]
    fn any_guest(actions in proptest::collection::vec(action(), 1..60)) {
        let Bench { function, physical, slots, kernel } = Bench::new();
        let (mut root, ..) = bus_bench();
        let function = Arc::new(Mutex::new(function));
        root.insert(FunctionAddress::from_byte(0x18), function.clone()).unwrap();
        for action in actions {
            match action {
                // By the bus, which cuts accesses into what functions take.
                Action::Config(at, data) => {
                    let address = ConfigAddress(0x18 << 12 | u32::from(at));
                    root.write(address, &data);
                    let mut seen = data.clone();
                    root.read(address, &mut seen);
                }
                Action::Bar(bar, at, data) => {
                    let mut function = function.lock().unwrap();
                    function.bar_write(bar, at, &data);
                    let mut seen = data.clone();
                    function.bar_read(bar, at, &mut seen);
                }
                Action::Interrupt(vector) => physical.interrupt(vector),
            }
            // Mapped is what decodes, in whole, and nothing else; all of it where devices may be.
            let mut expected = Vec::new();
            for (_, window) in root.windows() {
                match window.bar {
                    0 => expected.push((window.address, 0x2000)),
                    4 => expected.push((window.address, 0x8000)),
                    _ => {}
                }
            }
            expected.sort_unstable();
            prop_assert_eq!(slots.mapped(), expected);
            for (at, length) in slots.mapped() {
                let end = at + length;
                prop_assert!([MMIO32, MMIO64].iter().any(|w| w.start <= at && end <= w.end));
            }
            let mut device = physical.device();
            for (bar, at, data) in device.bar_writes.drain(..) {
                let end = at + data.len() as u64;
                let structures = [0x2000..0x2050, 0x3000..0x3008];
                prop_assert!(structures.iter().all(|s| bar != 0 || end <= s.start || s.end <= at));
            }
            for (offset, data) in device.config_writes.drain(..) {
                prop_assert!(is_allowed(offset, &data), "{offset:#x} {data:x?}");
            }
            drop(device);
            kernel.delivered();
        }
        root.clear();
        prop_assert_eq!(slots.mapped(), []);
        drop(function);
        prop_assert_eq!(kernel.listening(), 0);
    }

    /// Any device at all, good or broken, is shown or refused.
    #[test]
    fn any_device(
        bytes in proptest::collection::vec(any::<u8>(), 256),
        lengths in proptest::array::uniform6(prop_oneof![Just(0usize), (4u32..16).prop_map(|l| 1 << l), 0..9999usize]),
        offsets in proptest::collection::vec(any::<u16>(), 0..40),
    ) {
        let mut config: [u8; 256] = bytes.try_into().unwrap();
        config[0x0e] &= 0x80;
        config[0x06] |= 0x10;
        let Ok(mut bench) = Bench::with(FakePhysical::new(config, lengths)) else {
            return Ok(());
        };
        for offset in offsets {
            let offset = offset & 0xffc;
            bench.write(offset, 0xa5a5_a5a5);
            bench.read(offset);
        }
        for bar in 0..6 {
            let mut data = [0; 8];
            bench.function.bar_read(bar, 0, &mut data);
            bench.function.bar_write(bar, 0x7ffc, &data);
        }
    }
}
