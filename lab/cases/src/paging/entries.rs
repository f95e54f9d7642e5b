// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entries of a case's tables.

use core::fmt;

/// One entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its physical address, in the arena.
    pub at: u64,
    /// Its bytes: 4 or 8.
    pub width: u64,
    /// Its value.
    pub value: u64,
}

/// All entries that are not zero, in the order in which they are stored; later ones replace earlier
/// ones at the same address.
#[derive(Clone, Default)]
pub struct Entries {
    slots: [Slot; 12],
    used: usize,
}

impl Entries {
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

/// The entries, one a line.
impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.slots().iter().map(|slot| (slot.at, slot.value)))
            .finish()
    }
}
