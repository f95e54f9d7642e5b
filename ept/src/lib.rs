// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended page tables.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(test)]
extern crate std;

mod format;
pub mod spec;

pub use format::{Attributes, Ept, Rule};
