// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the `cargo xtask` commands are made of, and the laboratory that tests call.

pub mod lab;
pub mod paths;
pub mod setup;
pub mod step;
