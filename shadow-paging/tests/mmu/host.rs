// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side: superpages, migration, logging, devices, memory that is not there.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Doing, FakeHost, Outcome};
use hvkit_shadow_paging::mmu::{HostRights, Tuning};

use crate::support::{
    DIRECTORY, KERNEL_READ, KERNEL_WRITE, LINEAR, TABLE, USED, board, faults, load, registers,
    store, unstarted,
};

/// A 2 MiB page of the guest's, away from its tables.
const LARGE: u64 = LINEAR + 0x20_0000;
const TARGET: u64 = 0x80_0000;

#[test]
fn a_large_page_is_one_entry_where_the_host_has_it_whole() {
    let mut board = board();
    board.set(DIRECTORY + 8, Width::Eight, TARGET | 0x87);
    let all = |board: &mut hvkit_shadow_paging::fake::Board| {
        for page in 0..512 {
            assert_eq!(store(board, LARGE + (page << 12), 1), Outcome::Done(0));
        }
    };
    assert_eq!(faults(&mut board, all), 1);
    assert_eq!(board.get(DIRECTORY + 8, Width::Eight), TARGET | 0xe7);
    board.audit();
}

#[test]
fn a_large_page_is_small_ones_where_large_ones_are_not_wanted() {
    let mut board = unstarted(64);
    board.tune(Tuning {
        largest: 1,
        prefetch: 1,
        ..Tuning::default()
    });
    board.start(registers());
    board.set(DIRECTORY + 8, Width::Eight, TARGET | 0x87);
    let some = |board: &mut hvkit_shadow_paging::fake::Board| {
        for page in 0..8 {
            assert_eq!(store(board, LARGE + (page << 12), 1), Outcome::Done(0));
        }
    };
    assert_eq!(faults(&mut board, some), 8);
    board.audit();
}

#[test]
fn it_is_split_where_the_host_cut_it_and_whole_again_elsewhere() {
    let mut board = board();
    board.set(DIRECTORY + 8, Width::Eight, TARGET | 0x87);
    store(&mut board, LARGE + 0x5000, 7);
    board.migrate(TARGET + 0x5000);
    let leaves = board.audit().leaves;
    assert_eq!(
        load(&mut board, LARGE + 0x5000),
        Outcome::Done(7),
        "its content moved"
    );
    assert_eq!(store(&mut board, LARGE + 0x6000, 8), Outcome::Done(0));
    assert!(board.audit().leaves >= leaves + 2, "small leaves");
}

#[test]
fn a_large_page_with_a_table_in_it_is_split_so_that_the_table_can_be_guarded() {
    let mut board = board();
    // A page onto the guest's first 2 MiB, in which its own tables are.
    board.set(DIRECTORY + 8, Width::Eight, 0xe7);
    load(&mut board, LINEAR);
    assert_eq!(store(&mut board, LARGE + 0xf_f000, 9), Outcome::Done(0));
    board.audit();
    // Writing the directory through it is seen, and right.
    assert_eq!(
        board.access(LARGE + DIRECTORY, KERNEL_WRITE, Doing::StoreEight(0)),
        Outcome::Done(TABLE | 0x27)
    );
    assert_eq!(board.emulated, 1);
    assert!(matches!(load(&mut board, LINEAR), Outcome::Fault(_)));
    board.audit();
}

#[test]
fn a_logged_page_faults_once_a_log() {
    let mut board = board();
    store(&mut board, LINEAR, 1);
    for round in 1..4u32 {
        board.log_writes(crate::support::PAGES);
        assert_eq!(
            faults(&mut board, |board| {
                load(board, LINEAR);
            }),
            0,
            "reads go on"
        );
        assert!(
            faults(&mut board, |board| {
                store(board, LINEAR, round);
                store(board, LINEAR, round);
            }) <= 2
        );
        let rights = HostRights::ALL;
        assert!(
            board
                .host()
                .set_rights(crate::support::PAGES, rights)
                .is_some()
        );
    }
    board.audit();
}

#[test]
fn a_guests_table_can_move_too() {
    let mut board = board();
    load(&mut board, LINEAR);
    for table in [TABLE, DIRECTORY, crate::support::PDPT, crate::support::ROOT] {
        board.migrate(table);
        board.audit();
        assert_eq!(load(&mut board, LINEAR), Outcome::Done(0));
        board.edit(TABLE + 8, Width::Eight, USED);
        board.audit();
    }
}

#[test]
fn devices_are_the_callers_and_flags_are_set_all_the_same() {
    let mut board = board();
    board.set(TABLE, Width::Eight, FakeHost::MMIO | 7);
    assert_eq!(
        store(&mut board, LINEAR + 0x10, 1),
        Outcome::Mmio(FakeHost::MMIO + 0x10)
    );
    assert_eq!(board.get(TABLE, Width::Eight), FakeHost::MMIO | 0x67);
    assert_eq!(
        board.access(LINEAR, KERNEL_READ, Doing::Load),
        Outcome::Mmio(FakeHost::MMIO)
    );
    board.audit();
}

#[test]
fn memory_that_is_not_there_is_the_hosts_turn_and_a_table_there_is_an_error() {
    let mut board = board();
    board.set(TABLE, Width::Eight, 0x7000_0007);
    assert_eq!(load(&mut board, LINEAR), Outcome::Failed);
    board.set(DIRECTORY, Width::Eight, 0x7000_0007);
    assert_eq!(load(&mut board, LINEAR + 0x1000), Outcome::Failed);
    board.audit();
}

#[test]
fn a_device_that_writes_a_table_is_heard() {
    let mut board = board();
    store(&mut board, LINEAR, 4);
    board.wrote(TABLE, Width::Eight, 0);
    board.audit();
    assert!(matches!(load(&mut board, LINEAR), Outcome::Fault(_)));
}
