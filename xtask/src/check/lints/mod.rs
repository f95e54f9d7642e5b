// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The house rules, one a file.

use super::lint::Rule;

mod crate_shape;
mod file_size;
mod no_silence;
mod spdx;
#[cfg(test)]
mod tests;
mod total;
mod unsafe_at_edge;

/// Every rule.
pub(crate) const ALL: &[Rule] = &[
    crate_shape::RULE,
    file_size::RULE,
    no_silence::RULE,
    spdx::RULE,
    total::RULE,
    unsafe_at_edge::RULE,
];
