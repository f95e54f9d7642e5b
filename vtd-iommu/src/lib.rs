// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Intel VT-d: the driver of a unit, the emulated unit and the inspector, over one set of types.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

extern crate alloc;
#[cfg(any(feature = "arbitrary", test))]
extern crate std;

pub mod spec;
pub mod tables;
