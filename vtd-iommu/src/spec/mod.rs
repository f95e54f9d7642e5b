// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the words of the VT-d specification mean: registers, tables, descriptors, records.
//!
//! Every word is a newtype over the raw integer, with a reader and a setter for each field of its figure;
//! a word from memory or a register is a value whatever its bits are. What a figure leaves out is `reserved`.

pub mod context;
pub mod fault;
pub mod first_stage;
pub mod interrupt;
pub mod invalidation;
pub mod page_request;
pub mod pasid;
pub mod registers;
mod requester;
pub mod root;
pub mod second_stage;
#[cfg_attr(
    not(test),
    expect(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "it runs when it is compiled"
    )
)]
pub(crate) mod word;

pub use requester::{Pasid, RequesterId};
