// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's table as it was when its shadow was last compared with it. While the guest's entry is the same, so is what
//! the shadow's may be: to look at a table that was not written costs a load and a comparison for each entry.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// Entries of a table.
const ENTRIES: usize = 512;

/// How many tables are remembered. One that is not is compared at length.
pub(super) const MOST_SEEN: usize = 64;

/// Stands for an entry that was not compared since the shadow's changed. A guest's entry that is the same word is compared at
/// length.
const UNSEEN: u64 = !0;

/// The guest's entries.
#[derive(Debug)]
pub(crate) struct Seen(Box<[u64; ENTRIES]>);

impl Seen {
    /// Bytes that one takes.
    pub(crate) const BYTES: usize = size_of::<[u64; ENTRIES]>();

    /// Nothing was seen yet. `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(ENTRIES).ok()?;
        entries.resize(ENTRIES, UNSEEN);
        entries.into_boxed_slice().try_into().ok().map(Self)
    }

    /// Whether the entry behind shadow entry `index` was this one, and the shadow's right.
    #[inline]
    pub(crate) fn was(&self, index: usize, entry: u64) -> bool {
        entry != UNSEEN && self.0.get(index) == Some(&entry)
    }

    /// Shadow entry `index` is right by this entry of the guest's.
    #[inline]
    pub(crate) fn right(&mut self, index: usize, entry: u64) {
        if let Some(seen) = self.0.get_mut(index) {
            *seen = entry;
        }
    }

    /// Shadow entry `index` is another.
    #[inline]
    pub(crate) fn forget(&mut self, index: usize) {
        self.right(index, UNSEEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_was_seen_until_it_is_forgotten() {
        let mut seen = Seen::new().unwrap();
        assert!(!seen.was(3, 0));
        seen.right(3, 0x1067);
        assert!(seen.was(3, 0x1067) && !seen.was(3, 0x1027) && !seen.was(4, 0x1067));
        seen.forget(3);
        assert!(
            !seen.was(3, 0x1067) && !seen.was(3, UNSEEN),
            "not even that"
        );
        assert_eq!(Seen::BYTES, 4096);
    }
}
