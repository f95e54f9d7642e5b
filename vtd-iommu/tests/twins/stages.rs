// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries of both stages at each level.

use hvkit_page_table::{Entry, Format};
use hvkit_vtd_iommu::tables::{
    FirstStage, FirstStageRule, LargePages, SecondStage, SecondStageRule,
};

use crate::each_word;

const HOST_BITS: u32 = 46;
/// Bits 51:46, which an address on this host does not have.
const TOO_WIDE: u64 = 0x000f_c000_0000_0000;
/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const fn bit(word: u64, at: u32) -> bool {
    word >> at & 1 != 0
}

/// Address bits below a page of `level`: reserved in entries that map one.
fn below_size(level: u8) -> u64 {
    match level {
        1 => 0,
        2 => 0x001f_f000,
        _ => 0x3fff_f000,
    }
}

/// A second-stage entry on a unit with 2-MiB pages, 1-GiB pages, snoop control and device-TLBs as the bits of `unit` say.
///
/// "Second-Stage Paging Entries": R 0, W 1, ignored 6:2 (of pages EMT, IPAT), PS 7 (ignored in SS-PTE, reserved in
/// SS-PML4E and above), A 8, D 9, SNP 11 (pages; reserved without ECAP.SC and in tables), address 51:12, ignored 61:52,
/// TM 62 (pages; reserved without ECAP.DT and in tables), ignored 63.
fn second(entry: u64, level: u8, unit: u8) {
    let [two, one, snoop, tlb] = [0, 1, 2, 3].map(|at| bit(unit.into(), at));
    let mut format = SecondStage::new(5, HOST_BITS)
        .unwrap()
        .with_large_pages(LargePages::from_bits_truncate(unit & 3));
    if snoop {
        format = format.with_snoop_control();
    }
    if tlb {
        format = format.with_transient();
    }
    let page = level == 1 || bit(entry, 7) && (level == 2 && two || level == 3 && one);
    let mut reserved = TOO_WIDE;
    if page {
        reserved |= below_size(level);
        reserved |= if snoop { 0 } else { 1 << 11 };
        reserved |= if tlb { 0 } else { 1 << 62 };
    } else {
        reserved |= 1 << 7 | 1 << 11 | 1 << 62;
    }
    let bits = entry & reserved;
    let rights = (bit(entry, 0), bit(entry, 1));
    match format.decode(entry, level) {
        Entry::Empty => assert_eq!(rights, (false, false)),
        _ if rights == (false, false) => panic!("{entry:#x} is not present"),
        Entry::Malformed(rule) => {
            assert_ne!(bits, 0);
            assert_eq!(rule, SecondStageRule::Reserved { bits });
        }
        Entry::Table { frame, attributes } => {
            assert_eq!((bits, page, frame), (0, false, entry & ADDRESS));
            assert_eq!((attributes.reads(), attributes.writes()), rights);
        }
        Entry::Leaf { target, attributes } => {
            assert_eq!((bits, page, target), (0, true, entry & ADDRESS));
            assert_eq!((attributes.reads(), attributes.writes()), rights);
            assert_eq!(attributes.snoops(), bit(entry, 11));
            assert_eq!(u64::from(attributes.software()), entry >> 52 & 0x3ff);
        }
    }
}

/// A first-stage entry on a unit with 1-GiB pages (bit 0 of `unit`), under a PASID entry with NXE (bit 1).
///
/// "First-Stage Paging Entries": P 0, R/W 1, U/S 2, PWT 3, PCD 4, A 5, D 6 (pages), PS 7 (PAT in FS-PTE, reserved in
/// FS-PML4E and above), G 8 (pages), EA 10, PAT 12 of large pages, address 51:12, ignored 62:52, XD 63 (reserved without
/// NXE).
fn first(entry: u64, level: u8, unit: u8) {
    let [one, no_execute] = [0, 1].map(|at| bit(unit.into(), at));
    let mut format = FirstStage::new(5, HOST_BITS).unwrap();
    if one {
        format = format.with_one_gib();
    }
    if no_execute {
        format = format.with_no_execute();
    }
    let page = level == 1 || bit(entry, 7) && (level == 2 || level == 3 && one);
    let mut reserved = TOO_WIDE | if no_execute { 0 } else { 1 << 63 };
    if page {
        // Bit 12 of a large page is PAT.
        reserved |= below_size(level) & !(1 << 12);
    } else {
        reserved |= 1 << 7;
    }
    let bits = entry & reserved;
    match format.decode(entry, level) {
        Entry::Empty => assert!(!bit(entry, 0)),
        _ if !bit(entry, 0) => panic!("{entry:#x} is not present"),
        Entry::Malformed(rule) => {
            assert_ne!(bits, 0);
            assert_eq!(rule, FirstStageRule::Reserved { bits });
        }
        Entry::Table { frame, attributes } => {
            assert_eq!((bits, page, frame), (0, false, entry & ADDRESS));
            assert_eq!(attributes.writes(), bit(entry, 1));
            assert_eq!(attributes.user(), bit(entry, 2));
            assert_eq!(attributes.executes(), !bit(entry, 63));
        }
        Entry::Leaf { target, attributes } => {
            assert_eq!((bits, page), (0, true));
            assert_eq!(target, entry & ADDRESS & !below_size(level));
            assert_eq!(attributes.writes(), bit(entry, 1));
            assert_eq!(attributes.user(), bit(entry, 2));
            assert_eq!(attributes.executes(), !bit(entry, 63));
        }
    }
}

#[test]
fn second_stage_entries() {
    for level in 1..=5 {
        for unit in 0..16 {
            each_word(|entry| second(entry, level, unit));
        }
    }
}

#[test]
fn first_stage_entries() {
    for level in 1..=5 {
        for unit in 0..4 {
            each_word(|entry| first(entry, level, unit));
        }
    }
}

/// The host's width is where the reserved bits begin, whatever it is.
#[test]
fn every_width() {
    for bits in 30..=52 {
        let second = SecondStage::new(3, bits).unwrap();
        let first = FirstStage::new(4, bits).unwrap();
        for at in 12..52 {
            let expected = if at >= bits { 1 << at } else { 0 };
            assert_eq!(second.reserved(1 << at | 3, 1), expected);
            assert_eq!(first.reserved(1 << at | 3, 1), expected);
        }
    }
}

#[cfg(kani)]
mod proofs {
    #[kani::proof]
    fn second() {
        let level = kani::any();
        kani::assume(1 <= level && level <= 5);
        super::second(kani::any(), level, kani::any());
    }
    #[kani::proof]
    fn first() {
        let level = kani::any();
        kani::assume(1 <= level && level <= 5);
        super::first(kani::any(), level, kani::any());
    }
}
