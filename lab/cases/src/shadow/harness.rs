// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The monitor's own entries, the same in every program: its code below 4 MiB, the user page, and the
//! arena, by which programs edit their tables.

use super::program::{Table, root_entries};
use crate::paging::{HARNESS_PD, HARNESS_PDPT, HARNESS_PT_LOW, HARNESS_PT_USER, Mode, USER_PAGE};

/// Table of the arena's 4 MiB in 32-bit paging.
pub(super) const HARNESS_PT_ARENA: u64 = 0x0104_4000;
/// The 4 MiB that the arena is in.
const ARENA_4M: u64 = 0x0100_0000;

/// P, R/W, A and D; with PS. Nothing of the monitor's ever needs to be marked.
const SMALL: u64 = 0x63;
const LARGE: u64 = 0xe3;

/// Calls `store` with each entry: address, bytes, value.
pub fn harness(mut store: impl FnMut(u64, u64, u64)) {
    store(HARNESS_PDPT, 8, HARNESS_PD | 0x67);
    store(HARNESS_PD, 8, LARGE);
    store(HARNESS_PD + 8, 8, 0x0020_0000 | LARGE);
    store(HARNESS_PD + 16, 8, USER_PAGE | 0xe7);
    store(HARNESS_PD + 64, 8, ARENA_4M | LARGE);
    store(HARNESS_PD + 72, 8, (ARENA_4M + 0x20_0000) | LARGE);
    for page in 0..1024 {
        store(HARNESS_PT_LOW + page * 4, 4, page << 12 | SMALL);
        store(
            HARNESS_PT_ARENA + page * 4,
            4,
            (ARENA_4M + (page << 12)) | SMALL,
        );
    }
    store(HARNESS_PT_USER, 4, USER_PAGE | 0x67);
}

/// The monitor's entries in the root at `root`.
pub(super) fn roots(mode: Mode, root: u64, mut add: impl FnMut(Table)) {
    for (index, value) in root_entries(mode) {
        let width = if mode == Mode::ThirtyTwoBit { 4 } else { 8 };
        add(Table {
            at: root + index * width,
            width,
            value,
        });
    }
}
