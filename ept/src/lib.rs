// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Extended page tables.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "arbitrary", test))]
extern crate std;

pub mod access;
pub mod builder;
pub mod dirty;
mod format;
pub mod marks;
pub mod mtrr;
pub mod nested_walk;
pub mod spec;
pub mod spp;

pub use access::{Access, EptFault, GuestSpace};
pub use format::{Attributes, Ept, Rule};
