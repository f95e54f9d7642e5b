// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every combination of the low 13 bits of an entry, at each level of each format, on processors that differ in what
//! they have, against the manual's tables of entry formats, field by field.
//!
//! [`processor`] and [`one_entry`] take plain numbers and turn those away that are no case, so that they can be given every
//! number, or one that stands for all.

use hvkit_page_table::{Entry, Format};
use hvkit_shadow_paging::guest::{Features, GuestAttributes, GuestFormat, Layout, cr4, efer};

use crate::support::{LAYOUTS, mode_of, registers};

/// MAXPHYADDR.
const M: u32 = 39;

/// The processor and the guest's choice, as bits of a number.
#[derive(Clone, Copy, Debug)]
struct Has {
    execute_disable: bool,
    page_size_extensions: bool,
    pat: bool,
    gib_pages: bool,
}

/// What the manual says that an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    NotPresent,
    Reserved,
    Table {
        frame: u64,
        rights: Rights,
    },
    Page {
        target: u64,
        rights: Rights,
        /// PAT, PCD and PWT.
        memory: u64,
        global: bool,
    },
}

/// U/S, R/W and not XD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights(bool, bool, bool);

/// Bits `high` to `low` of `word`, where they are.
fn field(word: u64, high: u32, low: u32) -> u64 {
    (low..=high).map(|n| word & 1 << n).sum()
}

fn bit(word: u64, n: u32) -> bool {
    word >> n & 1 == 1
}

/// SDM 3A, "32-Bit Paging", tables of the formats of entries.
fn thirty_two_bit(entry: u64, level: u8, has: Has) -> Said {
    let rights = Rights(bit(entry, 2), bit(entry, 1), true);
    if level == 2 && !(bit(entry, 7) && has.page_size_extensions) {
        // "Page-directory entry that references a page table": bit 7 is ignored where CR4.PSE is 0.
        let frame = field(entry, 31, 12);
        return Said::Table { frame, rights };
    }
    let (pat, target, reserved) = if level == 2 {
        // "Bits M-20:13: bits M-1:32 of the physical address"; "21:(M-19): reserved".
        let high = field(entry, M - 20, 13) << 19;
        let reserved = field(entry, 21, M - 19);
        (12, field(entry, 31, 22) | high, reserved)
    } else {
        (7, field(entry, 31, 12), 0)
    };
    page(entry, (pat, target, reserved), rights, has)
}

/// SDM 3A, "PAE Paging" and "4-Level Paging and 5-Level Paging", the same.
fn eight_bytes(entry: u64, level: u8, layout: Layout, has: Has) -> Said {
    let pae = layout == Layout::Pae;
    let frame = field(entry, M - 1, 12);
    if pae && level == 3 {
        // PDPTE: "2:1 reserved; 8:5 reserved; 63:M reserved". It grants everything.
        return if field(entry, 2, 1) | field(entry, 8, 5) | field(entry, 63, M) != 0 {
            Said::Reserved
        } else {
            let rights = Rights(true, true, true);
            Said::Table { frame, rights }
        };
    }
    let rights = Rights(bit(entry, 2), bit(entry, 1), !bit(entry, 63));
    let disabled = bit(entry, 63) && !has.execute_disable;
    if field(entry, if pae { 62 } else { 51 }, M) != 0 || disabled {
        return Said::Reserved;
    }
    let (pat, lowest) = match level {
        1 => (7, 12),
        2 if bit(entry, 7) => (12, 21),
        3 if bit(entry, 7) && has.gib_pages => (12, 30),
        // "7 (PS): must be 0" of what cannot map a page.
        3..=5 if bit(entry, 7) => return Said::Reserved,
        _ => return Said::Table { frame, rights },
    };
    let reserved = if level > 1 {
        field(entry, lowest - 1, 13)
    } else {
        0
    };
    let target = field(entry, M - 1, lowest);
    page(entry, (pat, target, reserved), rights, has)
}

/// An entry that maps a page: where its PAT bit is, the page, and bits that must be 0.
fn page(entry: u64, (pat, target, reserved): (u32, u64, u64), rights: Rights, has: Has) -> Said {
    if reserved != 0 || bit(entry, pat) && !has.pat {
        return Said::Reserved;
    }
    let memory = u64::from(bit(entry, pat)) << 2 | entry >> 3 & 3;
    Said::Page {
        target,
        rights,
        memory,
        global: bit(entry, 8),
    }
}

fn rights(attributes: GuestAttributes) -> Rights {
    Rights(
        attributes.user(),
        attributes.writable(),
        attributes.executable(),
    )
}

/// A processor in one mode.
#[derive(Debug)]
struct Processor {
    layout: Layout,
    has: Has,
    format: GuestFormat,
}

/// Layout number `layout` on a processor that has what the bits of `has` say, if there is one.
fn processor(layout: usize, has: u32) -> Option<Processor> {
    let &layout = LAYOUTS.get(layout)?;
    let on = |n: u32| has >> n & 1 == 1;
    let has = Has {
        execute_disable: on(0),
        page_size_extensions: on(1),
        pat: on(2),
        gib_pages: on(3),
    };
    let mut registers = registers(layout);
    if !has.execute_disable {
        registers.efer &= !efer::NXE;
    }
    if !has.page_size_extensions {
        registers.cr4 &= !cr4::PSE;
    }
    let features = Features {
        physical_address_bits: M as u8,
        gib_pages: has.gib_pages,
        execute_disable: true,
        pse36: true,
        pat: has.pat,
    };
    let format = *mode_of(&registers, &features).format()?;
    Some(Processor {
        layout,
        has,
        format,
    })
}

/// One entry of a table at `level`. Whether that is a case at all.
fn one_entry(on: &Processor, entry: u64, level: u8) -> bool {
    let narrow = on.layout == Layout::ThirtyTwoBit;
    let levels = on.format.shape().levels();
    if narrow && entry >> 32 != 0 || !(1..=levels).contains(&level) {
        return false;
    }
    let said = match (bit(entry, 0), narrow) {
        (false, _) => Said::NotPresent,
        (true, true) => thirty_two_bit(entry, level, on.has),
        (true, false) => eight_bytes(entry, level, on.layout, on.has),
    };
    let ours = match on.format.decode(entry, level) {
        Entry::Empty => Said::NotPresent,
        Entry::Malformed(_) => Said::Reserved,
        Entry::Table { frame, attributes } => Said::Table {
            frame,
            rights: rights(attributes),
        },
        Entry::Leaf { target, attributes } => Said::Page {
            target,
            rights: rights(attributes),
            memory: attributes.pat().into(),
            global: attributes.global(),
        },
    };
    assert_eq!(ours, said, "{on:?} level {level} {entry:#x}");
    true
}

/// Bits above: of addresses that fit and do not, software's, a key, XD.
const UPPER: [u64; 10] = [
    0,
    1 << 63,
    1 << 13,
    1 << 19,
    1 << 20,
    1 << 21,
    0xffc0_0000,
    1 << (M - 1) | 1 << 30,
    1 << M,
    0x7ff0_0000_0000_0000,
];

#[test]
fn every_entry_is_what_the_manual_says() {
    let mut cases = 0u64;
    for (layout, has) in (0..LAYOUTS.len()).flat_map(|l| (0..1 << 4).map(move |has| (l, has))) {
        let on = processor(layout, has).expect("a mode that can be");
        for (level, upper) in (1..=5).flat_map(|level| UPPER.map(|upper| (level, upper))) {
            for low in 0..1u64 << 13 {
                cases += u64::from(one_entry(&on, low | upper, level));
            }
        }
    }
    // 32-bit paging has two levels and no bits above 31; the others have 3, 4 and 5.
    assert_eq!(cases, ((2 * 6 + (3 + 4 + 5) * 10) * 16) << 13);
}

/// `cargo kani --tests`: the same for numbers that stand for all, of every bit of the entry.
#[cfg(kani)]
mod proofs {
    #[kani::proof]
    fn one_entry() {
        if let Some(on) = super::processor(kani::any(), kani::any()) {
            super::one_entry(&on, kani::any(), kani::any());
        }
    }
}
