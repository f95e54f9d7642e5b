// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guards, unsync tables, floods, roles, prefetch, reclaim.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Doing, Instruction, Outcome};
use hvkit_shadow_paging::mmu::{Tuning, Unsync};

use crate::support::{
    DIRECTORY, KERNEL_WRITE, LINEAR, OTHER_ROOT, PAGES, PDPT, ROOT, TABLE, USED, board, faults,
    load, store, unstarted,
};

#[test]
fn flags_are_set_as_the_guest_uses_its_pages() {
    let mut board = board();
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(0));
    assert_eq!(board.get(TABLE, Width::Eight), PAGES | 0x27);
    assert_eq!(board.get(DIRECTORY, Width::Eight), TABLE | 0x27);
    assert_eq!(board.get(PDPT, Width::Eight), DIRECTORY | 0x27);
    assert_eq!(store(&mut board, LINEAR, 5), Outcome::Done(0));
    assert_eq!(board.get(TABLE, Width::Eight), PAGES | 0x67);
    assert_eq!(
        board.get(TABLE + 8, Width::Eight),
        PAGES + 0x1007,
        "not this one"
    );
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(5));
    board.audit();
}

#[test]
fn a_page_table_is_written_unseen_until_the_guest_invalidates() {
    let mut board = board();
    store(&mut board, LINEAR, 1);
    load(&mut board, LINEAR + 0x1000);
    // The first write makes the table unsync; the others are not even seen.
    let seen = faults(&mut board, |board| {
        for page in 0..16 {
            board.edit(
                TABLE + page * 8,
                Width::Eight,
                (PAGES + 0x2_0000 + (page << 12)) | USED,
            );
        }
    });
    assert!(seen <= 2, "{seen} faults");
    assert_eq!(board.emulated, 0);
    let audit = board.audit();
    assert_eq!(audit.stale, 2, "as in a TLB");
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(1), "the old page");
    board.intercept(Instruction::Invlpg(LINEAR));
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(0), "the new page");
    assert_eq!(board.audit().stale, 1, "the other address was not named");
    board.intercept(Instruction::Cr3(ROOT));
    assert_eq!(board.audit().stale, 0);
}

#[test]
fn a_page_that_may_no_longer_be_written_can_be_read_without_a_fault() {
    let mut board = board();
    store(&mut board, LINEAR, 1);
    board.edit(TABLE, Width::Eight, PAGES | USED & !2);
    board.intercept(Instruction::Invlpg(LINEAR));
    let taken = faults(&mut board, |board| {
        assert_eq!(load(board, LINEAR), Outcome::Done(1));
    });
    assert_eq!(taken, 0);
    assert!(matches!(store(&mut board, LINEAR, 2), Outcome::Fault(_)));
}

#[test]
fn a_table_that_is_left_alone_is_guarded_again() {
    let mut board = board();
    load(&mut board, LINEAR);
    board.edit(TABLE + 8, Width::Eight, 0);
    assert!(board.audit().unsync > 0);
    board.intercept(Instruction::Cr3(ROOT));
    board.intercept(Instruction::Cr3(ROOT));
    assert_eq!(board.audit().unsync, 0);
    // And its next write is seen.
    assert!(
        faults(&mut board, |board| {
            board.edit(TABLE + 8, Width::Eight, 0);
        }) > 0
    );
}

#[test]
fn an_upper_table_is_written_by_emulation_and_takes_effect_at_once() {
    let mut board = board();
    store(&mut board, LINEAR, 1);
    board.set(0x9000, Width::Eight, (PAGES + 0x3000) | USED);
    board.edit(DIRECTORY, Width::Eight, 0x9000 | USED);
    assert_eq!(board.emulated, 1);
    board.audit();
    assert_eq!(
        load(&mut board, LINEAR),
        Outcome::Done(0),
        "by the other table"
    );
    board.edit(DIRECTORY, Width::Eight, 0);
    assert!(matches!(load(&mut board, LINEAR), Outcome::Fault(_)));
}

#[test]
fn without_unsync_each_write_is_emulated_until_it_floods() {
    let mut board = unstarted(64);
    board.tune(Tuning {
        unsync: Unsync::Never,
        flood: 3,
        ..Tuning::default()
    });
    board.start(crate::support::registers());
    load(&mut board, LINEAR);
    for page in 0..16 {
        board.edit(
            TABLE + page * 8,
            Width::Eight,
            (PAGES + (page << 12)) | USED,
        );
    }
    assert_eq!(board.emulated, 2, "the third write made it memory");
    board.audit();
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(0));
}

#[test]
fn a_root_that_is_known_is_not_built_again() {
    let mut board = board();
    for page in 0..32 {
        load(&mut board, LINEAR + (page << 12));
    }
    let tables = board.mmu().usage().tables;
    board.intercept(Instruction::Cr3(OTHER_ROOT));
    load(&mut board, LINEAR);
    assert_eq!(
        board.mmu().usage().tables,
        tables + 1,
        "all below the root is shared"
    );
    let again = faults(&mut board, |board| {
        for round in 0..20 {
            board.intercept(Instruction::Cr3(if round % 2 == 0 {
                ROOT
            } else {
                OTHER_ROOT
            }));
            for page in 0..32 {
                load(board, LINEAR + (page << 12));
            }
        }
    });
    assert_eq!(again, 0);
    board.audit();
}

#[test]
fn tables_under_other_rights_have_shadows_of_their_own() {
    let mut board = board();
    // The same directory once more, for supervisors only.
    board.set(PDPT + 8, Width::Eight, DIRECTORY | 3);
    load(&mut board, LINEAR);
    let tables = board.mmu().usage().tables;
    let alias = LINEAR + 0x4000_0000;
    assert!(matches!(load(&mut board, alias), Outcome::Fault(_)));
    assert_eq!(
        board.access(alias, KERNEL_WRITE, Doing::Store(3)),
        Outcome::Done(0)
    );
    assert_eq!(
        board.mmu().usage().tables,
        tables + 2,
        "directory and table"
    );
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(3));
    board.audit();
}

#[test]
fn neighbours_that_the_guest_has_used_are_mapped_with_a_page() {
    let mut board = board();
    for page in 0..16 {
        board.set(
            TABLE + page * 8,
            Width::Eight,
            (PAGES + (page << 12)) | if page < 12 { USED } else { 7 },
        );
    }
    let all = |board: &mut hvkit_shadow_paging::fake::Board| {
        for page in 0..16 {
            load(board, LINEAR + (page << 12));
        }
    };
    // Eight by one fault, four by another, and each of those that were never used.
    assert_eq!(faults(&mut board, all), 1 + 1 + 4);
    board.audit();
}

#[test]
fn a_budget_is_kept_and_what_was_given_up_comes_back() {
    let mut board = unstarted(16);
    board.start(crate::support::registers());
    for region in 0..40u64 {
        let table = 0x4_0000 + region * 0x1000;
        board.set(DIRECTORY + region * 8, Width::Eight, table | 7);
        board.set(table, Width::Eight, (PAGES + (region << 12)) | 7);
    }
    for round in 0..3u32 {
        for region in 0..40u32 {
            let linear = LINEAR + (u64::from(region) << 21);
            let before = if round == 0 { 0 } else { round - 1 + region };
            assert_eq!(
                store(&mut board, linear, round + region),
                Outcome::Done(before.into())
            );
            assert!(board.host().frames() <= 16);
        }
        board.audit();
    }
    board.shrink(100);
    assert!(board.mmu().usage().tables <= 1, "the root in use stays");
    board.audit();
}
