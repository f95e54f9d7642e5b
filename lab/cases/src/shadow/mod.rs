// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cases of `cargo xtask oracle shadow`: programs of accesses, table edits and invalidations.
//!
//! A program invalidates what it must, as the manual says, before it uses an address again; so what
//! each access comes to does not depend on what a TLB happens to hold, and can be compared.
//!
//! ```text
//!  0x0104_4000  one table more for the monitor: it maps the arena in 32-bit paging
//!  0x0110_0000  the arena: nine frames of tables      2 roots, 2 of level 3, 2 of level 2, 3 of level 1
//!  the rest     as in `lab_cases::paging`
//! ```

mod generate;
mod harness;
mod program;

pub use harness::harness;
pub use program::{ACCESSES, Op, Program, Record, Table, arena};

/// What the serial line begins with, before the features' bytes.
pub const HEADER_MAGIC: &[u8; 8] = b"HVKITSH1";
