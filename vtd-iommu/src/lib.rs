// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel VT-d: the driver of a unit, the emulated unit and the inspector, over one set of types.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;
// `Arbitrary`'s derive counts recursion in a thread-local.
#[cfg(any(test, feature = "arbitrary", feature = "vm-memory"))]
extern crate std;

pub mod driver;
pub mod emulation;
pub mod inspect;
pub mod spec;
pub mod tables;
