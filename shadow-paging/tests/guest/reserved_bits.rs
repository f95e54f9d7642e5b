// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every single bit of every kind of entry, for every feature and width, against the manual's lists of
//! reserved bits. SDM 3A, "Reserved bits" paragraphs of "Paging" and "Page-Fault Exceptions".

use std::ops::RangeInclusive;

use hvkit_page_table::{Entry, Format};
use hvkit_shadow_paging::guest::{Features, Layout, cr4, efer};

use crate::support::{LAYOUTS, mode_of, registers};

/// What the manual's sentence is about.
#[derive(Clone, Copy)]
struct Case {
    layout: Layout,
    /// Level of the table that the entry is in.
    level: u8,
    /// Whether PS is 1 in it.
    ps: bool,
    nxe: bool,
    pse: bool,
    features: Features,
}

/// The reserved bits of a present entry, list by list.
fn reserved(case: Case) -> Vec<RangeInclusive<u32>> {
    let m = u32::from(case.features.physical_address_bits);
    let mut list = Vec::new();
    match (case.layout, case.level) {
        // "If the P flag of a PDPTE is 1, bits 2:1, 8:5 and 63:MAXPHYADDR are reserved."
        (Layout::Pae, 3) => return vec![1..=2, 5..=8, m..=63],
        (Layout::ThirtyTwoBit, 2) if case.ps && case.pse => {
            // "Bits 21:(M-19)", M the minimum of 40 and MAXPHYADDR, 32 where PSE-36 is not supported.
            let m = if case.features.pse36 { m.min(40) } else { 32 };
            list.push(m - 19..=21);
            if !case.features.pat {
                list.push(12..=12);
            }
        }
        (Layout::ThirtyTwoBit, 2) => {}
        (Layout::ThirtyTwoBit, _) => {
            if !case.features.pat {
                list.push(7..=7);
            }
        }
        (_, level) => {
            // "Bits 62:MAXPHYADDR" with PAE, "51:MAXPHYADDR" otherwise.
            list.push(m..=if case.layout == Layout::Pae { 62 } else { 51 });
            // "If IA32_EFER.NXE = 0 ..., bit 63 is reserved."
            if !case.nxe {
                list.push(63..=63);
            }
            match level {
                5 | 4 => list.push(7..=7),
                3 if !case.features.gib_pages => list.push(7..=7),
                3 if case.ps => list.push(13..=29),
                2 if case.ps => list.push(13..=20),
                1 if !case.features.pat => list.push(7..=7),
                _ => {}
            }
            let page = case.ps && (level == 2 || level == 3 && case.features.gib_pages);
            if page && !case.features.pat {
                list.push(12..=12);
            }
        }
    }
    list
}

fn cases() -> impl Iterator<Item = Case> {
    LAYOUTS.into_iter().flat_map(|layout| {
        (0..2u32 << 8).map(move |n| {
            let bit = |i: u32| n >> i & 1 != 0;
            let features = Features {
                physical_address_bits: [32, 36, 39, 40, 41, 46, 51, 52][(n >> 6 & 7) as usize],
                gib_pages: bit(0),
                execute_disable: true,
                pse36: bit(1),
                pat: bit(2),
            };
            Case {
                layout,
                level: 0,
                ps: bit(3),
                nxe: bit(4),
                pse: bit(5),
                features,
            }
        })
    })
}

#[test]
fn each_bit_is_reserved_exactly_where_the_manual_says() {
    let mut compared = 0;
    for case in cases() {
        let mut registers = registers(case.layout);
        registers.efer = registers.efer & !efer::NXE | if case.nxe { efer::NXE } else { 0 };
        registers.cr4 = registers.cr4 & !cr4::PSE | if case.pse { cr4::PSE } else { 0 };
        let mode = mode_of(&registers, &case.features);
        let format = mode.format().unwrap();
        for level in 1..=format.shape().levels() {
            let list = reserved(Case { level, ..case });
            let base = 1 | if case.ps && level > 1 { 0x80 } else { 0 };
            let breaks = |entry| matches!(format.decode(entry, level), Entry::Malformed(_));
            let base_breaks = base & 0x80 != 0 && list.iter().any(|r| r.contains(&7));
            assert_eq!(breaks(base), base_breaks, "{:?} {level}", case.layout);
            for bit in 1..format.shape().width().bytes() as u32 * 8 {
                if bit == 7 && level > 1 && base & 0x80 == 0 {
                    continue; // PS: another kind of entry
                }
                let expected = base_breaks || list.iter().any(|r| r.contains(&bit));
                assert_eq!(
                    breaks(base | 1 << bit),
                    expected,
                    "{:?}, level {level}, bit {bit}, {:?}",
                    case.layout,
                    case.features
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 300_000, "{compared}");
}
