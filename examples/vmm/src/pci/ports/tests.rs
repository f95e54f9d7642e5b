// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two mechanisms on raw words, and against each other.

use super::super::address::FunctionAddress;
use super::super::ecam::Ecam;
use super::super::fake::{FakeFunction, bench};
use super::*;

/// The writes that reset control saw.
type Resets = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

struct ResetFake(Resets);

impl BusDevice for ResetFake {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0x0e);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((offset, data.to_vec()));
    }
}

struct Bench {
    ports: ConfigPorts,
    ecam: Ecam,
    function: Arc<Mutex<FakeFunction>>,
    resets: Resets,
}

/// One function, at 00:1f.0.
fn one_function() -> Bench {
    let (mut root, ..) = bench();
    let function = FakeFunction::new().with_bar(2, 0x100, 0).shared();
    let at = FunctionAddress::of_device(31).unwrap();
    root.insert(at, function.clone()).unwrap();
    let root = Arc::new(Mutex::new(root));
    let resets = Resets::default();
    let reset = Arc::new(Mutex::new(ResetFake(Arc::clone(&resets))));
    Bench {
        ports: ConfigPorts::new(Arc::clone(&root), reset),
        ecam: Ecam::new(root, 0),
        function,
        resets,
    }
}

fn read<const N: usize>(device: &mut dyn BusDevice, offset: u64) -> [u8; N] {
    let mut data = [0x5a; N];
    device.read(offset, &mut data);
    data
}

fn select(ports: &mut ConfigPorts, latch: u32) {
    ports.write(0, &latch.to_le_bytes());
}

#[test]
fn the_latch_is_32_bits_wide_or_not_there() {
    let Bench { mut ports, .. } = one_function();
    select(&mut ports, 0xffff_ffff);
    assert_eq!(read(&mut ports, 0), 0x80ff_fffcu32.to_le_bytes());
    ports.write(0, &[0]);
    ports.write(0, &[0, 0]);
    ports.write(2, &[0, 0]);
    ports.write(1, &[0, 0, 0, 0]);
    assert_eq!(read(&mut ports, 0), 0x80ff_fffcu32.to_le_bytes());
    assert_eq!(read(&mut ports, 0), [0xff; 1]);
    assert_eq!(read(&mut ports, 0), [0xff; 2]);
    assert_eq!(read(&mut ports, 2), [0xff; 2]);
    assert_eq!(read(&mut ports, 1), [0xff; 4]);
    select(&mut ports, 0);
    assert_eq!(read(&mut ports, 0), [0; 4]);
}

#[test]
fn reset_control_shares_the_latchs_ports() {
    let Bench {
        mut ports, resets, ..
    } = one_function();
    select(&mut ports, 0x8000_0600);
    assert!(resets.lock().unwrap().is_empty());
    ports.write(1, &[0x06]);
    ports.write(1, &[0x06, 0x06]);
    ports.write(3, &[0x06]);
    assert_eq!(*resets.lock().unwrap(), [(0, vec![0x06])]);
    assert_eq!(read(&mut ports, 1), [0x0e]);
    assert_eq!(read(&mut ports, 0), 0x8000_0600u32.to_le_bytes());
}

#[test]
fn raw_words_reach_their_function() {
    let Bench { mut ports, .. } = one_function();
    // Enable, bus 0, device 31, function 0, register 0: the identifiers.
    select(&mut ports, 0x8000_f800);
    assert_eq!(read(&mut ports, 4), 0x1042_1bafu32.to_le_bytes());
    assert_eq!(read(&mut ports, 6), 0x1042u16.to_le_bytes());
    assert_eq!(read(&mut ports, 5), 0x421bu16.to_le_bytes());
    assert_eq!(read(&mut ports, 7), [0x10]);
    // Off, another bus, another device, another function.
    for latch in [0x0000_f800, 0x8001_f800, 0x8000_f000, 0x8000_f900] {
        select(&mut ports, latch);
        assert_eq!(read(&mut ports, 4), [0xff; 4], "{latch:#x}");
    }
}

#[test]
fn an_access_over_the_end_of_the_data_port_does_nothing() {
    let Bench {
        mut ports,
        function,
        ..
    } = one_function();
    select(&mut ports, 0x8000_f818);
    let before = function.lock().unwrap().config;
    for (offset, length) in [
        (5, 4),
        (6, 4),
        (7, 2),
        (4, 8),
        (3, 2),
        (2, 4),
        (0, 8),
        (8, 1),
    ] {
        let mut data = vec![0; length];
        ports.read(offset, &mut data);
        assert_eq!(data, vec![0xff; length], "{offset} {length}");
        ports.write(offset, &vec![0xff; length]);
    }
    ports.read(u64::MAX, &mut [0; 4]);
    ports.write(u64::MAX, &[0; 4]);
    assert_eq!(function.lock().unwrap().config, before);
}

#[test]
fn both_mechanisms_agree_on_every_byte_word_and_dword() {
    let Bench {
        mut ports,
        mut ecam,
        ..
    } = one_function();
    for devfn in [0x00u32, 0xf7, 0xf8, 0xf9, 0xff] {
        for register in 0..256u32 {
            select(&mut ports, 0x8000_0000 | devfn << 8 | register & 0xfc);
            let port = u64::from(4 + (register & 3));
            let memory = u64::from(devfn << 12 | register);
            assert_eq!(
                read::<1>(&mut ports, port),
                read::<1>(&mut ecam, memory),
                "{devfn:#x} {register:#x}"
            );
            if register % 2 == 0 {
                assert_eq!(read::<2>(&mut ports, port), read::<2>(&mut ecam, memory));
            }
            if register % 4 == 0 {
                assert_eq!(read::<4>(&mut ports, port), read::<4>(&mut ecam, memory));
            }
        }
    }
}

#[test]
fn what_one_mechanism_writes_the_other_reads() {
    let Bench {
        mut ports,
        mut ecam,
        ..
    } = one_function();
    select(&mut ports, 0x8000_f818);
    ports.write(4, &0xdead_beefu32.to_le_bytes());
    // A BAR of 256 bytes: the low byte is not an address.
    assert_eq!(read(&mut ecam, 0xf_8018), 0xdead_be00u32.to_le_bytes());
    ecam.write(0xf_801a, &[0x12]);
    assert_eq!(read(&mut ports, 4), 0xde12_be00u32.to_le_bytes());
}

#[test]
fn the_enhanced_window_has_the_extended_registers_and_an_end() {
    let Bench {
        mut ecam, function, ..
    } = one_function();
    let last = function.lock().unwrap().config[4095];
    assert_eq!(read(&mut ecam, 0xf_8fff), [last]);
    // Across the end of the function: one byte of it, then nothing.
    assert_eq!(read(&mut ecam, 0xf_8fff), [last, 0xff, 0xff, 0xff]);
    for offset in [0x10_8000, 0xfff_fffc, 1 << 32 | 0xf_8000, u64::MAX] {
        assert_eq!(read(&mut ecam, offset), [0xff; 4], "{offset:#x}");
        ecam.write(offset, &[0; 4]);
    }
}
