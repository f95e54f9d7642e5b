// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the payload of `paging` puts into memory before any case.

use lab_cases::paging::{CODE_OFFSETS, Case, DATA_OFFSETS, pattern};

use crate::oracle::memory::Memory;

/// Memory as the access of `case` finds it.
pub(super) fn memory(case: &Case) -> Memory {
    Memory::new(case.entries.slots(), word)
}

/// The 8 bytes at `at`, which is aligned.
fn word(at: u64) -> u64 {
    let offset = at & 0xfff;
    if !pattern().contains(&at) {
        0
    } else if DATA_OFFSETS.contains(&offset) {
        at
    } else if CODE_OFFSETS.contains(&offset) {
        0xb8 | at << 8 | 0x81cd << 40
    } else {
        0
    }
}
