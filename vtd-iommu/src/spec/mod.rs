// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the words of the VT-d specification mean: registers, tables, descriptors, records.

pub(crate) mod bits;
pub mod context;
pub mod first_stage;
pub mod interrupt;
pub mod pasid;
mod requester;
pub mod root;
pub mod second_stage;

pub use requester::{Pasid, RequesterId};
