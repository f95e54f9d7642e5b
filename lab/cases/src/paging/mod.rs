// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of `cargo xtask oracle paging`: tables, a mode, and one access.

mod generate;
mod map;
mod record;

pub use generate::{Case, Cpu, Doing, Mode, Who};
pub use map::{
    ARENA, ARENA_BYTES, CODE_OFFSETS, DATA_OFFSETS, HARNESS_PD, HARNESS_PDPT, HARNESS_PT_LOW,
    HARNESS_PT_USER, PATTERN, PATTERN_BYTES, RAM_END, USER_PAGE, arena, pattern,
};
pub use record::{DONE, HEADER_MAGIC, Record, STORED, Stored};
