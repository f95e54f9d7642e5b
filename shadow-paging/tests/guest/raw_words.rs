// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries as raw words worked out by hand from the manual's figures: "Formats of CR3 and
//! Paging-Structure Entries" of each mode. None is made with the crate's own names.

use hvkit_page_table::{Entry, Format, Marks};
use hvkit_shadow_paging::guest::{Features, GuestAttributes, Layout, Registers, Reserved};

use crate::support::{LAYOUTS, mode, mode_of, registers};

/// What an entry says, spelled out.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Says {
    user: bool,
    writable: bool,
    executable: bool,
    shadow_stack: bool,
    key: u8,
    global: bool,
    pat: u8,
}

fn says(entry: Entry<GuestAttributes, Reserved>) -> Entry<Says, Reserved> {
    let spell = |a: GuestAttributes| Says {
        user: a.user(),
        writable: a.writable(),
        executable: a.executable(),
        shadow_stack: a.shadow_stack(),
        key: a.key(),
        global: a.global(),
        pat: a.pat(),
    };
    match entry {
        Entry::Empty => Entry::Empty,
        Entry::Malformed(rule) => Entry::Malformed(rule),
        Entry::Table { frame, attributes } => Entry::Table {
            frame,
            attributes: spell(attributes),
        },
        Entry::Leaf { target, attributes } => Entry::Leaf {
            target,
            attributes: spell(attributes),
        },
    }
}

fn decode(registers: &Registers, entry: u64, level: u8) -> Entry<Says, Reserved> {
    says(mode(registers).format().unwrap().decode(entry, level))
}

fn narrow(bits: u8, registers: &Registers, entry: u64, level: u8) -> Entry<Says, Reserved> {
    let mode = mode_of(registers, &Features::all(bits));
    says(mode.format().unwrap().decode(entry, level))
}

const NOTHING: Says = Says {
    user: false,
    writable: false,
    executable: true,
    shadow_stack: false,
    key: 0,
    global: false,
    pat: 0,
};

#[test]
fn a_word_for_every_field_of_a_long_page() {
    let long = registers(Layout::FourLevel);
    let cases: [(u64, u64, Says); 13] = [
        // P alone, then one more bit each.
        (0x0000_0000_0000_0001, 0, NOTHING),
        (
            0x0000_0000_0000_0003,
            0,
            Says {
                writable: true,
                ..NOTHING
            },
        ),
        (
            0x0000_0000_0000_0005,
            0,
            Says {
                user: true,
                ..NOTHING
            },
        ),
        (0x0000_0000_0000_0009, 0, Says { pat: 1, ..NOTHING }),
        (0x0000_0000_0000_0011, 0, Says { pat: 2, ..NOTHING }),
        (0x0000_0000_0000_0021, 0, NOTHING), // A
        (
            0x0000_0000_0000_0041,
            0,
            Says {
                shadow_stack: true,
                ..NOTHING
            },
        ),
        (0x0000_0000_0000_0081, 0, Says { pat: 4, ..NOTHING }),
        (
            0x0000_0000_0000_0101,
            0,
            Says {
                global: true,
                ..NOTHING
            },
        ),
        (0x0000_3fff_ffff_f001, 0x0000_3fff_ffff_f000, NOTHING), // 46 address bits
        (0x07f0_0000_0000_0e01, 0, NOTHING),                     // ignored: 58..52 and 11..9
        (0x5000_0000_0000_0001, 0, Says { key: 10, ..NOTHING }),
        (
            0x8000_0000_0000_0001,
            0,
            Says {
                executable: false,
                ..NOTHING
            },
        ),
    ];
    for (entry, target, attributes) in cases {
        assert_eq!(
            decode(&long, entry, 1),
            Entry::Leaf { target, attributes },
            "{entry:#018x}"
        );
    }
    for entry in [0, 0xffff_ffff_ffff_fffe, 0x8000_0000_0000_0080] {
        for level in 1..=5 {
            assert_eq!(decode(&long, entry, level), Entry::Empty, "P is clear");
        }
    }
}

#[test]
fn large_pages_lie_where_the_figures_put_them() {
    let long = registers(Layout::FourLevel);
    // 2 MiB: bits 45..21, PAT at 12.
    assert_eq!(
        decode(&long, 0x0000_2aaa_aaa0_10e3, 2),
        Entry::Leaf {
            target: 0x0000_2aaa_aaa0_0000,
            attributes: Says {
                writable: true,
                pat: 4,
                ..NOTHING
            },
        }
    );
    // 1 GiB: bits 45..30.
    assert_eq!(
        decode(&long, 0x0000_2aaa_8000_0185, 3),
        Entry::Leaf {
            target: 0x0000_2aaa_8000_0000,
            attributes: Says {
                user: true,
                global: true,
                ..NOTHING
            },
        }
    );
    // 4 MiB of 32-bit paging: bits 31..22, and 39..32 at 20..13.
    let thirty_two = registers(Layout::ThirtyTwoBit);
    assert_eq!(
        decode(&thirty_two, 0xff40_0087 | 0xa5 << 13, 2),
        Entry::Leaf {
            target: 0xa5_ff40_0000,
            attributes: Says {
                writable: true,
                user: true,
                ..NOTHING
            },
        }
    );
    // With 36 address bits only four of them; with 32 bits or without PSE-36 none.
    assert_eq!(
        narrow(36, &thirty_two, 0x0040_0081 | 0xf << 13, 2),
        Entry::Leaf {
            target: 0xf_0040_0000,
            attributes: NOTHING
        }
    );
    assert_eq!(
        narrow(36, &thirty_two, 0x0040_0081 | 1 << 17, 2),
        Entry::Malformed(Reserved::Address)
    );
    let features = Features {
        pse36: false,
        ..Features::all(46)
    };
    let mode = mode_of(&thirty_two, &features);
    assert_eq!(
        says(mode.format().unwrap().decode(0x0040_0081 | 1 << 13, 2)),
        Entry::Malformed(Reserved::Address)
    );
}

#[test]
fn ps_is_a_page_only_where_the_mode_has_one() {
    let table = |frame| Entry::Table {
        frame,
        attributes: NOTHING,
    };
    let mut thirty_two = registers(Layout::ThirtyTwoBit);
    thirty_two.cr4 = 0;
    assert_eq!(
        decode(&thirty_two, 0x0040_3081, 2),
        table(0x0040_3000),
        "CR4.PSE is clear: ignored"
    );
    let long = registers(Layout::FiveLevel);
    assert_eq!(
        decode(&long, 0x3081, 4),
        Entry::Malformed(Reserved::PageSize)
    );
    assert_eq!(
        decode(&long, 0x3081, 5),
        Entry::Malformed(Reserved::PageSize)
    );
    let mode = mode_of(
        &long,
        &Features {
            gib_pages: false,
            ..Features::all(46)
        },
    );
    let format = mode.format().unwrap();
    assert_eq!(
        says(format.decode(0x4000_0081, 3)),
        Entry::Malformed(Reserved::PageSize)
    );
    assert_eq!(says(format.decode(0x4000_0001, 3)), table(0x4000_0000));
    assert_eq!(
        decode(&registers(Layout::Pae), 0x0020_0081, 2),
        Entry::Leaf {
            target: 0x0020_0000,
            attributes: NOTHING,
        }
    );
}

#[test]
fn a_pdpte_grants_everything_and_has_four_control_bits() {
    let pae = registers(Layout::Pae);
    assert_eq!(
        decode(&pae, 0x0000_3fff_ffff_fe19, 3),
        Entry::Table {
            frame: 0x0000_3fff_ffff_f000,
            attributes: Says {
                pat: 3,
                user: true,
                writable: true,
                ..NOTHING
            },
        }
    );
    for bit in [1, 2, 5, 6, 7, 8] {
        assert_eq!(
            decode(&pae, 1 | 1 << bit, 3),
            Entry::Malformed(Reserved::Pdpte)
        );
    }
    for bit in 46..=63 {
        assert_eq!(
            decode(&pae, 1 | 1 << bit, 3),
            Entry::Malformed(Reserved::Address)
        );
    }
}

#[test]
fn four_byte_entries_have_neither_key_nor_execute_disable() {
    let thirty_two = registers(Layout::ThirtyTwoBit);
    assert_eq!(
        decode(&thirty_two, 0xffff_ffff, 1),
        Entry::Leaf {
            target: 0xffff_f000,
            attributes: Says {
                user: true,
                writable: true,
                executable: true,
                shadow_stack: false,
                key: 0,
                global: true,
                pat: 7,
            },
        }
    );
    // PAE has no keys: the bits are reserved.
    assert_eq!(
        decode(&registers(Layout::Pae), 0x0800_0000_0000_0001, 1),
        Entry::Malformed(Reserved::Address)
    );
}

#[test]
fn flags_of_use_are_bits_5_and_6() {
    for layout in LAYOUTS {
        let mode = mode(&registers(layout));
        assert_eq!(
            mode.format().unwrap().marks(),
            Marks {
                accessed: 0x20,
                dirty: 0x40
            }
        );
    }
}

#[test]
fn a_path_grants_what_every_entry_grants_and_the_last_names_the_rest() {
    let mode = mode(&registers(Layout::FourLevel));
    let format = mode.format().unwrap();
    let of = |entry, level| match format.decode(entry, level) {
        Entry::Table { attributes, .. } | Entry::Leaf { attributes, .. } => attributes,
        other => panic!("{other:?}"),
    };
    let all = of(0x2007, 4);
    let path = |upper: u64, leaf: u64| {
        let folded = format.fold(format.fold(all, of(upper, 2)), of(leaf, 1));
        (folded.user(), folded.writable(), folded.executable())
    };
    for bits in 0..64u64 {
        let (upper, leaf) = (bits & 7, bits >> 3);
        // U/S, R/W, XD.
        let entry = |n: u64| 1 | (n & 1) << 2 | (n >> 1 & 1) << 1 | (n >> 2) << 63;
        let both = |bit: u64| upper & leaf & bit != 0;
        assert_eq!(
            path(entry(upper), entry(leaf)),
            (both(1), both(2), (upper | leaf) & 4 == 0)
        );
    }
    // A shadow stack: R/W clear and D set in the last entry, R/W set above.
    let shadow_stack = |top: u64, upper: u64, leaf: u64| {
        let folded = format.fold(format.fold(of(top, 4), of(upper, 2)), of(leaf, 1));
        folded.shadow_stack()
    };
    assert!(shadow_stack(0x2003, 0x2003, 0x7041));
    assert!(!shadow_stack(0x2001, 0x2003, 0x7041));
    assert!(!shadow_stack(0x2003, 0x2001, 0x7041));
    assert!(!shadow_stack(0x2003, 0x2003, 0x7043));
    assert!(!shadow_stack(0x2003, 0x2043, 0x7001));
    // Key, G and PAT are the last entry's.
    let folded = format.fold(of(0x7800_0000_0000_211f, 2), of(0x2800_0000_0000_7089, 1));
    assert_eq!((folded.key(), folded.global(), folded.pat()), (5, false, 5));
}

#[test]
fn a_reserved_bit_is_called_what_the_manual_calls_it() {
    let mut long = registers(Layout::FourLevel);
    assert_eq!(
        decode(&long, 0x0000_4000_0000_2001, 4),
        Entry::Malformed(Reserved::Address)
    );
    assert_eq!(
        decode(&long, 0x0000_0000_0010_0081, 2),
        Entry::Malformed(Reserved::Alignment)
    );
    assert_eq!(
        decode(&long, 0x0000_0000_2000_0081, 3),
        Entry::Malformed(Reserved::Alignment)
    );
    long.efer = 0x500;
    for level in 1..=4 {
        let entry = 0x8000_0000_0000_2001;
        assert_eq!(
            decode(&long, entry, level),
            Entry::Malformed(Reserved::ExecuteDisable)
        );
    }
    let old = Features {
        pat: false,
        ..Features::all(36)
    };
    for (layout, entry, level) in [
        (Layout::ThirtyTwoBit, 0x2081, 1),
        (Layout::ThirtyTwoBit, 0x0040_1081, 2),
        (Layout::Pae, 0x2081, 1),
        (Layout::Pae, 0x0020_1081, 2),
    ] {
        let mode = mode_of(&registers(layout), &old);
        let decoded = mode.format().unwrap().decode(entry, level);
        assert_eq!(
            decoded,
            Entry::Malformed(Reserved::Pat),
            "{layout:?} {level}"
        );
    }
}
