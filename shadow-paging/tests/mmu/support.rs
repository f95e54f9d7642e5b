// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest in 4-level paging with a window onto its first 2 MiB.

use hvkit_page_table::Width;
use hvkit_shadow_paging::fake::{Board, Doing, Outcome};
use hvkit_shadow_paging::guest::{Access, Features, Kind, Privilege, Registers, cr0, cr4, efer};

pub(crate) const USER_READ: Access = Access::new(Kind::Read, Privilege::User);
pub(crate) const USER_WRITE: Access = Access::new(Kind::Write, Privilege::User);
pub(crate) const KERNEL_READ: Access = Access::new(Kind::Read, Privilege::Supervisor);
pub(crate) const KERNEL_WRITE: Access = Access::new(Kind::Write, Privilege::Supervisor);

/// Two roots over one tree: root, PDPT, directory, page table.
pub(crate) const ROOT: u64 = 0x1000;
pub(crate) const OTHER_ROOT: u64 = 0x2000;
pub(crate) const PDPT: u64 = 0x3000;
pub(crate) const DIRECTORY: u64 = 0x4000;
pub(crate) const TABLE: u64 = 0x5000;
/// Maps the window: the first 2 MiB.
const WINDOW_PDPT: u64 = 0x6000;
const WINDOW_DIRECTORY: u64 = 0x7000;
/// Where the tables map: pages at 0x10_0000 and on, from this address.
pub(crate) const LINEAR: u64 = 0x80_0000_0000;
pub(crate) const PAGES: u64 = 0x10_0000;

/// All rights, A and D.
pub(crate) const USED: u64 = 0x67;

pub(crate) fn registers() -> Registers {
    Registers {
        cr0: cr0::PG | cr0::PE | cr0::WP,
        cr3: ROOT,
        cr4: cr4::PAE,
        efer: efer::LME | efer::NXE,
        ..Registers::default()
    }
}

/// The guest above, with 512 pages mapped and none used, not started yet.
pub(crate) fn unstarted(budget: u32) -> Board {
    let board = Board::new(budget, Features::all(40));
    for root in [ROOT, OTHER_ROOT] {
        board.set(root, Width::Eight, WINDOW_PDPT | USED);
        board.set(root + 8, Width::Eight, PDPT | 7);
    }
    board.set(WINDOW_PDPT, Width::Eight, WINDOW_DIRECTORY | USED);
    board.set(WINDOW_DIRECTORY, Width::Eight, 0xe3);
    board.set(PDPT, Width::Eight, DIRECTORY | 7);
    board.set(DIRECTORY, Width::Eight, TABLE | 7);
    for page in 0..512 {
        board.set(TABLE + page * 8, Width::Eight, (PAGES + (page << 12)) | 7);
    }
    board
}

/// The same, running.
pub(crate) fn board() -> Board {
    let mut board = unstarted(64);
    board.start(registers());
    board
}

pub(crate) fn load(board: &mut Board, linear: u64) -> Outcome {
    board.access(linear, USER_READ, Doing::Load)
}

pub(crate) fn store(board: &mut Board, linear: u64, value: u32) -> Outcome {
    board.access(linear, USER_WRITE, Doing::Store(value))
}

/// How many faults `go` takes.
pub(crate) fn faults(board: &mut Board, go: impl FnOnce(&mut Board)) -> u64 {
    let before = board.faults;
    go(board);
    board.faults - before
}
