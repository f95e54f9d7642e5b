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
        let mut whole = unit.clone();
        for at in 0..BYTES as u32 - 16 {
            for (length, value) in (1..=16).flat_map(|length| [(length, 0xff), (length, 0)]) {
                if is_active(at, length) {
                    continue;
                }
                whole.write(&ram, &mut Nobody, at, &vec![value; length as usize]);
                let after = snapshot(&whole);
                let range = at as usize..(at + length) as usize;
                assert_eq!(after[..range.start], before[..range.start], "{at:#x}");
                assert_eq!(after[range.end..], before[range.end..], "{at:#x}");
                if after == before {
                    // Nor do its bytes one by one; the unit is as it was.
                    for i in 0..length {
                        whole.write(&ram, &mut Nobody, at + i, &[value]);
                    }
                    assert_eq!(snapshot(&whole), before, "{length} bytes at {at:#x}");
                    continue;
                }
                whole = unit.clone();
                let mut single = unit.clone();
                for i in 0..length {
                    single.write(&ram, &mut Nobody, at + i, &[value]);
                }
                assert_eq!(snapshot(&single), after, "{length} bytes at {at:#x}");
            }
        }
    }
}

/// Which bits of the window may ever read otherwise than after reset, by the specification's "Register Descriptions": RW and RW1C bits, what
/// hardware reports, and nothing that is RO for good, WO or reserved. Where, and in the 8 bytes from there.
const CHANGES: [(u32, u64); 21] = [
    // GCMD is WO; GSTS: TES, RTPS, FLS, AFLS, WBFS, QIES, IRES, IRTPS, CFIS.
    (0x18, 0xff80_0000 << 32),
    // RTADDR: RTA, TTM.
    (0x20, !0x3ff),
    // CCMD: ICC, CIRG, CAIG; FM, SID, DID.
    (0x28, 0x1f << 59 | 0x3_ffff_ffff),
    // FSTS: FRI, and PFO, PPF, AFO, APF, IQE, ICE, ITE, DEP.
    (0x30, 0xffff << 32),
    // FECTL: IM, IP; FEDATA.
    (0x38, 0xffff_ffff_c000_0000),
    // FEADDR 31:2; FEUADDR.
    (0x40, !3),
    // AFLOG, PMEN, the protected ranges: these units have none of it.
    // IQH: QH, in descriptors of 16 bytes; IQT.
    (0x80, 0x7fff0),
    (0x88, 0x7fff0),
    // IQA: IQA, DW, QS.
    (0x90, !0x7f8),
    // ICS: IWC.
    (0x98, 1 << 32),
    // IECTL, IEDATA; IEADDR, IEUADDR.
    (0xa0, 0xffff_ffff_c000_0000),
    (0xa8, !3),
    // IQERCD: ITESID, ICESID, IQEI.
    (0xb0, !0xffff_fff0),
    // IRTA: IRTA, EIME, S.
    (0xb8, !0x7f0),
    // PQH, PQT, PQA.
    (0xc0, 0x7ffe0),
    (0xc8, 0x7ffe0),
    (0xd0, !0xff8),
    // PRS: PPR, PRO.
    (0xd8, 3 << 32),
    // PECTL, PEDATA; PEADDR, PEUADDR.
    (0xe0, 0xffff_ffff_c000_0000),
    (0xe8, !3),
    // IVA: WO. IOTLB: IVT, IIRG, IAIG, DR, DW, DID.
    (0x508, 1 << 63 | 7 << 60 | 7 << 57 | 0xff_ffff << 32),
];

/// Active ones too, at every offset, of every width, also across registers: what is read-only or reserved stays, and a register that was not
/// written changes only if a command or a doorbell was.
#[test]
fn no_write_changes_what_software_cannot() {
    let mut may = [0u8; BYTES];
    for (at, bits) in CHANGES {
        may[at as usize..][..8].copy_from_slice(&bits.to_le_bytes());
    }
    let ram = Ram::new(0x1000);
    for unit in units() {
        let before = snapshot(&unit);
        let mut written = unit.clone();
        for at in 0..BYTES as u32 - 16 {
            for (length, value) in (1..=16).flat_map(|l| [(l, 0xff), (l, 0xa5)]) {
                written.write(&ram, &mut Nobody, at, &vec![value; length as usize]);
                let after = snapshot(&written);
                if after == before {
                    continue;
                }
                // The next write is to a unit as it was.
                written = unit.clone();
                let active = is_active(at, length);
                let inside = at as usize..(at + length) as usize;
                for (i, byte) in after.iter().enumerate() {
                    let changed = byte ^ before[i];
                    assert_eq!(
                        changed & !may[i],
                        0,
                        "{length} bytes of {value:#x} at {at:#x}: byte {i:#x} was {:#x}, is {byte:#x}",
                        before[i]
                    );
                    assert!(
                        changed == 0 || active || inside.contains(&i),
                        "{length} bytes of {value:#x} at {at:#x} changed byte {i:#x}"
                    );
                }
            }
        }
    }
}
