// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A page that the guest maps more often than the shadow does: its page of zeros.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Outcome};
use hvkit_shadow_paging::mmu::Tuning;

use crate::support::{DIRECTORY, LINEAR, PAGES, TABLE, USED, faults, load, registers, unstarted};

/// Mappings of the one page; the shadow has at most 1024.
const MAPPINGS: u64 = 1100;
const MOST: u64 = 1024;

/// Three tables, of which every entry leads to one page, and has been used.
fn crowded(prefetch: u8) -> Board {
    let mut board = unstarted(64);
    for (n, table) in (0..).zip([TABLE, 0x8000, 0x9000]) {
        board.set(DIRECTORY + n * 8, Width::Eight, table | 7);
        for entry in 0..512 {
            board.set(table + entry * 8, Width::Eight, PAGES | USED);
        }
    }
    board.tune(Tuning {
        prefetch,
        ..Tuning::default()
    });
    board.start(registers());
    board
}

fn load_all(board: &mut Board, pages: impl Iterator<Item = u64>) {
    for page in pages {
        // Panics if the same address faults for ever.
        assert_eq!(load(board, LINEAR + (page << 12)), Outcome::Done(0));
    }
}

/// With neighbours mapped ahead of need too: none takes the room of the page that is needed now.
#[test]
fn every_mapping_of_a_crowded_page_can_be_used_again_and_again() {
    for prefetch in [1, 2, 4, 8, 16, 128] {
        let mut board = crowded(prefetch);
        for _ in 0..2 {
            load_all(&mut board, 0..MAPPINGS);
            assert_eq!(board.audit().leaves as u64, MOST, "prefetch {prefetch}");
        }
    }
}

/// What makes room is what has been there for long.
#[test]
fn the_last_mappings_of_a_crowded_page_stay() {
    let mut board = crowded(1);
    load_all(&mut board, 0..MAPPINGS);
    let again = |board: &mut Board| load_all(board, MAPPINGS - 1000..MAPPINGS);
    assert_eq!(faults(&mut board, again), 0);
}
