// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One walker and one mapper for every radix page table.
#![no_std]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod format;
mod memory;
mod shape;
pub mod walk;

pub use format::{Encode, Entry, Format, Marks};
pub use memory::{Frames, OwnEntries, ReadEntry, UpdateEntry};
pub use shape::{MAX_LEVELS, Shape, ShapeError, Upper, Width};
pub use walk::{Fault, Outcome, Root, Step, Translation, Walk, translate, walk};
