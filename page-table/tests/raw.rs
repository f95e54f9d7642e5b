// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables word by word: what each operation writes, and what the walk reads from words written by hand.

mod formats;

use formats::{Eights, Fours, R, RW, RWX, RX, Rights, Rule};
use hvkit_page_table::fake::{FakeGuest, FakeTables};
use hvkit_page_table::{
    Fault, MapError, Mapper, OwnEntries, Root, Shape, Sizes, Span, Stale, Step, Translation, Upper,
    Width, translate, walk,
};

const E: Width = Width::Eight;
const NX: u64 = 1 << 63;

fn word<F, P>(mapper: &Mapper<F, &FakeTables, P>, table: u64, index: u64) -> u64
where
    F: hvkit_page_table::Encode,
    P: hvkit_page_table::Frames,
{
    mapper.memory().load(table + index * 8, E)
}

/// No store since the checkpoint went into a frame that is still in use.
fn assert_untouched(memory: &FakeTables) {
    let used = memory.frames_in_use();
    let touched = memory
        .journal()
        .into_iter()
        .find(|store| used.contains(&(store.at & !0xfff)));
    assert_eq!(touched, None);
}

/// A 4-level table written by hand: 0x1000 root, 0x2000, 0x3000, 0x4000 leaves.
fn by_hand() -> FakeGuest {
    let memory = FakeGuest::new(0x10_0000);
    memory.set(0x1000 + 8, E, 0x2003); // 512 GiB.. -> level 3
    memory.set(0x2000 + 2 * 8, E, 0x3001); // read-only below
    memory.set(0x2000 + 3 * 8, E, 0x8000_0083); // 1 GiB leaf at 2 GiB
    memory.set(0x3000 + 4 * 8, E, 0x4003);
    memory.set(0x3000 + 5 * 8, E, 0x60_0083 | NX); // 2 MiB leaf
    memory.set(0x4000 + 6 * 8, E, 0x1234_5003); // 4 KiB leaf
    memory
}

const BASE: u64 = 1 << 39;

#[test]
fn the_walk_reads_what_was_written_by_hand() {
    let (format, memory) = (Eights::four_levels(), by_hand());
    let at = BASE | 2 << 30 | 4 << 21 | 6 << 12 | 0x789;
    let seen = walk(&format, &memory, Root::Table(0x1000), at);
    // Level 3 forbids writing, whatever level 1 grants.
    let expected = Translation {
        target: 0x1234_5789,
        level: 1,
        attributes: RX,
    };
    assert_eq!(seen.outcome, Ok(expected));
    let step = |level, at, entry, attributes| Step {
        level,
        at: Some(at),
        entry,
        attributes,
    };
    assert_eq!(
        seen.steps(),
        [
            step(4, 0x1008, 0x2003, Some(RWX)),
            step(3, 0x2010, 0x3001, Some(RX)),
            step(2, 0x3020, 0x4003, Some(RX)),
            step(1, 0x4030, 0x1234_5003, Some(RX)),
        ]
    );
}

#[test]
fn larger_pages_end_the_walk_early() {
    let (format, memory) = (Eights::four_levels(), by_hand());
    let at = BASE | 2 << 30 | 5 << 21 | 0x1f_fedc;
    let seen = walk(&format, &memory, Root::Table(0x1000), at);
    assert_eq!(
        seen.outcome,
        Ok(Translation {
            target: 0x7f_fedc,
            level: 2,
            attributes: R
        })
    );
    assert_eq!(seen.steps().len(), 3);
    let at = BASE | 3 << 30 | 0x3fff_ffff;
    let there = translate(&format, &memory, Root::Table(0x1000), at);
    assert_eq!(
        there,
        Ok(Translation {
            target: 0xbfff_ffff,
            level: 3,
            attributes: RWX
        })
    );
}

#[test]
fn every_fault_says_level_entry_and_rule() {
    let (format, memory) = (Eights::four_levels(), by_hand());
    let go = |at| translate(&format, &memory, Root::Table(0x1000), at).unwrap_err();
    assert_eq!(go(0), Fault::NotPresent { level: 4, entry: 0 });
    assert_eq!(
        go(BASE | 2 << 30 | 4 << 21),
        Fault::NotPresent { level: 1, entry: 0 }
    );
    assert_eq!(go(1 << 48), Fault::Address { address: 1 << 48 });
    memory.set(0x1000, E, 0x83); // a leaf where none can be
    assert_eq!(
        go(0),
        Fault::Malformed {
            level: 4,
            entry: 0x83,
            rule: Rule::LargeNotAllowed
        }
    );
    memory.set(0x1000, E, 1 << 46 | 3);
    let entry = 1 << 46 | 3;
    assert_eq!(
        go(0),
        Fault::Malformed {
            level: 4,
            entry,
            rule: Rule::ReservedAddress
        }
    );
    memory.set(0x1000, E, 0x10_0003); // a table just outside memory
    let fault = go(0x1000 << 18);
    assert!(
        matches!(
            fault,
            Fault::Unreadable {
                level: 3,
                at: 0x10_0008,
                ..
            }
        ),
        "{fault:?}"
    );
    assert_eq!(fault.level(), Some(3));
    assert_eq!(go(1 << 48).level(), None);
}

#[test]
fn a_walk_can_begin_in_registers_or_further_down() {
    let format = Eights::with(Shape::new(12, &[9, 9, 2], 0b11, E, Upper::Zero).unwrap());
    let memory = FakeGuest::new(0x10_0000);
    memory.set(0x3000, E, 0x4003);
    memory.set(0x4000, E, 0x7003);
    let registers = [0, 0, 0x3003];
    let seen = walk(&format, &memory, Root::Registers(&registers), 2 << 30);
    assert_eq!(
        seen.outcome,
        Ok(Translation {
            target: 0x7000,
            level: 1,
            attributes: RWX
        })
    );
    assert_eq!((seen.steps()[0].at, seen.steps()[0].entry), (None, 0x3003));
    let gone = translate(&format, &memory, Root::Registers(&registers), 3 << 30);
    assert_eq!(gone, Err(Fault::NoRootEntry { index: 3 }));

    let inner = Root::Inner {
        table: 0x4000,
        level: 1,
        attributes: R,
    };
    let there = translate(&format, &memory, inner, 2 << 30);
    assert_eq!(
        there,
        Ok(Translation {
            target: 0x7000,
            level: 1,
            attributes: R
        })
    );
}

#[test]
fn four_byte_entries_and_forty_bit_targets() {
    let format = Fours::new();
    let memory = FakeGuest::new(0x10_0000);
    memory.set(0x1000 + 0x303 * 4, Width::Four, 0x2003);
    memory.set(0x2000 + 0x1ef * 4, Width::Four, 0xdead_b001);
    memory.set(0x1000 + 4, Width::Four, 0xffc0_0083 | 0xab << 13);
    let go = |at| translate(&format, &memory, Root::Table(0x1000), at);
    let small = Translation {
        target: 0xdead_b123,
        level: 1,
        attributes: RX,
    };
    assert_eq!(go(0xc0de_f123), Ok(small));
    let large = Translation {
        target: 0xab_ffc1_2345,
        level: 2,
        attributes: RWX,
    };
    assert_eq!(go(0x0041_2345), Ok(large));
}

#[test]
fn map_uses_the_largest_pages_that_fit() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
    // From 2 MiB - 4 KiB to 2 GiB + 4 KiB, to an address that is equal modulo 1 GiB.
    let start = (2 << 20) - 0x1000;
    let end = (2 << 30) + 0x1000;
    mapper.map(start..end, start + (4 << 30), RW).unwrap();
    // Root, level 3, and for each of the two ends a level 2 and a level 1.
    assert_eq!(memory.in_use(), 6);
    let level3 = word(&mapper, mapper.root(), 0) & !0xfff;
    assert_eq!(word(&mapper, level3, 1), (5 << 30) | 0x83 | NX);
    let level2 = word(&mapper, level3, 0) & !0xfff;
    assert_eq!(
        word(&mapper, level2, 1),
        ((4 << 30) + (2 << 20)) | 0x83 | NX
    );
    assert_eq!(
        word(&mapper, level2, 511),
        ((4 << 30) + (511 << 21)) | 0x83 | NX
    );
    let level1 = word(&mapper, level2, 0) & !0xfff;
    assert_eq!(word(&mapper, level1, 510), 0);
    assert_eq!(word(&mapper, level1, 511), ((4 << 30) + 0x1f_f000) | 3 | NX);
    let level2 = word(&mapper, level3, 2) & !0xfff;
    let level1 = word(&mapper, level2, 0) & !0xfff;
    assert_eq!(word(&mapper, level2, 1), 0);
    assert_eq!(
        (word(&mapper, level1, 0), word(&mapper, level1, 1)),
        ((6 << 30) | 3 | NX, 0)
    );
}

#[test]
fn a_split_makes_pages_of_the_level_that_is_asked_for() {
    let levels = |mapper: &Mapper<Eights, &FakeTables, &FakeTables>, pages: &[u64]| -> Vec<u8> {
        let level = |page: &u64| mapper.translate(page * 0x1000).unwrap().level;
        pages.iter().map(level).collect()
    };
    for (to, expected, tables) in [
        (1, [1, 1, 3], 1 + 1 + 4),
        (2, [2, 2, 3], 1 + 1),
        (3, [3, 3, 3], 1),
    ] {
        let memory = FakeTables::new();
        let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
        mapper.map(0..0x20_000, 0x10_0000, RW).unwrap();
        let stale = mapper.split(0..0x10_000, to).unwrap();
        assert_eq!(levels(&mapper, &[0, 15, 16]), expected, "to level {to}");
        assert_eq!(memory.in_use(), tables);
        mapper
            .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
            .unwrap();
    }
}

#[test]
fn a_split_leaves_holes_as_they_are() {
    const SIXTEEN: u64 = 0x10_000;
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    mapper.map(SIXTEEN..2 * SIXTEEN, 0x10_0000, RW).unwrap();
    // A part of the hole before the page, all of the one behind it, and a part of the next.
    let range = 0x1000..3 * SIXTEEN + 0x1000;
    // Frames for the page's five tables, and no more.
    memory.limit(1 + 5);
    memory.checkpoint();
    let stale = mapper.split(range, 1).unwrap();
    assert_eq!(memory.in_use(), 1 + 5);
    assert_eq!(stale.spans(), [Span::new(SIXTEEN, SIXTEEN)]);
    let in_root = |at: u64| at & !0xfff == mapper.root();
    let journal = memory.journal();
    let stores = journal.iter().filter(|store| in_root(store.at));
    assert_eq!(stores.count(), 1, "the link of the page's tables");
    mapper
        .settle(stale, &mut |_: &Stale| Ok::<(), ()>(()))
        .unwrap();
    // No frame is asked for to find that there is no page.
    for (start, length) in [(0x1000, 0x1000), (2 * SIXTEEN, 2 * SIXTEEN)] {
        let refused = mapper.split(start..start + length, 1).unwrap_err();
        assert_eq!(refused, MapError::NothingMapped { start, length });
    }
}

#[test]
fn sizes_forbid_large_pages_and_large_executable_ones() {
    let memory = FakeTables::new();
    let sizes = Sizes {
        largest: 2,
        largest_executable: 1,
    };
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory)
        .unwrap()
        .with_sizes(sizes);
    mapper.map(0..1 << 30, 0, RW).unwrap();
    mapper
        .map(1 << 30..(1 << 30) + (2 << 20), 1 << 30, RX)
        .unwrap();
    assert_eq!(mapper.translate(0x1234).unwrap().level, 2);
    assert_eq!(mapper.translate(1 << 30).unwrap().level, 1);
    // Making a large page executable breaks it.
    let stale = mapper.protect(2 << 20..4 << 20, |_| RX).unwrap();
    assert_eq!(mapper.translate(2 << 20).unwrap().level, 1);
    assert_eq!(mapper.translate(4 << 20).unwrap().level, 2);
    assert!(stale.tables());
    mapper.settle(stale, &mut |_: &_| Ok::<(), ()>(())).unwrap();
}

/// The limit is for all that later operations make, also beside the range of the one that cuts a page.
#[test]
fn what_is_left_of_a_cut_page_keeps_to_the_limit_on_sizes() {
    const GIB: u64 = 1 << 30;
    let (large, executable) = (2 << 20, 1 << 12);
    let limits = Sizes {
        largest: 2,
        largest_executable: 1,
    };
    for (rights, sizes, left) in [
        (RX, limits, executable),
        (RW, limits, large),
        (RW, Sizes::SMALLEST, 1 << 12),
        (RX, Sizes::ANY, large),
    ] {
        let memory = FakeTables::new();
        let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
        mapper.map(0..2 * GIB, 0, rights).unwrap();
        mapper.set_sizes(sizes);
        let stale = mapper.unmap(GIB - 0x1000..GIB).unwrap();
        mapper.settle(stale, &mut |_: &_| Ok::<(), ()>(())).unwrap();
        let size = |address| 1 << (3 + 9 * mapper.translate(address).unwrap().level);
        assert_eq!((size(0), size(GIB - (4 << 20))), (left, left));
        assert_eq!(size(GIB - 0x2000), 1 << 12);
        assert_eq!(size(GIB), GIB, "what is mapped stays as it is");
        assert!(mapper.translate(GIB - 0x1000).is_err());
    }
    // The level that pages are split to is no limit beside them.
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
    mapper.map(0..GIB, 0, RX).unwrap();
    let stale = mapper.split(0..0x1000, 1).unwrap();
    mapper.settle(stale, &mut |_: &_| Ok::<(), ()>(())).unwrap();
    assert_eq!(mapper.translate(GIB - 0x1000).unwrap().level, 2);
}

#[test]
fn forty_bit_targets_only_in_pages_that_hold_them() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Fours::new(), &memory, &memory).unwrap();
    mapper.map(0..8 << 20, 0xff_ff80_0000, RWX).unwrap();
    assert_eq!(
        memory.load(mapper.root() + 4, Width::Four),
        0xffc0_0000 | 0xff << 13 | 0x83
    );
    let refused = mapper.map(16 << 20..(16 << 20) + 0x1000, 1 << 32, RWX);
    let target = (1 << 32) + 0xfff;
    assert_eq!(refused, Err(MapError::TargetTooWide { target, bits: 32 }));
}

#[test]
fn an_absent_entry_may_be_other_than_zero() {
    const EMPTY: u64 = 1 << 62;
    let memory = FakeTables::new();
    let format = Eights {
        empty: EMPTY,
        ..Eights::four_levels()
    };
    let mut mapper = Mapper::new(format, &memory, &memory).unwrap();
    mapper.map(0..0x1000, 0x5000, RWX).unwrap();
    let stale = mapper.unmap(0..0x1000).unwrap();
    for step in mapper.walk(0).steps() {
        let table = step.at.unwrap() & !0xfff;
        assert_eq!(word(&mapper, table, 511), EMPTY, "level {}", step.level);
    }
    assert_eq!(mapper.walk(0).steps()[3].entry, EMPTY);
    mapper.settle(stale, &mut |_: &_| Ok::<(), ()>(())).unwrap();
}

#[test]
fn canonical_addresses_up_to_the_very_last() {
    let memory = FakeTables::new();
    let format = Eights::with(Shape::nines(4, 0b111, Upper::SignExtended).unwrap());
    let mut mapper = Mapper::new(format, &memory, &memory).unwrap();
    let top = Span::new(0xffff_ffff_ffff_f000, 0x1000);
    mapper.map(top, 0x5000, RWX).unwrap();
    assert_eq!(mapper.translate(u64::MAX).unwrap().target, 0x5fff);
    assert_eq!(word(&mapper, mapper.root(), 511) & 0xfff, 3);
    let across = Span::new(0x7fff_ffff_f000, 0x2000);
    let refused = mapper.map(across, 0x5000, RWX);
    let expected = MapError::OutOfReach {
        start: across.start,
        length: 0x2000,
        bits: 48,
    };
    assert_eq!(refused, Err(expected));
    let stale = mapper.unmap(top).unwrap();
    assert_eq!(stale.spans(), [top]);
    mapper.settle(stale, &mut |_: &_| Ok::<(), ()>(())).unwrap();
}

#[test]
fn bad_input_is_named_and_changes_nothing() {
    let memory = FakeTables::new();
    let format = Eights {
        wx: false,
        ..Eights::four_levels()
    };
    let mut mapper = Mapper::new(format, &memory, &memory).unwrap();
    mapper.map(0x40_0000..0x60_0000, 0x40_0000, RW).unwrap();
    memory.checkpoint();
    let reach = 1u64 << 48;
    let mut refuse = |span: Span, target, rights: Rights| {
        let refused = mapper.map(span, target, rights).unwrap_err();
        assert_untouched(&memory);
        refused
    };
    let granule = 0x1000;
    assert_eq!(
        refuse(Span::new(0, 0), 0, R),
        MapError::EmptyRange { start: 0 }
    );
    let unaligned = |value| MapError::Unaligned { value, granule };
    assert_eq!(refuse(Span::new(1, 0x1000), 0, R), unaligned(1));
    assert_eq!(refuse(Span::new(0, 0x1001), 0, R), unaligned(0x1001));
    assert_eq!(refuse(Span::new(0x800, 0x800), 0, R), unaligned(0x800));
    assert_eq!(refuse(Span::new(0, 0x1000), 0x800, R), unaligned(0x800));
    let out = |start, length| MapError::OutOfReach {
        start,
        length,
        bits: 48,
    };
    for (start, length) in [
        (reach, 0x1000),
        (reach - 0x1000, 0x2000),
        (0, reach + 0x1000),
        (!0xfff, 0x2000),
    ] {
        assert_eq!(refuse(Span::new(start, length), 0, R), out(start, length));
    }
    let wide = |target| MapError::TargetTooWide { target, bits: 46 };
    assert_eq!(
        refuse(Span::new(0, 0x1000), 1 << 46, R),
        wide((1 << 46) + 0xfff)
    );
    assert_eq!(
        refuse(Span::new(0, 0x2000), (1 << 46) - 0x1000, R),
        wide((1 << 46) + 0xfff)
    );
    assert_eq!(refuse(Span::new(0, 0x2000), !0xfff, R), wide(u64::MAX));
    // The last of all addresses: one past it would be 0.
    assert_eq!(refuse(Span::new(0, 0x1000), !0xfff, R), wide(u64::MAX));
    let rule = Rule::WriteAndExecute;
    let unsupported = MapError::Unsupported {
        attributes: RWX,
        level: 1,
        rule,
    };
    assert_eq!(refuse(Span::new(0, 0x1000), 0, RWX), unsupported);
    let overlap = MapError::Overlap {
        address: 0x5f_f000,
        level: 2,
        entry: 0x40_0083 | NX,
    };
    assert_eq!(refuse(Span::new(0x5f_f000, 0x2000), 0, R), overlap);
    assert_eq!(memory.in_use(), 3);

    let nothing = MapError::NothingMapped {
        start: 0x1000,
        length: 0x1000,
    };
    assert_eq!(mapper.unmap(0x1000..0x2000).unwrap_err(), nothing);
    assert_eq!(mapper.protect(0x1000..0x2000, |_| R).unwrap_err(), nothing);
    assert_eq!(mapper.split(0x1000..0x2000, 1).unwrap_err(), nothing);
    let level = MapError::NoSuchLevel { level: 4 };
    assert_eq!(mapper.split(0x40_0000..0x60_0000, 4).unwrap_err(), level);
    assert_untouched(&memory);
}

#[test]
fn a_corrupt_table_of_our_own_is_an_error() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory).unwrap();
    memory.tamper(mapper.root(), E, 0x83);
    let rule = Some(Rule::LargeNotAllowed);
    let corrupt = MapError::Corrupt {
        address: 0x3000,
        level: 4,
        entry: 0x83,
        rule,
    };
    assert_eq!(mapper.map(0x3000..0x4000, 0, RW), Err(corrupt));
    assert_eq!(mapper.unmap(0x3000..0x4000).unwrap_err(), corrupt);
}

#[test]
fn a_corrupt_slot_that_a_merge_meets_is_named_by_its_address() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::four_levels(), &memory, &memory)
        .unwrap()
        .with_sizes(Sizes::SMALLEST);
    const GIB: u64 = 1 << 30;
    mapper.map(GIB..GIB + (4 << 20), 0, RW).unwrap();
    mapper.set_sizes(Sizes::ANY);
    // The second of the leaf tables makes way for a large page that is not aligned.
    let slot = mapper.walk(GIB + (2 << 20)).steps()[2].at.unwrap();
    let was = memory.load(slot, E);
    let bad = 0x1083;
    memory.tamper(slot, E, bad);
    let corrupt = MapError::Corrupt {
        address: GIB + (2 << 20),
        level: 2,
        entry: bad,
        rule: Some(Rule::Misaligned),
    };
    assert_eq!(mapper.merge(GIB..2 * GIB).unwrap_err(), corrupt);
    // The leaf table is there again, and its entry 5 is beyond the width of addresses.
    memory.tamper(slot, E, was);
    let bad = 1 << 46 | 1;
    memory.tamper((was & !0xfff) + 5 * 8, E, bad);
    let corrupt = MapError::Corrupt {
        address: GIB + (2 << 20) + 0x5000,
        level: 1,
        entry: bad,
        rule: Some(Rule::ReservedAddress),
    };
    assert_eq!(mapper.merge(GIB..2 * GIB).unwrap_err(), corrupt);
}
