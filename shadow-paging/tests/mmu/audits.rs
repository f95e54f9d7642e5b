// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an audit finds in tables that may be stale, where someone broke a rule.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::Board;
use hvkit_shadow_paging::mmu::{Finding, HostRights, Machine, Wrong};

use crate::support::{DIRECTORY, LINEAR, PAGES, TABLE, USED, board, load, store};

/// What is wrong with entries, as the audit has it.
fn wrong(board: &Board) -> Vec<Wrong> {
    let view = board.host().guest();
    let machine = Machine {
        memory: &view,
        map: board.host(),
    };
    let mut all = vec![];
    board.mmu().audit(machine, |finding| {
        if let Finding::Entry { wrong, .. } = finding {
            all.push(wrong);
        }
    });
    all
}

/// A guest whose page table is not guarded; of two writable leaves one is to the page that the guest maps, and the other's entry
/// is `stale` now.
fn unsync(stale: u64) -> Board {
    let mut board = board();
    for page in 0..2 {
        store(&mut board, LINEAR + (page << 12), 1);
    }
    // Another entry, so that the table is written at all.
    board.edit(TABLE + 0x100, Width::Eight, 0);
    board.edit(TABLE + 8, Width::Eight, stale);
    assert_eq!(board.audit().unsync, 1);
    assert_eq!(wrong(&board), []);
    board
}

/// A log of writes that has not been told of to the MMU.
#[test]
fn a_leaf_that_writes_what_the_host_withholds_is_never_taken_for_stale() {
    let mut board = unsync((PAGES + 0x8000) | USED);
    assert_eq!(board.audit().stale, 1);
    let logged = board.host().set_rights(PAGES, HostRights::READ_ONLY);
    assert_eq!(wrong(&board), [Wrong::TooMuch]);
    board.protect(logged.unwrap());
    assert_eq!(wrong(&board), []);
    load(&mut board, LINEAR);
    board.audit();
}

/// A leaf behind which the guest has nothing now, or another page or table: it may lead anywhere of the guest's but to
/// what must not be written.
#[test]
fn a_leaf_that_writes_a_guarded_table_is_never_taken_for_stale() {
    for stale in [0, (PAGES + 0x8000) | USED, PAGES | 0x1_0000 | 7] {
        let board = unsync(stale);
        assert_eq!(board.audit().stale, 1, "{stale:#x}");
        let mut at = board.hardware().unwrap().cr3;
        for index in [LINEAR >> 39, 0, 0] {
            at = board.host().load(at + index * 8, Width::Eight) & 0xff_ffff_f000;
        }
        let leaf = board.host().load(at + 8, Width::Eight);
        let directory = board.host().host(DIRECTORY).unwrap();
        for (rights, expected) in [
            (leaf & 0xfff, vec![Wrong::WritesGuarded]),
            (leaf & 0xffd, vec![]),
        ] {
            board.host().store(at + 8, Width::Eight, directory | rights);
            assert_eq!(wrong(&board), expected, "{stale:#x} {rights:#x}");
        }
    }
}
