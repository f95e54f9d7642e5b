// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where everything lies in the model's physical memory.
//!
//! ```text
//!  0x0000_0000  the monitor: payload, stack, descriptor tables (below 4 MiB, mapped by every case)
//!  0x0040_0000  the user page: the monitor's instructions at CPL 3
//!  0x0100_0000  what to run: an `Order`
//!  0x0104_0000  tables that map both, shared by all cases
//!  0x0110_0000  the arena: a case's own tables, all zero between cases
//!  0x0200_0000  the pattern: pages that tell their own address, as data and as code
//!  0x0400_0000  its end; from 0x1000_0000 on there is no memory
//! ```

use core::ops::Range;

/// Instructions for CPL 3, mapped for user mode at the same linear address.
pub const USER_PAGE: u64 = 0x0040_0000;

/// PDPT of the monitor in 4-level paging.
pub const HARNESS_PDPT: u64 = 0x0104_0000;
/// Page directory of the monitor in 4-level and PAE paging.
pub const HARNESS_PD: u64 = 0x0104_1000;
/// Page table of the monitor's first 4 MiB in 32-bit paging.
pub const HARNESS_PT_LOW: u64 = 0x0104_2000;
/// Page table of the user page in 32-bit paging.
pub const HARNESS_PT_USER: u64 = 0x0104_3000;

/// The first frame of a case's tables. Bit 20 is set: such a frame is misaligned for any large page.
pub const ARENA: u64 = 0x0110_0000;
/// Five frames: one more than the deepest tables here have.
pub const ARENA_BYTES: u64 = 5 << 12;

/// The first page that tells its address.
pub const PATTERN: u64 = 0x0200_0000;
/// 32 MiB of them.
pub const PATTERN_BYTES: u64 = 0x0200_0000;

/// No memory from here on: reads give ones.
pub const RAM_END: u64 = 0x1000_0000;

/// Offsets in a page of the pattern at which a word holds its own physical address; the word after
/// each is 0, to be written.
pub const DATA_OFFSETS: [u64; 3] = [0x000, 0x7f8, 0xff8];
/// Offsets at which seven bytes of code put their own physical address in EAX and return to the monitor.
pub const CODE_OFFSETS: [u64; 2] = [0x400, 0xff0];

/// The arena's addresses.
#[must_use]
pub const fn arena() -> Range<u64> {
    ARENA..ARENA + ARENA_BYTES
}

/// The pattern's addresses.
#[must_use]
pub const fn pattern() -> Range<u64> {
    PATTERN..PATTERN + PATTERN_BYTES
}
