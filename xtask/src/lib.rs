// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the `cargo xtask` commands are made of, on the laboratory of `lab/kit`.

pub mod bench;
pub mod cargo;
mod chart;
pub mod check;
mod checkout;
pub mod coverage;
pub mod demo;
pub mod evidence;
pub mod fuzz;
pub mod lab;
pub mod mutants;
pub mod oracle;
pub mod publish;
pub mod setup;
pub mod step;
pub mod test;
pub mod type1;
