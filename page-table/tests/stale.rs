// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The token: frames come back only after an invalidation, a lost token leaks, tokens merge.

mod formats;

use std::sync::Mutex;

use formats::{Eights, R, RW};
use hvkit_page_table::fake::FakeTables;
use hvkit_page_table::stale::SPANS;
use hvkit_page_table::{
    Cause, MapError, Mapper, Shape, Sizes, Span, Stale, Unsettled, Upper, leaked,
};

type Tiny<'a> = Mapper<Eights, &'a FakeTables, &'a FakeTables>;

const PAGE: u64 = 0x1000;
/// Tests that lose tokens, or count lost ones, take turns.
static COUNTING: Mutex<()> = Mutex::new(());

fn tiny(memory: &FakeTables) -> Tiny<'_> {
    Mapper::new(Eights::tiny(), memory, memory)
        .unwrap()
        .with_sizes(Sizes::SMALLEST)
}

fn done(_: &Stale) -> Result<(), ()> {
    Ok(())
}

#[test]
fn frames_return_only_after_the_invalidation() {
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..64 * PAGE, 0x10_0000, RW).unwrap();
    assert_eq!(memory.in_use(), 1 + 4 + 16);
    let stale = mapper.unmap(0..64 * PAGE).unwrap();
    assert_eq!(memory.in_use(), 1 + 4 + 16, "hardware may still read them");
    let mut asked = 0;
    let refusal = mapper.settle(stale, &mut |stale: &Stale| {
        asked += 1;
        assert_eq!(
            memory.in_use(),
            21,
            "not freed before the invalidation is over"
        );
        assert_eq!(stale.spans(), [Span::new(0, 64 * PAGE)]);
        assert!(stale.tables());
        Err("busy")
    });
    let Err(Unsettled { stale, cause }) = refusal else {
        panic!("it failed")
    };
    assert_eq!(
        (cause, memory.in_use(), asked),
        (Cause::Failed("busy"), 21, 1)
    );
    mapper.settle(stale, &mut done).unwrap();
    assert_eq!(memory.in_use(), 1);
}

/// Tables that were unlinked are linked through entries that are not present. What a format has in such an entry (EPT's suppress #VE, bit 63) is no
/// part of the next table's address.
#[test]
fn tables_are_found_again_where_an_absent_entry_has_bits_of_its_own() {
    let memory = FakeTables::new();
    let format = Eights {
        empty: 1 << 63,
        ..Eights::tiny()
    };
    let mut mapper = Mapper::new(format, &memory, &memory)
        .unwrap()
        .with_sizes(Sizes::SMALLEST);
    mapper.map(0..64 * PAGE, 0x10_0000, RW).unwrap();
    let stale = mapper.unmap(0..64 * PAGE).unwrap();
    assert_eq!(memory.in_use(), 1 + 4 + 16);
    mapper.settle(stale, &mut done).unwrap();
    assert_eq!(memory.in_use(), 1);
}

#[test]
fn a_lost_token_leaks_and_is_counted() {
    let _turn = COUNTING.lock();
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..16 * PAGE, 0x10_0000, RW).unwrap();
    let before = leaked();
    let used = memory.in_use();
    drop(mapper.unmap(0..16 * PAGE).unwrap());
    assert_eq!((leaked() - before, memory.in_use()), (1, used));
    // One that owes nothing may go.
    drop(mapper.nothing_stale());
    assert_eq!(leaked() - before, 1);
    // Even by a panic, and without another.
    mapper.map(0..PAGE, 0, RW).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _stale = mapper.unmap(0..PAGE).unwrap();
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(leaked() - before, 2);
}

#[test]
fn many_unmaps_one_flush() {
    let _turn = COUNTING.lock();
    let before = leaked();
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..64 * PAGE, 0x10_0000, RW).unwrap();
    let mut all = mapper.nothing_stale();
    // Whole leaf tables, a whole level 2 table, single pages: in no order.
    for (lo, hi) in [
        (8, 12),
        (16, 32),
        (0, 4),
        (61, 62),
        (32, 36),
        (4, 8),
        (40, 44),
    ] {
        let stale = mapper.unmap(lo * PAGE..hi * PAGE).unwrap();
        mapper.merge_stale(&mut all, stale).unwrap();
    }
    assert!(all.spans().len() <= SPANS);
    for page in [8, 16, 31, 0, 61, 32, 4, 43] {
        assert!(
            all.spans().iter().any(|span| span.contains(page * PAGE)),
            "page {page}"
        );
    }
    assert_eq!(memory.in_use(), 21);
    // The unmapped may be mapped again before the token is settled.
    mapper.map(0..2 * PAGE, 0x70_0000, R).unwrap();
    assert_eq!(memory.in_use(), 22);
    let mut asked = 0;
    mapper
        .settle(all, &mut |_: &Stale| {
            asked += 1;
            Ok::<(), ()>(())
        })
        .unwrap();
    // Of 22, five leaf tables and a level 2 table with its four went.
    assert_eq!((asked, memory.in_use()), (1, 22 - 5 - 5));
    assert_eq!(mapper.translate(0).unwrap().target, 0x70_0000);
    assert_eq!(
        mapper.translate(36 * PAGE).unwrap().target,
        0x10_0000 + 36 * PAGE
    );
    assert_eq!(leaked(), before);
}

#[test]
fn spans_that_are_apart_stay_apart_while_there_is_room() {
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..64 * PAGE, 0x10_0000, RW).unwrap();
    let mut all = mapper.nothing_stale();
    let mut take = |mapper: &mut Tiny<'_>, page: u64| {
        let stale = mapper.unmap(page * PAGE..(page + 1) * PAGE).unwrap();
        mapper.merge_stale(&mut all, stale).unwrap();
        all.spans().to_vec()
    };
    let one = |page: u64| Span::new(page * PAGE, PAGE);
    take(&mut mapper, 60);
    take(&mut mapper, 3);
    assert_eq!(take(&mut mapper, 30), [one(60), one(3), one(30)]);
    // What touches one that is there is no new one.
    assert_eq!(
        take(&mut mapper, 2),
        [one(60), Span::new(2 * PAGE, 2 * PAGE), one(30)]
    );
    // And the nearest has to reach further when there is no more room.
    let spans = take(&mut mapper, 34);
    assert_eq!(spans[2], Span::new(30 * PAGE, 5 * PAGE));
    mapper.settle(all, &mut done).unwrap();
}

#[test]
fn all_of_a_canonical_space_is_forgotten_before_its_table_is_freed() {
    let memory = FakeTables::new();
    let format = Eights::with(Shape::nines(4, 0b111, Upper::SignExtended).unwrap());
    let mapper = Mapper::new(format, &memory, &memory).unwrap();
    let (low, high) = (
        Span::new(0, 1 << 47),
        Span::new(0xffff_8000_0000_0000, 1 << 47),
    );
    mapper
        .destroy(&mut |stale: &Stale| {
            assert_eq!(stale.spans(), [low, high]);
            Ok::<(), ()>(())
        })
        .unwrap();
    assert_eq!(memory.in_use(), 0);
}

/// A span has no way round the end of the address space: `last` stops there, and so does who invalidates up to it.
#[test]
fn the_last_page_of_all_and_page_0_are_both_named() {
    let memory = FakeTables::new();
    let format = Eights::with(Shape::nines(4, 0b111, Upper::SignExtended).unwrap());
    let mut mapper = Mapper::new(format, &memory, &memory).unwrap();
    let (top, zero) = (Span::new(0xffff_ffff_ffff_f000, PAGE), Span::new(0, PAGE));
    for (first, second) in [(top, zero), (zero, top)] {
        mapper.map(top, 0x10_0000, RW).unwrap();
        mapper.map(zero, 0x20_0000, RW).unwrap();
        let mut all = mapper.unmap(first).unwrap();
        let other = mapper.unmap(second).unwrap();
        mapper.merge_stale(&mut all, other).unwrap();
        assert_eq!(all.spans(), [first, second]);
        mapper.settle(all, &mut done).unwrap();
    }
}

#[test]
fn a_token_of_another_table_is_refused() {
    let memory = FakeTables::new();
    let (mut one, two) = (tiny(&memory), tiny(&memory));
    one.map(0..PAGE, 0, RW).unwrap();
    let stale = one.unmap(0..PAGE).unwrap();
    let root = one.root();
    let Err(Unsettled { stale, cause }) = two.settle(stale, &mut done) else {
        panic!()
    };
    assert_eq!(cause, Cause::Foreign { root });
    let mut other = two.nothing_stale();
    let Err(Unsettled { stale, cause }) = two.merge_stale(&mut other, stale) else {
        panic!()
    };
    assert_eq!(cause, Cause::Foreign { root });
    let Err(Unsettled { stale, cause }) = one.merge_stale(&mut other, stale) else {
        panic!()
    };
    assert_eq!(cause, Cause::Foreign { root: two.root() });
    one.settle(stale, &mut done).unwrap();
}

#[test]
fn leaf_changes_leave_tables_alone() {
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..2 * PAGE, 0, RW).unwrap();
    let stale = mapper.protect(0..PAGE, |_| R).unwrap();
    assert!(!stale.tables() && !stale.is_empty());
    mapper.settle(stale, &mut done).unwrap();
    // The same rights again: nothing owed, nobody asked.
    let stale = mapper.protect(0..PAGE, |_| R).unwrap();
    assert!(stale.is_empty());
    mapper
        .settle(stale, &mut |_: &Stale| -> Result<(), ()> { unreachable!() })
        .unwrap();
    let stale = mapper.unmap(0..PAGE).unwrap();
    assert!(!stale.tables());
    mapper.settle(stale, &mut done).unwrap();
}

#[test]
fn cutting_a_large_page_owes_all_of_it() {
    let memory = FakeTables::new();
    let mut mapper = Mapper::new(Eights::tiny(), &memory, &memory).unwrap();
    mapper.map(0..16 * PAGE, 0x10_0000, RW).unwrap();
    let stale = mapper.unmap(PAGE..2 * PAGE).unwrap();
    // A processor may hold the large translation, and use it for any page of it.
    assert_eq!(stale.spans(), [Span::new(0, 16 * PAGE)]);
    assert!(stale.tables());
    mapper.settle(stale, &mut done).unwrap();
}

#[test]
fn destroy_gives_the_mapper_back_if_hardware_will_not_forget() {
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..64 * PAGE, 0, RW).unwrap();
    let Err((mapper, "no")) = mapper.destroy(&mut |stale: &Stale| {
        assert_eq!(stale.spans(), [Span::new(0, 64 * PAGE)]);
        Err("no")
    }) else {
        panic!("refused")
    };
    assert_eq!(memory.in_use(), 21);
    assert_eq!(mapper.translate(0).unwrap().target, 0);
    mapper.destroy(&mut done).unwrap();
    assert_eq!(memory.in_use(), 0);
}

#[test]
fn freed_frames_are_never_walked() {
    // Hardware with a stale upper entry reads a detached table until the flush: what it finds there
    // must still be nothing but holes and the old pages.
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..64 * PAGE, 0x10_0000, RW).unwrap();
    let old: Vec<_> = (0..64)
        .map(|page| *mapper.walk(page * PAGE).steps().last().unwrap())
        .collect();
    let mut all = mapper.nothing_stale();
    for block in 0..16 {
        let stale = mapper
            .unmap(block * 4 * PAGE..(block + 1) * 4 * PAGE)
            .unwrap();
        mapper.merge_stale(&mut all, stale).unwrap();
    }
    for step in old {
        let now = memory.words();
        let entry = hvkit_page_table::ReadEntry::read(
            &now,
            step.at.unwrap(),
            hvkit_page_table::Width::Eight,
        );
        let entry = entry.unwrap();
        assert!(
            entry == step.entry || entry & 1 == 0,
            "{entry:#x} where {:#x} was",
            step.entry
        );
    }
    mapper.settle(all, &mut done).unwrap();
    assert_eq!(memory.in_use(), 5);
}

/// Also where the page's table is there and is remembered: an address inside a page is nobody's entry.
#[test]
fn a_page_that_is_not_aligned_is_refused() {
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    mapper.map(0..PAGE, 0x10_0000, RW).unwrap();
    let unaligned = PAGE + 0x800..2 * PAGE + 0x800;
    mapper
        .map(unaligned.clone(), 0x20_0000, RW)
        .expect_err("half of two pages");
    assert!(mapper.translate(PAGE).is_err() && mapper.translate(2 * PAGE).is_err());
    mapper.unmap(0x800..PAGE + 0x800).expect_err("the same");
    assert!(mapper.translate(0).is_ok());
    mapper.map(PAGE..2 * PAGE, 0x20_0000, RW).unwrap();
}

/// The address that passes the width is named, of several pages in a table that is to be made.
#[test]
fn a_target_that_is_too_wide_is_named_by_its_last_byte() {
    let memory = FakeTables::new();
    let mut mapper = tiny(&memory);
    let refused = mapper.map(0..3 * PAGE, (1 << 46) - 2 * PAGE, RW);
    let Err(MapError::TargetTooWide { target, bits }) = refused else {
        panic!("46 bits hold two of the three pages: {refused:?}");
    };
    assert_eq!((target, bits), ((1 << 46) + PAGE - 1, 46));
    assert_eq!(memory.in_use(), 1);
}
