// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#![doc = include_str!("../README.md")]
#![no_std]
#![cfg_attr(not(feature = "identity"), forbid(unsafe_code))]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "fake", test))]
extern crate alloc;
#[cfg(test)]
extern crate std;

#[cfg(any(feature = "identity", feature = "vm-memory"))]
mod adapters;
#[cfg(feature = "arbitrary")]
mod arbitrary;
mod batch;
mod build;
mod by_level;
mod cache;
mod chain;
mod change;
mod decide;
mod error;
#[cfg(any(feature = "fake", test))]
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        reason = "a test's memory: what cannot be is the test's mistake, and is shouted"
    )
)]
pub mod fake;
mod fault_in;
mod format;
mod harvest;
mod iterate;
pub mod law;
pub mod map;
mod memory;
mod merge;
mod passes;
mod recent;
mod run;
mod shape;
mod single;
mod span;
pub mod stale;
pub mod walk;

#[cfg(feature = "identity")]
pub use adapters::identity::PhysicalWindow;
#[cfg(feature = "vm-memory")]
pub use adapters::vm_memory::GuestTables;
pub use batch::{translate_batch, visit_batch};
pub use cache::LeafCache;
pub use error::{MapError, Refused};
pub use fault_in::Filled;
pub use format::{Encode, Entry, Format, Marks};
pub use harvest::{Collect, Marked};
pub use iterate::{Mapped, Mappings};
pub use map::{Mapper, Sizes};
pub use memory::{Frames, OwnEntries, ReadEntry, UpdateEntry};
pub use shape::{MAX_LEVELS, Shape, ShapeError, Upper, Width};
pub use span::Span;
pub use stale::{Cause, Invalidate, Stale, Unsettled, leaked};
pub use walk::{Fault, Outcome, Root, Step, Translation, Walk, translate, visit, walk};
