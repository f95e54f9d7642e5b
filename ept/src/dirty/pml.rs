// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page-modification logging: reading the log, and writing it where a processor is emulated.
//!
//! ```text
//!   PML address -->  entry 0 | 1 | ...  | index | index+1 | ... | 511
//!                    unused             ^ next            written, 511 first
//!
//!   index 511: empty.   index FFFFH (after entry 0): full.
//! ```
//!
//! SDM 3C, "Page-Modification Logging". The log is 4 KiB; an entry is the guest-physical address of a
//! page, bits 11:0 clear.

use hvkit_page_table::{OwnEntries, ReadEntry, Width};

/// Entries of a log.
pub const ENTRIES: u16 = 512;

/// The PML-index field of the VMCS: the entry that is written next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PmlIndex(pub u16);

/// An index that no processor leaves behind: above 511, and not the FFFFH after entry 0. With it, the
/// processor exits before it logs anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PML index {0:#x} is neither 0 to 511 nor ffff")]
pub struct BadIndex(pub u16);

impl PmlIndex {
    /// An empty log. To be written after each [`drain`].
    pub const EMPTY: Self = Self(ENTRIES - 1);
    /// What entry 0 leaves behind.
    pub const FULL: Self = Self(u16::MAX);

    /// How many entries have been written since [`EMPTY`](Self::EMPTY).
    ///
    /// # Errors
    ///
    /// [`BadIndex`].
    pub const fn written(self) -> Result<u16, BadIndex> {
        match self.0 {
            index @ 0..ENTRIES => Ok(Self::EMPTY.0.saturating_sub(index)),
            u16::MAX => Ok(ENTRIES),
            index => Err(BadIndex(index)),
        }
    }

    /// The entry to write now, and the index after it; `None` where the processor exits with
    /// "page-modification log full" (exit reason 62) instead of setting an accessed or dirty flag.
    #[must_use]
    pub const fn next(self) -> Option<(u16, Self)> {
        if self.0 < ENTRIES {
            Some((self.0, Self(self.0.wrapping_sub(1))))
        } else {
            None
        }
    }
}

/// The guest-physical pages in the log at host-physical `log`, in the order they were written.
///
/// The processor must not be in the guest: it exited, and `index` was read after that. A page may be
/// there more than once if its dirty flag was cleared in between.
///
/// # Errors
///
/// [`BadIndex`] at once; each entry that the memory does not give, as an item.
pub fn drain<M: ReadEntry>(
    memory: &M,
    log: u64,
    index: PmlIndex,
) -> Result<impl Iterator<Item = Result<u64, M::Error>> + '_, BadIndex> {
    let oldest = ENTRIES - 1;
    let entries = (0..index.written()?).map(move |i| {
        let at = log.wrapping_add(u64::from(oldest.saturating_sub(i)) << 3);
        memory.read(at, Width::Eight).map(|entry| entry & !0xfff)
    });
    Ok(entries)
}

/// Writes the page of `guest_physical` to the log at `log`, as a processor does after it set a dirty
/// flag. Returns the index after it.
///
/// `None`, and nothing written, where it would have exited: ask [`PmlIndex::next`] before setting a flag.
pub fn record<M: OwnEntries>(
    memory: &M,
    log: u64,
    index: PmlIndex,
    guest_physical: u64,
) -> Option<PmlIndex> {
    let (entry, after) = index.next()?;
    let at = log.wrapping_add(u64::from(entry) * 8);
    memory.write(at, Width::Eight, guest_physical & !0xfff);
    Some(after)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use hvkit_page_table::Frames;
    use hvkit_page_table::fake::{FakeGuest, FakeTables, Unreadable};

    use super::*;

    #[test]
    fn a_log_is_read_from_its_end() {
        let memory = FakeGuest::new(0x10_0000);
        memory.set(0x5ff8, Width::Eight, 0x1000);
        memory.set(0x5ff0, Width::Eight, 0x8000_0000);
        memory.set(0x5fe8, Width::Eight, 0x2fff); // low bits are always written as 0: not trusted
        memory.set(0x5fe0, Width::Eight, 0xdead_0000); // of an earlier round
        let pages = |index| {
            drain(&memory, 0x5000, PmlIndex(index))
                .unwrap()
                .collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(pages(511), Ok(Vec::new()));
        assert_eq!(pages(510), Ok([0x1000].into()));
        assert_eq!(pages(508), Ok([0x1000, 0x8000_0000, 0x2000].into()));
        assert_eq!(pages(0).unwrap().len(), 511);
        assert_eq!(pages(0xffff).unwrap().len(), 512);
        for bad in [512, 513, 0x7fff, 0xfffe] {
            assert_eq!(PmlIndex(bad).written(), Err(BadIndex(bad)));
            assert!(drain(&memory, 0x5000, PmlIndex(bad)).is_err());
            assert_eq!(PmlIndex(bad).next(), None);
        }
        let outside: Vec<_> = drain(&memory, 0x20_0000, PmlIndex(510)).unwrap().collect();
        assert_eq!(outside, [Err(Unreadable { at: 0x20_0ff8 })]);
    }

    #[test]
    fn a_log_is_written_down_to_entry_0_and_then_is_full() {
        let memory = FakeTables::new();
        let log = memory.allocate().unwrap();
        let mut index = PmlIndex::EMPTY;
        for i in 0..512u64 {
            index = record(&memory, log, index, i << 12 | 0xabc).unwrap();
            assert_eq!(index.written(), Ok(i as u16 + 1));
        }
        assert_eq!(index, PmlIndex::FULL);
        assert_eq!(record(&memory, log, index, 0x1000), None);
        assert_eq!(memory.load(log + 511 * 8, Width::Eight), 0);
        assert_eq!(memory.load(log, Width::Eight), 511 << 12);
        let pages: Vec<_> = drain(&memory, log, index)
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert!(pages.into_iter().eq((0..512).map(|i| i << 12)));
    }
}
