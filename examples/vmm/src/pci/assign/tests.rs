// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What BARs read after the VMM placed them.

use super::super::fake::{FakeFunction, MMIO32, MMIO64, bench};
use super::*;
use std::sync::{Arc, Mutex};

fn place<const N: usize>(
    functions: [FakeFunction; N],
    mmio32: Range<u64>,
    mmio64: Range<u64>,
) -> Result<[Arc<Mutex<FakeFunction>>; N], AssignError> {
    let (mut root, ..) = bench();
    let functions = functions.map(FakeFunction::shared);
    for function in &functions {
        root.append(function.clone()).unwrap();
    }
    root.assign(0, mmio32, mmio64).map(|()| functions)
}

fn bar(function: &Mutex<FakeFunction>, bar: usize) -> u32 {
    let function = function.lock().unwrap();
    let at = 0x10 + 4 * bar;
    u32::from_le_bytes(function.config[at..at + 4].try_into().unwrap())
}

#[test]
fn each_kind_gets_its_window() {
    let first = FakeFunction::new()
        .with_bar(0, 0x1000, 0)
        .with_bar(1, 0x4000, 0xc)
        .with_bar(3, 0x20, 1);
    let second = FakeFunction::new().with_bar(4, 0x8000, 4);
    let [first, second] = place([first, second], MMIO32, MMIO64).unwrap();
    assert_eq!(bar(&first, 0), 0xc000_0000);
    // 64-bit, by length: 32 KiB, then 16 KiB; the flag bits stay.
    assert_eq!([bar(&second, 4), bar(&second, 5)], [0x0000_0004, 1]);
    assert_eq!([bar(&first, 1), bar(&first, 2)], [0x0000_800c, 1]);
    // I/O: left alone.
    assert_eq!(bar(&first, 3), 1);
    // Nothing decodes yet.
    assert_eq!(first.lock().unwrap().config[4], 0);
}

#[test]
fn addresses_are_multiples_of_lengths_without_overlap() {
    let lengths = [0x10, 0x1000, 0x100, 0x10_0000, 0x2000, 0x400];
    let make = || {
        let function = FakeFunction::new();
        (0u8..)
            .zip(lengths)
            .fold(function, |f, (i, length)| f.with_bar(i, length, 0))
    };
    let functions = place([make(), make(), make()], MMIO32, MMIO64).unwrap();
    let mut ranges: Vec<(u64, u64)> = functions
        .iter()
        .flat_map(|f| (0..6).map(move |i| (u64::from(bar(f, i)), lengths[i])))
        .collect();
    ranges.sort_unstable();
    for (address, length) in &ranges {
        assert_eq!(address % length, 0, "{address:#x}");
        assert!(MMIO32.contains(address));
    }
    for pair in ranges.windows(2) {
        assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
    }
    // Largest first wastes nothing.
    let end = ranges.last().map(|(address, length)| address + length);
    assert_eq!(end, Some(MMIO32.start + 3 * lengths.iter().sum::<u64>()));
}

#[test]
fn a_full_upper_window_overflows_into_the_lower() {
    let function = FakeFunction::new()
        .with_bar(0, 0x1000, 4)
        .with_bar(2, 0x1000, 4);
    let [function] = place([function], MMIO32, 0x2_0000_0000..0x2_0000_1000).unwrap();
    assert_eq!([bar(&function, 0), bar(&function, 1)], [4, 2]);
    assert_eq!([bar(&function, 2), bar(&function, 3)], [0xc000_0004, 0]);
}

#[test]
fn huge_and_last_bars_are_sized_right() {
    // 8 GiB needs the upper half of the mask alone; a 32-bit BAR of 512 MiB the top bits.
    let function = FakeFunction::new()
        .with_bar(0, 8 << 30, 0xc)
        .with_bar(5, 0x2000_0000, 0);
    let [function] = place([function], MMIO32, 0x10_0000_0000..0x20_0000_0000).unwrap();
    assert_eq!([bar(&function, 0), bar(&function, 1)], [0xc, 0x10]);
    assert_eq!(bar(&function, 5), 0xc000_0000);
}

#[test]
fn what_has_no_room_is_named() {
    let at = FunctionAddress::of_device(1).unwrap();
    let functions = || {
        [
            FakeFunction::new().with_bar(0, 0x1000, 0),
            FakeFunction::new().with_bar(3, 0x1000, 0),
        ]
    };
    let error = place(functions(), 0xc000_0000..0xc000_1000, MMIO64).map(|_| ());
    let no_room = AssignError::NoRoom {
        at,
        bar: 3,
        length: 0x1000,
    };
    assert_eq!(error, Err(no_room));
    for (start, end) in [(0xc000_0000, 0xc000_0000), (5, 4)] {
        let error = place(functions(), Range { start, end }, MMIO64).map(|_| ());
        assert_eq!(error, Err(AssignError::Window { start, end }));
    }
}

#[test]
fn bars_of_no_known_shape_are_left_alone() {
    // Type 1 of bits 2:1 is reserved; a 64-bit BAR cannot start in the last register; a bridge's
    // header has no BAR from 2 up, so bridges are not for us.
    let reserved = FakeFunction::new().with_bar(0, 0x1000, 2);
    let cut = FakeFunction::new().with_bar(5, 0x1000, 4);
    let mut bridge = FakeFunction::new().with_bar(0, 0x1000, 0);
    bridge.config[0x0e] = 1;
    let [reserved, cut, bridge] = place([reserved, cut, bridge], MMIO32, MMIO64).unwrap();
    assert_eq!(
        [bar(&reserved, 0), bar(&cut, 5), bar(&bridge, 0)],
        [2, 4, 0]
    );
}
