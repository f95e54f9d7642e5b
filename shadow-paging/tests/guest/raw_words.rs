// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries as raw words worked out by hand from the manual's figures: "Formats of CR3 and
//! Paging-Structure Entries" of each mode. None is made with the crate's own names.

use hvkit_page_table::{Entry, Format, Marks};
use hvkit_shadow_paging::guest::{Features, GuestAttributes, Layout, Registers, Reserved};

use crate::support::{LAYOUTS, mode, mode_of, registers};

fn decode(registers: &Registers, entry: u64, level: u8) -> Entry<GuestAttributes, Reserved> {
    mode(registers).format().unwrap().decode(entry, level)
}

fn narrow(
    bits: u8,
    registers: &Registers,
    entry: u64,
    level: u8,
) -> Entry<GuestAttributes, Reserved> {
    let mode = mode_of(registers, &Features::all(bits));
    mode.format().unwrap().decode(entry, level)
}

const NOTHING: GuestAttributes = GuestAttributes {
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
    let cases: [(u64, u64, GuestAttributes); 13] = [
        // P alone, then one more bit each.
        (0x0000_0000_0000_0001, 0, NOTHING),
        (
            0x0000_0000_0000_0003,
            0,
            GuestAttributes {
                writable: true,
                ..NOTHING
            },
        ),
        (
            0x0000_0000_0000_0005,
            0,
            GuestAttributes {
                user: true,
                ..NOTHING
            },
        ),
        (
            0x0000_0000_0000_0009,
            0,
            GuestAttributes { pat: 1, ..NOTHING },
        ),
        (
            0x0000_0000_0000_0011,
            0,
            GuestAttributes { pat: 2, ..NOTHING },
        ),
        (0x0000_0000_0000_0021, 0, NOTHING), // A
        (
            0x0000_0000_0000_0041,
            0,
            GuestAttributes {
                shadow_stack: true,
                ..NOTHING
            },
        ),
        (
            0x0000_0000_0000_0081,
            0,
            GuestAttributes { pat: 4, ..NOTHING },
        ),
        (
            0x0000_0000_0000_0101,
            0,
            GuestAttributes {
                global: true,
                ..NOTHING
            },
        ),
        (0x0000_3fff_ffff_f001, 0x0000_3fff_ffff_f000, NOTHING), // 46 address bits
        (0x07f0_0000_0000_0e01, 0, NOTHING),                     // ignored: 58..52 and 11..9
        (
            0x5000_0000_0000_0001,
            0,
            GuestAttributes { key: 10, ..NOTHING },
        ),
        (
            0x8000_0000_0000_0001,
            0,
            GuestAttributes {
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
            attributes: GuestAttributes {
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
            attributes: GuestAttributes {
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
            attributes: GuestAttributes {
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
        mode.format().unwrap().decode(0x0040_0081 | 1 << 13, 2),
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
        format.decode(0x4000_0081, 3),
        Entry::Malformed(Reserved::PageSize)
    );
    assert_eq!(format.decode(0x4000_0001, 3), table(0x4000_0000));
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
            attributes: GuestAttributes {
                pat: 3,
                ..GuestAttributes::ALL
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
            attributes: GuestAttributes {
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
