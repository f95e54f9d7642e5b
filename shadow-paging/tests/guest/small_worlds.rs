// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every combination of permission bits, control bits and access kinds, per format, against the manual.

use hvkit_shadow_paging::guest::{
    Access, Cause, ErrorCode, GuestFault, Kind, Layout, PagingMode, Privilege, Registers, Reserved,
    cr0, cr4, efer, probe,
};
use proptest::prelude::*;

use crate::manual::Question;
use crate::support::{LAYOUTS, Memory, Refused, mode, registers};

const LINEAR: u64 = 0x1234;
const KINDS: [Kind; 5] = [
    Kind::Read,
    Kind::Write,
    Kind::Fetch,
    Kind::ShadowStackRead,
    Kind::ShadowStackWrite,
];
const PRIVILEGES: [Privilege; 4] = [
    Privilege::User,
    Privilege::Supervisor,
    Privilege::SupervisorAc,
    Privilege::Implicit,
];

fn accesses() -> impl Iterator<Item = Access> {
    KINDS
        .into_iter()
        .flat_map(|kind| PRIVILEGES.map(|privilege| Access::new(kind, privilege)))
}

/// Tables for `LINEAR`: one entry per frame from 0x1000 up, the last a page at 0. In PAE paging the
/// first frame is the PDPT's and stays empty.
fn tables(layout: Layout, flags: &[u64]) -> (Memory, Vec<u64>) {
    let memory = Memory::default();
    let first = if layout == Layout::Pae { 2 } else { 1 };
    let width = if layout == Layout::ThirtyTwoBit { 4 } else { 8 };
    let last = flags.len() as u64 - 1;
    let entries: Vec<u64> = (0..)
        .zip(flags)
        .map(|(i, flags)| flags | 1 | if i == last { 0 } else { (first + i + 1) << 12 })
        .collect();
    for (frame, &entry) in (first..).zip(&entries) {
        let index = if frame == first + last {
            LINEAR >> 12
        } else {
            0
        };
        memory.set((frame << 12) + index * width, entry);
    }
    (memory, entries)
}

/// Entries of a path that are not PDPTEs.
fn depth(layout: Layout) -> usize {
    match layout {
        Layout::ThirtyTwoBit | Layout::Pae => 2,
        Layout::FourLevel => 4,
        Layout::FiveLevel => 5,
    }
}

/// R/W, U/S, XD and D from four bits of `n`.
fn flags(n: u64) -> u64 {
    (n & 3) << 1 | (n >> 2 & 1) << 63 | (n >> 3 & 1) << 6
}

fn settings(layout: Layout) -> impl Iterator<Item = Registers> {
    (0..1u64 << 6).map(move |n| {
        let mut registers = registers(layout);
        let on = |i: u32, bit: u64| if n >> i & 1 != 0 { bit } else { 0 };
        registers.cr0 = cr0::PG | cr0::PE | on(0, cr0::WP);
        registers.cr4 |= on(1, cr4::SMEP) | on(2, cr4::SMAP) | on(3, cr4::PKE) | on(4, cr4::PKS);
        registers.efer = registers.efer & !efer::NXE | on(5, efer::NXE);
        registers
    })
}

/// The answer of the crate in the manual's terms; anything else fails.
fn answer(mode: &PagingMode, memory: &Memory, access: Access) -> Option<u32> {
    match probe(mode, memory, LINEAR, access) {
        Ok(found) => {
            assert_eq!(found.physical, LINEAR & 0xfff);
            None
        }
        Err(GuestFault::Page { linear, code, .. }) => {
            assert_eq!(linear, LINEAR);
            Some(code.0)
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn all_permissions_modes_and_accesses() {
    let mut compared = 0u64;
    for layout in LAYOUTS {
        let long = matches!(layout, Layout::FourLevel | Layout::FiveLevel);
        let wide = layout != Layout::ThirtyTwoBit;
        for (upper, leaf) in (0..8u64).flat_map(|u| (0..16u64).map(move |l| (u, l))) {
            if !wide && (upper | leaf) & 4 != 0 {
                continue; // no XD
            }
            // Key 5, in the formats that have keys; the entries between grant everything.
            let mut path = vec![flags(0b0011); depth(layout)];
            path[0] = flags(upper);
            path[depth(layout) - 1] = flags(leaf) | if long { 5 << 59 } else { 0 };
            let (memory, entries) = tables(layout, &path);
            for registers in settings(layout) {
                let nxe = registers.efer & efer::NXE != 0;
                if !nxe && (upper | leaf) & 4 != 0 {
                    continue; // reserved: see below
                }
                for keys in 0..if long { 16u32 } else { 1 } {
                    let registers = Registers {
                        pkru: (keys & 3) << 10,
                        pkrs: (keys >> 2) << 10,
                        ..registers
                    };
                    let mode = mode(&registers);
                    for access in accesses() {
                        let expected = Question {
                            layout,
                            registers: &registers,
                            entries: &entries,
                            access,
                        }
                        .answer();
                        assert_eq!(
                            answer(&mode, &memory, access),
                            expected,
                            "{layout:?} {entries:x?} {registers:x?} {access:?}"
                        );
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 2_000_000, "{compared}");
}

#[test]
fn a_clear_p_or_a_reserved_bit_at_any_level_ends_the_walk() {
    for layout in LAYOUTS {
        for registers in settings(layout) {
            let mode = mode(&registers);
            for broken in 0..depth(layout) {
                for access in accesses() {
                    let level = (depth(layout) - broken) as u8;
                    let bits = Question {
                        layout,
                        registers: &registers,
                        entries: &[],
                        access,
                    }
                    .access_bits();
                    let (memory, mut entries) = tables(layout, &vec![0; depth(layout)]);
                    let at = broken_at(layout, broken);
                    // Every other bit set, reserved ones too: P is read first.
                    entries[broken] = 0xffff_fffe;
                    memory.set(at, entries[broken]);
                    assert_eq!(
                        probe(&mode, &memory, LINEAR, access),
                        Err(GuestFault::Page {
                            linear: LINEAR,
                            code: ErrorCode(bits),
                            cause: Cause::NotPresent {
                                level,
                                entry: 0xffff_fffe
                            },
                        })
                    );
                    if layout == Layout::ThirtyTwoBit && level == 1 {
                        continue; // no bit of it is reserved
                    }
                    let (entry, rule) = match layout {
                        Layout::ThirtyTwoBit => (0x0020_0081, Reserved::Address),
                        _ => (1 << 46 | 1, Reserved::Address),
                    };
                    memory.set(at, entry);
                    let reserved = Err(GuestFault::Page {
                        linear: LINEAR,
                        code: ErrorCode(bits | 0b1001),
                        cause: Cause::Reserved { level, entry, rule },
                    });
                    assert_eq!(probe(&mode, &memory, LINEAR, access), reserved);
                }
            }
        }
    }
}

/// Where `tables` puts the entry `broken` entries down the path.
fn broken_at(layout: Layout, broken: usize) -> u64 {
    let first = if layout == Layout::Pae { 2 } else { 1 };
    let width = if layout == Layout::ThirtyTwoBit { 4 } else { 8 };
    let last = broken + 1 == depth(layout);
    (first + broken as u64) << 12 | if last { width } else { 0 }
}

#[test]
fn only_linear_addresses_that_the_mode_has_are_walked() {
    let read = Access::new(Kind::Read, Privilege::User);
    let nowhere = Memory::default();
    for layout in [Layout::ThirtyTwoBit, Layout::Pae] {
        let mode = mode(&registers(layout));
        assert_eq!(
            probe(&mode, &nowhere, 1 << 32, read),
            Err(GuestFault::TooWide { linear: 1 << 32 })
        );
    }
    let edges = [
        (
            Layout::FourLevel,
            0x0000_8000_0000_0000,
            0xffff_7fff_ffff_ffff,
        ),
        (
            Layout::FiveLevel,
            0x0100_0000_0000_0000,
            0xfeff_ffff_ffff_ffff,
        ),
    ];
    for (layout, first, last) in edges {
        let mode = mode(&registers(layout));
        for linear in [first, last, 1 << 63] {
            assert_eq!(
                probe(&mode, &nowhere, linear, read),
                Err(GuestFault::NonCanonical { linear })
            );
        }
        for linear in [first - 1, last + 1] {
            assert!(matches!(
                probe(&mode, &nowhere, linear, read),
                Err(GuestFault::Memory {
                    error: Refused(_),
                    ..
                })
            ));
        }
    }
}

proptest! {
    /// Any flags at any level, not only at the first and the last.
    #[test]
    fn any_path_is_judged_as_the_manual_says(
        layout in 0usize..4,
        path in proptest::collection::vec((0u64..16, 0u64..16), 5),
        setting in 0usize..64,
        pkru: u32,
        pkrs: u32,
        access in 0usize..20,
    ) {
        let layout = LAYOUTS[layout];
        let long = matches!(layout, Layout::FourLevel | Layout::FiveLevel);
        let mut registers = settings(layout).nth(setting).unwrap();
        (registers.pkru, registers.pkrs) = (pkru, pkrs);
        let nxe = registers.efer & efer::NXE != 0 && layout != Layout::ThirtyTwoBit;
        // Mostly granting, or nothing deep would ever be allowed.
        let path: Vec<u64> = path[..depth(layout)]
            .iter()
            .map(|&(n, key)| {
                let n = if key < 10 { n | 3 } else { n };
                let key = if long { key << 59 } else { 0 };
                flags(if nxe { n } else { n & !4 }) | key
            })
            .collect();
        let (memory, entries) = tables(layout, &path);
        let access = accesses().nth(access).unwrap();
        let expected = Question { layout, registers: &registers, entries: &entries, access }.answer();
        prop_assert_eq!(answer(&mode(&registers), &memory, access), expected);
    }
}
