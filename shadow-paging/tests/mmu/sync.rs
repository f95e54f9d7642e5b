// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which tables are compared when the guest loads a root, and which stay unsync: what Linux made worth knowing.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Instruction, Outcome};
use hvkit_shadow_paging::guest::{Features, Registers, cr0, cr4};

use crate::support::{
    DIRECTORY, LINEAR, OTHER_ROOT, PAGES, PDPT, ROOT, TABLE, USED, board, faults, load, registers,
    store, unstarted,
};

/// Linux patches its code through one page that it maps, uses and unmaps thousands of times, in an address space of its own.
/// When it loads that, the table says what it said the last time.
#[test]
fn a_table_that_is_written_over_and_over_is_not_guarded_each_time() {
    let mut board = board();
    let mut writes = 0;
    for _ in 0..64 {
        writes += faults(&mut board, |board| {
            board.edit(TABLE, Width::Eight, PAGES | USED);
        });
        board.intercept(Instruction::Cr3(ROOT));
        assert_eq!(load(&mut board, LINEAR), Outcome::Done(0));
        writes += faults(&mut board, |board| {
            board.edit(TABLE, Width::Eight, 0);
        });
    }
    assert!(writes <= 16, "{writes} faults for 128 writes");
    board.audit();
    // And when it is left alone, it is guarded in the end.
    for _ in 0..16 {
        board.intercept(Instruction::Cr3(ROOT));
    }
    assert_eq!(board.audit().unsync, 0);
}

#[test]
fn tables_that_a_root_does_not_lead_to_wait_for_their_own() {
    let mut board = unstarted(64);
    board.set(OTHER_ROOT + 8, Width::Eight, 0);
    board.start(registers());
    store(&mut board, LINEAR, 1);
    board.edit(TABLE, Width::Eight, (PAGES + 0x2_0000) | USED);
    assert_eq!(board.audit().stale, 1);
    board.intercept(Instruction::Cr3(OTHER_ROOT));
    assert_eq!(board.audit().stale, 1, "nobody can come to it");
    board.intercept(Instruction::Cr3(ROOT));
    assert_eq!(board.audit().stale, 0);
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(0), "the new page");
}

/// SDM Vol. 3A, "Operations that Invalidate TLBs and Paging-Structure Caches": bit 63 of what is moved to CR3.
#[test]
fn a_load_that_keeps_the_tlb_compares_nothing() {
    let mut board = unstarted(64);
    let mut registers = registers();
    registers.cr4 |= cr4::PCIDE;
    board.start(registers);
    store(&mut board, LINEAR, 1);
    board.edit(TABLE, Width::Eight, (PAGES + 0x2_0000) | USED);
    assert_eq!(board.audit().stale, 1);
    board.intercept(Instruction::Cr3(1 << 63 | ROOT));
    assert_eq!(board.audit().stale, 1, "it may be in the TLB as it was");
    board.intercept(Instruction::Cr3(ROOT));
    assert_eq!(board.audit().stale, 0);
}

/// Maps two pages; writes their table while it is linked nowhere, the entry at `unlinked` being absent; then stores `linked` behind that
/// entry. The pages are the new ones, `further` up.
///
/// No TLB could hold what the table said before: it was linked nowhere when the guest emptied its TLB.
fn written_while_it_was_linked_nowhere(unlinked: u64, linked: u64, further: u64) {
    let mut board = board();
    for page in 0..2 {
        store(&mut board, LINEAR + page * 0x1000, 1);
    }
    for page in 0..2 {
        let elsewhere = PAGES + 0x2_0000 + page * 0x1000;
        board.edit(TABLE + page * 8, Width::Eight, elsewhere | USED);
    }
    board.edit(unlinked, Width::Eight, 0);
    board.intercept(Instruction::Cr3(ROOT));
    board.edit(unlinked + 8, Width::Eight, linked);
    for page in 0..2 {
        let linear = LINEAR + further + page * 0x1000;
        assert_eq!(load(&mut board, linear), Outcome::Done(0), "the new page");
    }
    board.audit();
}

#[test]
fn a_stale_table_is_compared_before_it_is_linked_again() {
    written_while_it_was_linked_nowhere(DIRECTORY, TABLE | 7, 0x20_0000);
}

#[test]
fn a_stale_table_is_compared_before_a_table_above_it_is_linked_again() {
    written_while_it_was_linked_nowhere(PDPT, DIRECTORY | 7, 0x4000_0000);
}

/// A 32-bit guest's table has two shadows: a page of its upper half is compared with its own entry, not with one of the lower half,
/// each of which still says what that one said.
#[test]
fn each_half_of_a_32_bit_table_is_compared_with_itself() {
    let mut board = Board::new(64, Features::all(40));
    // The first 4 MiB to themselves, then the table.
    board.set(0x1000, Width::Four, 0xe3);
    board.set(0x1004, Width::Four, 0x2067);
    for index in 0..513 {
        board.set(0x2000 + 4 * index, Width::Four, PAGES | USED);
    }
    board.start(Registers {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: 0x1000,
        cr4: cr4::PSE,
        ..Registers::default()
    });
    let upper = 0x60_0000;
    store(&mut board, upper, 1);
    board.edit(0x2000 + 4 * 512, Width::Four, (PAGES + 0x1000) | USED);
    assert_eq!(board.audit().unsync, 1);
    board.intercept(Instruction::Cr3(0x1000));
    assert_eq!(load(&mut board, upper), Outcome::Done(0), "the new page");
    board.audit();
}

/// What was compared once is right as long as both entries are the same, not only the guest's.
#[test]
fn an_entry_that_is_written_back_is_compared_with_what_was_mapped_meanwhile() {
    let mut board = board();
    let elsewhere = (PAGES + 0x2_0000) | USED;
    store(&mut board, LINEAR, 1);
    // Unsync, and compared: the first page is what the table says.
    board.edit(TABLE + 8, Width::Eight, (PAGES + 0x3_0000) | USED);
    board.intercept(Instruction::Cr3(ROOT));
    board.edit(TABLE + 8, Width::Eight, (PAGES + 0x3_1000) | USED);
    board.intercept(Instruction::Cr3(ROOT));
    // Another page, used; and the first one again.
    board.edit(TABLE, Width::Eight, elsewhere);
    board.intercept(Instruction::Invlpg(LINEAR));
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(0));
    board.edit(TABLE, Width::Eight, PAGES | USED);
    board.intercept(Instruction::Cr3(ROOT));
    assert_eq!(load(&mut board, LINEAR), Outcome::Done(1), "the first page");
    board.audit();
}
