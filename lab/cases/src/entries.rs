// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entries of a case's tables.

use core::fmt;

/// One entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its physical address.
    pub at: u64,
    /// Its bytes: 4 or 8.
    pub width: u64,
    /// Its value.
    pub value: u64,
}

/// All entries that are not zero, in the order in which they are stored; later ones replace earlier
/// ones at the same address. There is room for `N`.
#[derive(Clone)]
pub struct Entries<const N: usize> {
    slots: [Slot; N],
    used: usize,
}

impl<const N: usize> Entries<N> {
    /// Adds one. There is room for what a case needs.
    pub(crate) fn add(&mut self, at: u64, width: u64, value: u64) {
        self.slots[self.used] = Slot { at, width, value };
        self.used += 1;
    }

    /// The entries.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots[..self.used]
    }
}

impl<const N: usize> Default for Entries<N> {
    fn default() -> Self {
        Self {
            slots: [Slot::default(); N],
            used: 0,
        }
    }
}

/// The entries, one a line.
impl<const N: usize> fmt::Debug for Entries<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.slots().iter().map(|slot| (slot.at, slot.value)))
            .finish()
    }
}
