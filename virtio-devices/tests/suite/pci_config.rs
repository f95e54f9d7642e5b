// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Configuration space and base address registers, in raw words.

use hvkit_virtio_devices::pci::bar::{Bar, BarError, BarKind};
use hvkit_virtio_devices::pci::config::{CapabilityError, Command, ConfigSpace, Identity};
use hvkit_virtio_devices::pci::{Level, Window};
use proptest::prelude::*;

fn identity() -> Identity {
    Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 0x9a,
        class: 0x0b_cd_ef,
        subsystem_vendor: 0x4321,
        subsystem: 0x8765,
    }
}

/// A function with one window of each kind, two capabilities, and a pin.
fn function() -> ConfigSpace {
    let mut space = ConfigSpace::new(identity());
    space.add_bar(0, BarKind::Memory64, 0x8000).unwrap();
    space.add_bar(2, BarKind::Memory32, 0x1000).unwrap();
    space
        .add_bar(3, BarKind::Memory64Prefetchable, 1 << 33)
        .unwrap();
    space.add_bar(5, BarKind::Memory32, 16).unwrap();
    assert_eq!(
        space.add_capability(0x09, &[0xaa; 5], &[0x0f]).unwrap(),
        0x40
    );
    assert_eq!(
        space.add_capability(0x11, &[0xbb; 10], &[0, 0xc0]).unwrap(),
        0x48
    );
    space.set_interrupt_pin();
    space
}

/// Bits that software may set in [`function`], dword by dword, from the specification's figures.
fn writable(offset: u16) -> u32 {
    match offset {
        // Memory space, bus master, interrupt disable.
        0x04 => 0x0000_0406,
        0x10 => 0xffff_8000,
        0x14 => 0xffff_ffff,
        0x18 => 0xffff_f000,
        0x1c => 0x0000_0000,
        0x20 => 0xffff_fffe,
        0x24 => 0xffff_fff0,
        0x3c => 0x0000_00ff,
        0x40 => 0x000f_0000,
        0x48 => 0xc000_0000,
        _ => 0,
    }
}

#[test]
fn the_header_is_laid_out_as_in_the_figure() {
    let space = function();
    for (offset, word) in [
        (0x00, 0x5678_1234),
        (0x04, 0x0010_0000),
        (0x08, 0x0bcd_ef9a),
        (0x0c, 0),
        (0x10, 0b0100),
        (0x14, 0),
        (0x18, 0b0000),
        (0x1c, 0b1100),
        (0x20, 0),
        (0x24, 0),
        (0x28, 0),
        (0x2c, 0x8765_4321),
        (0x30, 0),
        (0x34, 0x40),
        (0x38, 0),
        (0x3c, 0x0100),
        (0x40, 0xaaaa_4809),
        (0x44, 0x00aa_aaaa),
        (0x48, 0xbbbb_0011),
        (0x4c, 0xbbbb_bbbb),
        (0x50, 0xbbbb_bbbb),
        (0x54, 0),
        (0x100, 0),
        (0xffc, 0),
    ] {
        assert_eq!(space.u32(offset), word, "{offset:#x}");
    }
}

/// Every offset, every width, aligned or not: what may be set is set, nothing else moves.
#[test]
fn a_write_reaches_the_writable_bits_it_covers_and_no_others() {
    let fresh = function();
    let dwords =
        |space: &ConfigSpace| -> Vec<u32> { (0..1024).map(|i| space.u32(i * 4)).collect() };
    let before = dwords(&fresh);
    for offset in 0..4096u16 {
        for width in [1usize, 2, 4, 8] {
            for fill in [0xff, 0x00, 0x5a] {
                let mut space = fresh.clone();
                space.write(offset, &[fill; 8][..width]);
                let covered = usize::from(offset)..usize::from(offset) + width;
                // Only the dwords in reach can differ; the rest is compared in one go.
                let after = dwords(&space);
                let near = usize::from(offset) / 4..(covered.end.div_ceil(4)).min(1024);
                assert_eq!(before[..near.start], after[..near.start]);
                assert_eq!(before[near.end..], after[near.end..]);
                for dword in near {
                    let mut expected = before[dword].to_le_bytes();
                    let mask = writable(dword as u16 * 4).to_le_bytes();
                    for byte in 0..4 {
                        if covered.contains(&(dword * 4 + byte)) {
                            expected[byte] = expected[byte] & !mask[byte] | fill & mask[byte];
                        }
                    }
                    assert_eq!(
                        after[dword],
                        u32::from_le_bytes(expected),
                        "{width} bytes of {fill:#x} at {offset:#x}"
                    );
                }
            }
        }
    }
}

#[test]
fn reads_of_any_shape_agree_and_stop_at_the_end() {
    let space = function();
    let bytes: Vec<u8> = (0..1024)
        .flat_map(|i| space.u32(i * 4).to_le_bytes())
        .collect();
    for offset in (0..4096u16).chain([4097, 0x8000, u16::MAX]) {
        for width in [1, 2, 3, 4, 8] {
            let mut data = vec![0xee; width];
            space.read(offset, &mut data);
            for (i, byte) in data.into_iter().enumerate() {
                let expected = bytes.get(usize::from(offset) + i).copied().unwrap_or(0);
                assert_eq!(byte, expected, "{offset:#x} width {width}");
            }
        }
    }
}

#[test]
fn sizes_are_found_by_writing_ones() {
    let mut space = function();
    for register in [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24] {
        space.write(register, &[0xff; 4]);
    }
    for (register, value) in [
        (0x10, 0xffff_8004),
        (0x14, 0xffff_ffff),
        (0x18, 0xffff_f000),
        (0x1c, 0x0000_000c),
        (0x20, 0xffff_fffe),
        (0x24, 0xffff_fff0),
    ] {
        assert_eq!(space.u32(register), value, "{register:#x}");
    }
    // That is not an assignment, even if memory space is on.
    space.write(4, &[2, 0]);
    assert_eq!(space.windows(), []);
}

#[test]
fn a_window_decodes_when_it_is_assigned_and_memory_space_is_on() {
    let mut space = function();
    space.write(0x10, &0xc000_8fffu32.to_le_bytes());
    space.write(0x14, &0x12u32.to_le_bytes());
    space.write(0x18, &0xfebf_1000u32.to_le_bytes());
    assert_eq!(space.windows(), []);
    assert_eq!(space.command(), Command::empty());
    space.write(4, &[2, 0]);
    let windows = [
        Window {
            bar: 0,
            address: 0x12_c000_8000,
            length: 0x8000,
        },
        Window {
            bar: 2,
            address: 0xfebf_1000,
            length: 0x1000,
        },
    ];
    assert_eq!(space.windows(), windows);
    // One byte of an address moves the window.
    space.write(0x12, &[0x34]);
    assert_eq!(space.windows()[0].address, 0x12_c034_8000);
    space.write(4, &[0, 0]);
    assert_eq!(space.windows(), []);
}

#[test]
fn registers_that_cannot_be_are_refused() {
    let length = |kind, length| Bar::new(0, kind, length).unwrap_err();
    for (kind, bad) in [
        (BarKind::Memory32, 0),
        (BarKind::Memory32, 8),
        (BarKind::Memory32, 0x1001),
        (BarKind::Memory32, 1 << 32),
        (BarKind::Memory64, 8),
        (BarKind::Memory64, u64::MAX),
    ] {
        assert_eq!(length(kind, bad), BarError::Length { length: bad });
    }
    assert_eq!(
        Bar::new(6, BarKind::Memory32, 16),
        Err(BarError::Index { index: 6 })
    );
    assert_eq!(
        Bar::new(5, BarKind::Memory64, 16),
        Err(BarError::Index { index: 5 })
    );
    assert_eq!(
        Bar::new(255, BarKind::Memory64, 16),
        Err(BarError::Index { index: 255 })
    );
    let mut space = ConfigSpace::new(identity());
    space.add_bar(1, BarKind::Memory64, 16).unwrap();
    for (index, kind) in [
        (0, BarKind::Memory64),
        (1, BarKind::Memory32),
        (2, BarKind::Memory32),
        (2, BarKind::Memory64),
    ] {
        assert_eq!(
            space.add_bar(index, kind, 16),
            Err(BarError::Taken { index })
        );
    }
    space.add_bar(0, BarKind::Memory32, 16).unwrap();
    space.add_bar(3, BarKind::Memory32, 16).unwrap();
}

#[test]
fn capabilities_that_do_not_fit_are_refused() {
    let mut space = ConfigSpace::new(identity());
    let offset = space.add_capability(0x09, &[0; 180], &[]).unwrap();
    assert_eq!(offset, 0x40);
    // 0x40 + 182 is 0xf6, so the next is at 0xf8, with room for eight bytes.
    let refused = CapabilityError {
        offset: 0xf8,
        length: 9,
    };
    assert_eq!(space.add_capability(0x05, &[0; 7], &[]), Err(refused));
    let mask = space.add_capability(0x05, &[0; 2], &[0; 3]);
    assert!(mask.is_err(), "a mask longer than what it masks");
    assert_eq!(
        space.u32(0x40) >> 8 & 0xff,
        0,
        "a refused capability was linked"
    );
    assert_eq!(space.add_capability(0x05, &[0; 6], &[]), Ok(0xf8));
    assert_eq!(space.u32(0x40) >> 8 & 0xff, 0xf8);
    assert!(space.add_capability(0x05, &[], &[]).is_err());
}

#[test]
fn a_capability_may_keep_the_place_it_has_in_a_real_device() {
    let mut space = ConfigSpace::new(identity());
    assert_eq!(space.add_capability_at(0x60, 0x10, &[7; 2], &[]), Ok(0x60));
    let refused = |offset, length| Err(CapabilityError { offset, length });
    // Behind the last one only, on a multiple of four, inside the 256 bytes.
    assert_eq!(
        space.add_capability_at(0x50, 0x05, &[0; 2], &[]),
        refused(0x50, 4)
    );
    assert_eq!(
        space.add_capability_at(0x66, 0x05, &[0; 2], &[]),
        refused(0x66, 4)
    );
    assert_eq!(
        space.add_capability_at(0xfc, 0x05, &[0; 3], &[]),
        refused(0xfc, 5)
    );
    for offset in [0x100, 0xffc, usize::MAX & !3] {
        assert_eq!(
            space.add_capability_at(offset, 0x05, &[], &[]),
            refused(offset, 2)
        );
    }
    assert_eq!(space.add_capability_at(0xd0, 0x05, &[9; 2], &[]), Ok(0xd0));
    assert_eq!(space.add_capability(0x09, &[3; 2], &[]), Ok(0xd4));
    assert_eq!(space.u32(0x34) & 0xff, 0x60);
    assert_eq!(space.u32(0x60), 0x0707_d010);
    assert_eq!(space.u32(0xd0), 0x0909_d405);
    assert_eq!(space.u32(0xd4), 0x0303_0009);
}

#[test]
fn a_bit_that_clears_does_so_for_a_one_only() {
    let mut space = function();
    space.set_clears(0x06, &[0, 0xf9]);
    space.set(0x06, &[0x10, 0xff]);
    space.write(0x06, &[0xff, 0x00]);
    assert_eq!(space.u16(0x06), 0xff10);
    space.write(0x06, &[0xff, 0x81]);
    assert_eq!(space.u16(0x06), 0x7e10);
    space.write(0x04, &[0xff; 4]);
    assert_eq!(space.u16(0x06), 0x0610);
    assert_eq!(space.u16(0x04), 0x0406);
}

#[test]
fn the_interrupt_status_bit_is_bit_3() {
    let mut space = function();
    space.set_interrupt_status(Level::Asserted);
    assert_eq!(space.u16(0x06), 0x0018);
    space.set_interrupt_status(Level::Deasserted);
    assert_eq!(space.u16(0x06), 0x0010);
}

proptest! {
    /// A window never reaches past the end of the address space, nor overlaps address 0.
    #[test]
    fn windows_are_where_they_can_be(value in any::<u64>(), log in 4u32..63, wide in any::<bool>()) {
        let (kind, log, value) = if wide {
            (BarKind::Memory64, log, value)
        } else {
            (BarKind::Memory32, log.min(31), value & 0xffff_ffff)
        };
        let bar = Bar::new(0, kind, 1 << log).unwrap();
        if let Some(window) = bar.window(value) {
            prop_assert_ne!(window.address, 0);
            prop_assert_eq!(window.address % window.length, 0);
            let end = window.address.checked_add(window.length);
            prop_assert!(end.is_some_and(|end| wide || end < 1 << 32));
        }
    }
}
