// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Entries against raw words from the figures, and exhaustively against the manual's rules, written down
//! a second time as a table of bit ranges.

use std::vec;
use std::vec::Vec;

use super::*;

const EVERYTHING: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c1);
const WITHOUT_EXECUTE_ONLY: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f3_41c0);
const SMALL_PAGES: EptVpidCap = EptVpidCap::from_msr(0x0f01_06f0_41c1);

fn rules(capability: EptVpidCap, controls: Controls) -> EntryRules {
    EntryRules::new(capability, 46, controls)
}

/// SDM 3C, Figure "Formats of EPTP and EPT Paging-Structure Entries", a line each.
#[test]
fn raw_words_from_the_figure() {
    let r = rules(EVERYTHING, Controls::empty());
    let at = |bits, level| r.classify(EptEntry(bits), level);
    // Tables: bits 8 (A) and 10 (XU, ignored here) and all of 63:52 change nothing.
    for level in 2..=5 {
        assert_eq!(
            at(0x1234_5007, level),
            Ok(Use::Table(0x1234_5000)),
            "level {level}"
        );
        assert_eq!(
            at(0xfff0_0000_1234_5f07, level),
            Ok(Use::Table(0x1234_5000))
        );
        assert_eq!(
            at(0x3fff_ffff_f007, level),
            Ok(Use::Table(0x3fff_ffff_f000))
        );
    }
    // Pages: WB is 6 in bits 5:3, so 0x37; IPAT 0x77; with A and D 0x377.
    assert_eq!(at(0x1234_5037, 1), Ok(Use::Page(0x1234_5000)));
    assert_eq!(
        at(0x1234_53f7, 1),
        Ok(Use::Page(0x1234_5000)),
        "bit 7 is ignored in a PTE"
    );
    assert_eq!(at(0x4020_00b7, 2), Ok(Use::Page(0x4020_0000)));
    assert_eq!(at(0xc000_03f7, 3), Ok(Use::Page(0xc000_0000)));
    // Not present: everything else is ignored.
    for level in 1..=5 {
        assert_eq!(at(!7, level), Ok(Use::Absent));
        assert_eq!(at(0, level), Ok(Use::Absent));
    }
}

#[test]
fn fields_from_raw_words() {
    let entry = EptEntry(0xb600_0000_1234_576d);
    assert_eq!(
        entry.rights(),
        Rights::READ | Rights::EXECUTE | Rights::USER_EXECUTE
    );
    assert_eq!(entry.memory_type(), Some(MemoryType::WriteProtected));
    assert_eq!(entry.pat(), Pat::Ignored);
    assert_eq!(EptEntry(0x12).pat(), Pat::Combined);
    assert!(entry.has(EptEntry::ACCESSED | EptEntry::DIRTY));
    assert!(entry.has(EptEntry::SUPPRESS_VE | EptEntry::SUB_PAGE_WRITE));
    assert!(entry.has(EptEntry::SUPERVISOR_SHADOW_STACK));
    assert!(entry.has(EptEntry::PAGING_WRITE | EptEntry::VERIFY_GUEST_PAGING));
    assert!(!entry.has(EptEntry::LARGE));
    let words = [
        (EptEntry::VERIFY_GUEST_PAGING, 0x0200_0000_0000_0000u64),
        (EptEntry::PAGING_WRITE, 0x0400_0000_0000_0000),
        (EptEntry::SUPERVISOR_SHADOW_STACK, 0x1000_0000_0000_0000),
        (EptEntry::SUB_PAGE_WRITE, 0x2000_0000_0000_0000),
        (EptEntry::SUPPRESS_VE, 0x8000_0000_0000_0000),
        (EptEntry::ACCESSED, 0x100),
        (EptEntry::DIRTY, 0x200),
        (EptEntry::IGNORE_PAT, 0x40),
        (EptEntry::MEMORY_TYPE, 0x38),
        (EptEntry::SOFTWARE, 0x49f0_0000_0000_0800),
    ];
    for (bit, word) in words {
        assert_eq!(bit, word);
    }
}

/// The manual's tables "Format of an EPT ... Entry ...", as text: which bits must be 0, by level and
/// whether the entry maps a page. Independent of the code under test.
fn must_be_zero(level: u8, page: bool) -> Vec<std::ops::RangeInclusive<u32>> {
    match (level, page) {
        (5 | 4, _) => vec![3..=7],
        (3, false) | (2, false) => vec![3..=6],
        (3, true) => vec![12..=29],
        (2, true) => vec![12..=20],
        (1, _) => vec![],
        _ => unreachable!("five levels"),
    }
}

/// "EPT Misconfigurations", sentence by sentence.
fn misconfigured(bits: u64, level: u8, cap: EptVpidCap, controls: Controls, width: u32) -> bool {
    let bit = |n: u32| bits >> n & 1 == 1;
    let mbe = controls.contains(Controls::MODE_BASED_EXECUTE);
    let present = bit(0) || bit(1) || bit(2) || mbe && bit(10);
    let large_allowed = match level {
        2 => cap.bits() >> 16 & 1 == 1,
        3 => cap.bits() >> 17 & 1 == 1,
        _ => false,
    };
    let page = level == 1 || large_allowed && bit(7);
    if !bit(0) {
        if bit(1) {
            return true;
        }
        if cap.bits() & 1 == 0 && (bit(2) || mbe && bit(10)) {
            return true;
        }
        // A not-present entry maps no page.
        if controls.contains(Controls::PAGING_WRITE) && present && page && bit(58) {
            return true;
        }
    }
    if !present {
        return false;
    }
    let mut reserved = must_be_zero(level, page);
    reserved.push(width..=51);
    if (level == 2 || level == 3) && !large_allowed {
        reserved.push(7..=7);
    }
    if reserved.into_iter().any(|mut range| range.any(bit)) {
        return true;
    }
    page && matches!(bits >> 3 & 7, 2 | 3 | 7)
}

fn all_controls() -> impl Iterator<Item = Controls> {
    (0..=Controls::all().bits()).map(Controls::from_bits_truncate)
}

/// All of the low 12 bits, with nothing, something reserved and something ignored above, at each level,
/// under each control that has a say, against the sentences.
#[test]
fn misconfigurations_are_the_manuals() {
    let upper = [
        0u64,
        0x4000_0000, // aligned to 1 GiB
        0x0020_0000, // to 2 MiB only
        0x1000,      // to 4 KiB only
        1 << 45,     // the highest address bit
        1 << 46,     // one too high
        1 << 51,
        1 << 58 | 0x4000_0000, // paging-write
        0xbbf0_0000_0000_0000, // every ignorable high bit but 58
        0xfff0_0000_0000_0000,
    ];
    let mut seen = [0u32; 2];
    for cap in [EVERYTHING, WITHOUT_EXECUTE_ONLY, SMALL_PAGES] {
        for controls in all_controls() {
            // Others have no say: checked by the next test.
            let say = Controls::MODE_BASED_EXECUTE | Controls::PAGING_WRITE;
            if !say.contains(controls) {
                continue;
            }
            let r = rules(cap, controls);
            for level in 1..=5 {
                for high in upper {
                    for low in 0..0x1000 {
                        let bits = high | low;
                        let expected = misconfigured(bits, level, cap, controls, 46);
                        let found = r.classify(EptEntry(bits), level);
                        assert_eq!(
                            found.is_err(),
                            expected,
                            "{bits:#x} level {level}: {found:?}"
                        );
                        seen[usize::from(expected)] += 1;
                    }
                }
            }
        }
    }
    assert!(seen.iter().all(|&n| n > 100_000), "{seen:?}");
}

/// The bits 63:52 under every combination of controls: only 58 can misconfigure, only with its control.
#[test]
fn high_bits_are_ignored_but_for_paging_write() {
    for controls in all_controls() {
        let r = rules(EVERYTHING, controls);
        for level in 1..=5 {
            for high in 0..0x1000u64 {
                for low in [0u64, 0b001, 0b011, 0b100, 0b101, 0b111, 0x400, 0x407] {
                    let bits = high << 52 | low | if level == 1 { 0x30 } else { 0 };
                    let expected = misconfigured(bits, level, EVERYTHING, controls, 46);
                    let found = r.classify(EptEntry(bits), level);
                    assert_eq!(found.is_err(), expected, "{bits:#x} {level} {controls:?}");
                }
            }
        }
    }
}

#[test]
fn each_physical_address_width_reserves_what_is_above() {
    for width in 32..=52 {
        let r = EntryRules::new(EVERYTHING, width, Controls::empty());
        for level in 1..=5 {
            for bit in 30..=51u32 {
                let bits = 1u64 << bit | 0x7 | if level == 1 { 0x30 } else { 0 };
                let found = r.classify(EptEntry(bits), level);
                let reserved = bit >= width;
                let expected = Err(Misconfiguration::Reserved { bits: 1 << bit });
                assert_eq!(
                    found == expected,
                    reserved,
                    "bit {bit}, width {width}: {found:?}"
                );
                assert_eq!(found.is_err(), reserved);
            }
        }
    }
    // Bit 0 of the capability MSR.
    let can =
        |msr| EntryRules::new(EptVpidCap::from_msr(msr), 46, Controls::empty()).execute_only();
    assert!(can(1) && !can(!1));
    let clamp = |bits| EntryRules::new(EVERYTHING, bits, Controls::empty()).physical_bits();
    assert_eq!(
        (clamp(0), clamp(31), clamp(53), clamp(u32::MAX)),
        (32, 32, 52, 52)
    );
}

#[test]
fn each_rule_has_its_name() {
    let all = Controls::all();
    let name = |cap, bits, level| rules(cap, all).classify(EptEntry(bits), level).unwrap_err();
    use Misconfiguration as M;
    assert_eq!(name(EVERYTHING, 0x32, 1), M::WriteWithoutRead);
    assert_eq!(name(EVERYTHING, 0x36, 1), M::WriteWithoutRead);
    assert_eq!(name(WITHOUT_EXECUTE_ONLY, 0x34, 1), M::ExecuteOnly);
    assert_eq!(name(WITHOUT_EXECUTE_ONLY, 0x430, 1), M::ExecuteOnly);
    assert_eq!(
        name(EVERYTHING, 1 << 58 | 0x34, 1),
        M::PagingWriteWithoutRead
    );
    assert_eq!(name(EVERYTHING, 0x17, 1), M::MemoryType(2));
    assert_eq!(name(EVERYTHING, 0x1f, 1), M::MemoryType(3));
    assert_eq!(name(EVERYTHING, 0xbf, 2), M::MemoryType(7));
    assert_eq!(name(EVERYTHING, 0x87, 4), M::Reserved { bits: 0x80 });
    assert_eq!(name(SMALL_PAGES, 0xb7, 2), M::Reserved { bits: 0xb0 });
    assert_eq!(
        name(EVERYTHING, 0x1000_10b7, 3),
        M::Reserved { bits: 0x1000_1000 }
    );
}

#[test]
fn only_enabled_bits_mean_something() {
    let base = 0x7f;
    let bit = |control| match control {
        Controls::MODE_BASED_EXECUTE => 0x400,
        Controls::SUPERVISOR_SHADOW_STACK => 1 << 60,
        Controls::VIOLATION_EXCEPTION => 1 << 63,
        Controls::PAGING_WRITE => 1 << 58,
        Controls::GUEST_PAGING_VERIFICATION => 1 << 57,
        Controls::SUB_PAGE_WRITE => 1 << 61,
        _ => 0,
    };
    for controls in all_controls() {
        let r = rules(EVERYTHING, controls);
        let expected = controls
            .iter()
            .fold(base, |bits, control| bits | bit(control));
        assert_eq!(r.meaningful(1), expected, "{controls:?}");
        assert_eq!(r.meaningful(2), expected & !(1 << 61));
        let user = r.rights(EptEntry(0x400)) == Rights::USER_EXECUTE;
        assert_eq!(user, controls.contains(Controls::MODE_BASED_EXECUTE));
    }
}
