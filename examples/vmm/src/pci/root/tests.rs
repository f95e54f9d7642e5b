// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration accesses of every shape.

use super::super::fake::{FakeFunction, bench};
use super::*;

fn at(byte: u8) -> FunctionAddress {
    FunctionAddress::from_byte(byte)
}

/// What `length` bytes from `address` must read if the only function, at 00:03.0, holds `config`.
fn expected(config: &[u8; 4096], address: u32, length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| {
            let byte = u64::from(address) + i as u64;
            match byte >> 12 {
                0x18 => config[(byte & 0xfff) as usize],
                _ => 0xff,
            }
        })
        .collect()
}

#[test]
fn every_offset_and_width_reads_its_bytes() {
    let (mut root, ..) = bench();
    let function = FakeFunction::new().shared();
    let config = function.lock().unwrap().config;
    root.insert(at(0x18), function).unwrap();
    for register in 0..4096u32 {
        for length in [0, 1, 2, 3, 4, 5, 8, 16] {
            let address = 0x18 << 12 | register;
            let mut data = vec![0x5a; length];
            root.read(ConfigAddress(address), &mut data);
            assert_eq!(
                data,
                expected(&config, address, length),
                "{address:#x} {length}"
            );
        }
    }
}

#[test]
fn every_offset_and_width_can_be_written() {
    let (mut root, ..) = bench();
    let function = FakeFunction::new().with_bar(0, 0x1000, 0).shared();
    root.insert(at(0x18), function.clone()).unwrap();
    for register in 0..4096u32 {
        for length in [0, 1, 2, 3, 4, 5, 8, 16] {
            // All but the command register, so that windows stay off.
            let data: Vec<u8> = (register..)
                .take(length)
                .map(|r| u8::from(r != 4))
                .collect();
            root.write(ConfigAddress(0x18 << 12 | register), &data);
            root.write(ConfigAddress(0x20 << 12 | register), &data);
            root.write(ConfigAddress(1 << 20 | 0x18 << 12 | register), &data);
        }
    }
    // Only these registers of the fake can change: the address bits of its BAR, interrupt line.
    let config = function.lock().unwrap().config;
    let clean = FakeFunction::new().config;
    let changed: Vec<_> = (0..4096).filter(|&r| config[r] != clean[r]).collect();
    assert_eq!(changed, [0x12, 0x13, 0x3c]);
}

#[test]
fn a_write_lands_on_its_bytes_alone() {
    let (mut root, ..) = bench();
    let function = FakeFunction::new().with_bar(0, 0x10, 0).shared();
    root.insert(at(0), function.clone()).unwrap();
    let bar = || function.lock().unwrap().config[0x10..0x14].to_vec();
    root.write(ConfigAddress(0x11), &[0x11, 0x22]);
    assert_eq!(bar(), [0, 0x11, 0x22, 0]);
    root.write(ConfigAddress(0x0f), &[0xff, 0xff, 0x33]);
    assert_eq!(bar(), [0xf0, 0x33, 0x22, 0]);
    root.write(ConfigAddress(0x10), &[0x40, 0x50, 0x60, 0x70]);
    assert_eq!(bar(), [0x40, 0x50, 0x60, 0x70]);
}

#[test]
fn absent_functions_and_buses_read_ones() {
    let (mut root, ..) = bench();
    root.insert(at(0), FakeFunction::new().shared()).unwrap();
    for address in [1 << 12, 8 << 12, 0xff << 12, 1 << 20, 0xff0_0000, u32::MAX] {
        let mut data = [0; 4];
        root.read(ConfigAddress(address), &mut data);
        assert_eq!(data, [0xff; 4], "{address:#x}");
    }
}

#[test]
fn a_second_function_makes_the_first_say_so() {
    let (mut root, ..) = bench();
    for byte in [0x00, 0x18, 0x20] {
        root.insert(at(byte), FakeFunction::new().shared()).unwrap();
    }
    let mut header = |byte: u32| {
        let mut word = [0; 4];
        root.read(ConfigAddress(byte << 12 | 0x0c), &mut word);
        let mut alone = [0];
        root.read(ConfigAddress(byte << 12 | 0x0e), &mut alone);
        assert_eq!(word[2], alone[0]);
        let mut beside = [0];
        root.read(ConfigAddress(byte << 12 | 0x0f), &mut beside);
        assert_eq!(beside, [0]);
        alone[0]
    };
    assert_eq!([header(0x00), header(0x18), header(0x20)], [0, 0, 0]);
    root.insert(at(0x1f), FakeFunction::new().shared()).unwrap();
    let mut header = |byte: u32| {
        let mut alone = [0];
        root.read(ConfigAddress(byte << 12 | 0x0e), &mut alone);
        alone[0]
    };
    assert_eq!(
        [header(0x00), header(0x18), header(0x1f), header(0x20)],
        [0, 0x80, 0, 0]
    );
}

#[test]
fn what_cannot_be_on_the_bus_is_refused() {
    let (mut root, ..) = bench();
    let function = || FakeFunction::new().shared();
    assert_eq!(
        root.insert(at(0x19), function()),
        Err(RootError::NoFunctionZero { at: at(0x19) })
    );
    root.insert(at(0x18), function()).unwrap();
    assert_eq!(
        root.insert(at(0x18), function()),
        Err(RootError::Taken { at: at(0x18) })
    );
    let places: Vec<_> = std::iter::from_fn(|| root.append(function()).ok()).collect();
    assert_eq!(places.len(), 31);
    assert_eq!(places[2..4], [at(0x10), at(0x20)]);
    assert_eq!(root.append(function()), Err(RootError::Full { segment: 0 }));
}

#[test]
fn segments_are_apart() {
    let (mut root, ..) = bench();
    let [here, there] = [0xff, 0].map(|last| {
        let function = FakeFunction::new().shared();
        function.lock().unwrap().config[0xfff] = last;
        function
    });
    root.insert(at(0x18), here).unwrap();
    assert_eq!(root.free(1), Ok(at(0).in_segment(1)));
    // Another function of the same number, and one that would be its second if it were of the same segment.
    root.insert(at(0x18).in_segment(1), there).unwrap();
    root.insert(at(0).in_segment(1), FakeFunction::new().shared())
        .unwrap();
    assert_eq!(root.free(1), Ok(at(8).in_segment(1)));
    let mut byte = |segment, address| {
        let mut data = [0x5a];
        root.read_in(segment, ConfigAddress(address), &mut data);
        data[0]
    };
    assert_eq!([0, 1, 2].map(|s| byte(s, 0x18fff)), [0xff, 0, 0xff]);
    assert_eq!([0, 1].map(|s| byte(s, 0x1800e)), [0, 0]);
    assert_eq!([0, 1].map(|s| byte(s, 0)), [0xff, 0xaf]);
    // What is written to one is not the other's.
    root.write_in(1, ConfigAddress(0x1803c), &[7]);
    let mut byte = |segment| {
        let mut data = [0x5a];
        root.read_in(segment, ConfigAddress(0x1803c), &mut data);
        data[0]
    };
    assert_eq!([0, 1].map(&mut byte), [0, 7]);
    assert_eq!(
        root.insert(at(0x19).in_segment(2), FakeFunction::new().shared()),
        Err(RootError::NoFunctionZero {
            at: at(0x19).in_segment(2)
        })
    );
}
