// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the leaf tables are in which single pages were last mapped and unmapped.
//!
//! A driver maps and unmaps its buffers page by page in the same few leaf tables. Three of a walk's four
//! loads, each waiting for the one before, only find such a table again.
//!
//! What is remembered is right as long as no table is unlinked, and only operations with `&mut self` unlink
//! tables: those that may, [forget](Recent::forget).

/// How many leaf tables are remembered: 2 MiB of addresses each, in most formats.
const SLOTS: usize = 32;

/// Addresses that no table translates: nothing remembered.
const NOTHING: u64 = u64::MAX;

/// Leaf tables, each in the one place that its addresses give it.
#[derive(Debug)]
pub(crate) struct Recent {
    slots: [Slot; SLOTS],
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The addresses, without the bits that the leaf table and the page translate.
    tag: u64,
    /// Physical address of the table.
    table: u64,
}

impl Recent {
    /// Nothing remembered.
    pub(crate) const EMPTY: Self = Self {
        slots: [Slot {
            tag: NOTHING,
            table: 0,
        }; SLOTS],
    };

    /// The leaf table for the addresses with this tag, if it is remembered.
    #[inline(always)]
    pub(crate) fn get(&self, tag: u64) -> Option<u64> {
        let slot = self.slots.get(tag as usize % SLOTS)?;
        (slot.tag == tag).then_some(slot.table)
    }

    /// Remembers a leaf table.
    pub(crate) fn note(&mut self, tag: u64, table: u64) {
        if let Some(slot) = self.slots.get_mut(tag as usize % SLOTS) {
            *slot = Slot { tag, table };
        }
    }

    /// Forgets every table: some may be unlinked now.
    pub(crate) fn forget(&mut self) {
        *self = Self::EMPTY;
    }
}
