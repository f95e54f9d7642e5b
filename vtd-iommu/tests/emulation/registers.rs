// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every offset of the register window at every width.

use std::ops::Range;

use hvkit_vtd_iommu::emulation::fake::Ram;
use hvkit_vtd_iommu::emulation::{Nobody, Options, Unit};

/// The window, and what is behind it.
const BYTES: usize = 0x1010;
/// Registers that change others when they are written: commands, doorbells, conditions that clear pending events.
const ACTIVE: [Range<u32>; 10] = [
    0x18..0x20,
    0x28..0x30,
    0x30..0x40,
    0x80..0x90,
    0x98..0xa8,
    0xd8..0xe8,
    // IVA and IOTLB of these units, and their fault records.
    0x500..0x510,
    0x200..0x320,
    0x90..0x98,
    0xb0..0xb8,
];

fn units() -> Vec<Unit> {
    let presets = [
        Options::new(39),
        Options::new(52)
            .with_scalable_mode()
            .with_device_tlbs()
            .with_posted_interrupts(),
    ];
    let unit = |options: Options| {
        let options = Options {
            iotlb_pages: 64,
            capability: options.capability.with_nd(0),
            ..options
        };
        Unit::new(options).unwrap()
    };
    presets.into_iter().map(unit).collect()
}

fn snapshot(unit: &Unit) -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    unit.read(0, &mut bytes);
    bytes
}

fn is_active(at: u32, length: u32) -> bool {
    let overlaps = |range: &Range<u32>| at < range.end && range.start < at + length;
    ACTIVE.iter().any(overlaps)
}

#[test]
fn there_is_nothing_at_the_end_of_offsets() {
    let ram = Ram::new(0x1000);
    for mut unit in units() {
        let before = snapshot(&unit);
        for at in [u32::MAX, u32::MAX - 1, u32::MAX - 7, u32::MAX - 8] {
            let mut bytes = [0xee; 16];
            unit.read(at, &mut bytes);
            assert_eq!(bytes, [0; 16]);
            unit.write(&ram, &mut Nobody, at, &[0xff; 16]);
        }
        assert_eq!(snapshot(&unit), before);
    }
}

#[test]
fn a_read_of_any_width_is_the_bytes() {
    let ram = Ram::new(0x1000);
    for mut unit in units() {
        for offset in (0u32..0x1000).step_by(8) {
            if !is_active(offset, 8) {
                unit.write64(&ram, &mut Nobody, offset, 0x5aa5_c33c_9669_f00f);
            }
        }
        let all = snapshot(&unit);
        for at in 0..BYTES - 16 {
            for length in 0..=16 {
                let mut bytes = [0xee; 16];
                unit.read(at as u32, &mut bytes[..length]);
                assert_eq!(bytes[..length], all[at..at + length], "{at:#x}");
                assert_eq!(bytes[length..], [0xee; 16][length..]);
            }
        }
        assert_eq!(all[0x1000..], [0; 16]);
    }
}

#[test]
fn a_write_of_any_width_is_its_bytes_and_touches_no_other() {
    let ram = Ram::new(0x1000);
    for unit in units() {
        let before = snapshot(&unit);
        for at in (0..0x600u32).chain(0xff0..0x1008) {
            for (length, value) in [
                (1, 0xff),
                (2, 0xff),
                (3, 0xff),
                (4, 0xff),
                (8, 0xff),
                (16, 0xff),
                (4, 0),
            ] {
                if is_active(at, length) {
                    continue;
                }
                let mut whole = unit.clone();
                whole.write(&ram, &mut Nobody, at, &vec![value; length as usize]);
                let after = snapshot(&whole);
                let range = at as usize..(at + length) as usize;
                for (i, byte) in after.iter().enumerate() {
                    let inside = range.contains(&i);
                    assert!(
                        inside || *byte == before[i],
                        "a write at {at:#x} changed {i:#x}"
                    );
                }
                let mut single = unit.clone();
                for i in 0..length {
                    single.write(&ram, &mut Nobody, at + i, &[value]);
                }
                assert_eq!(snapshot(&single), after, "{length} bytes at {at:#x}");
            }
        }
    }
}
