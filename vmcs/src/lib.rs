// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMCS as data.
#![cfg_attr(not(any(test, feature = "arbitrary")), no_std)]
#![forbid(unsafe_code)]

pub mod capability;
pub mod check;
pub mod controls;
pub mod diff;
pub mod dump;
pub mod encoding;
pub mod event;
pub mod exit;
pub mod field;
pub mod fields;
pub mod seed;
pub mod store;

pub use capability::{Capabilities, Processor};
pub use encoding::Encoding;
pub use field::Field;
pub use store::Vmcs;
