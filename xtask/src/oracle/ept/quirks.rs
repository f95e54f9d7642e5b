// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Bochs does otherwise than the manual, so exactly that a case can be run by it.

/// Which quirks are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quirks(u32);

impl Quirks {
    /// The manual.
    pub(super) const NONE: Self = Self(0);
}
