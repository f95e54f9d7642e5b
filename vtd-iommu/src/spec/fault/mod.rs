// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Faults: what was refused, to whom, and why.
//!
//! VT-d, "Fault Recording Registers" and appendix "Fault Reason Encodings".

mod reason;
mod record;
#[cfg(test)]
mod tests;

pub use reason::{Class, FaultReason};
pub use record::{FaultRecord, RequestKind};
