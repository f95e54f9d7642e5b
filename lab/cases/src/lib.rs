// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What an oracle's payload, in the processor model, and the oracle on the host must agree on.
//!
//! Both make the same cases from the same seed, so that only results travel over the serial line.
#![no_std]
#![forbid(unsafe_code)]

mod digest;
mod entries;
pub mod ept;
mod order;
pub mod paging;
mod random;
pub mod shadow;
pub mod trace;
pub mod type1;
pub mod vm_entry;

pub use digest::Digest;
pub use entries::{Entries, Slot};
pub use order::Order;
pub use random::Random;
