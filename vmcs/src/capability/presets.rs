// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Processors for tests and examples.

use super::{Capabilities, Processor};

/// Bochs.
pub fn bochs_skylake_x() -> Processor {
    Processor::new(Capabilities::from_list(&[]))
}
