// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended page tables.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(test)]
extern crate std;

pub mod access;
mod format;
pub mod marks;
pub mod nested_walk;
pub mod spec;
pub mod spp;

pub use access::{Access, EptFault, GuestSpace};
pub use format::{Attributes, Ept, Rule};
