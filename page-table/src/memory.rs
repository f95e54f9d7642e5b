// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where tables live, as three abilities: reading entries someone else writes, owning entries, and
//! having frames.
//!
//! ```text
//!   ReadEntry   fallible, hostile      a guest's tables, a dump
//!      UpdateEntry                     + compare-exchange: accessed and dirty bits
//!         OwnEntries                   + stores, and reading cannot fail: our own tables
//!   Frames                             pages to make tables of
//! ```
//!
//! Entries are named by physical address, aligned to their width. Hardware whose page walks do not
//! snoop caches is served by an [`OwnEntries`] that flushes after each store.

use core::convert::Infallible;

use crate::shape::Width;

/// Reading entries that someone else may own: guest memory, a dump, another processor's tables.
pub trait ReadEntry {
    /// Why an entry could not be read: outside memory, or a fault of a stage below.
    type Error;

    /// The entry at physical address `at`, read once, as a whole; 4-byte entries zero-extended.
    ///
    /// What is read later through the entry must not be seen earlier than the entry (acquire).
    ///
    /// # Errors
    ///
    /// Whatever keeps the entry from being read. `at` may be anything.
    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error>;
}

/// Changing an entry under others' eyes: how accessed and dirty bits are set in a guest's tables.
pub trait UpdateEntry: ReadEntry {
    /// Stores `new` at `at` if `current` is there, atomically. Returns what was there: it was stored
    /// exactly if that is `current`.
    ///
    /// # Errors
    ///
    /// As [`read`](ReadEntry::read), or the entry may not be written.
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Self::Error>;
}

/// Entries of tables we own. Access cannot fail; hardware and other threads may read at any time.
///
/// `at` is always inside a frame that came from the owner's [`Frames`], or is the root. An
/// implementation may panic for any other address: only the owner's own mistake leads there.
pub trait OwnEntries: UpdateEntry<Error = Infallible> {
    /// Stores `entry` at `at`, atomically; what was stored before is seen by whoever sees it (release).
    fn write(&self, at: u64, width: Width, entry: u64);

    /// Stores `count` entries from `at` upwards, entry `i` being `entry(i)`.
    ///
    /// Used only where nobody else can reach the entries yet, so their order is free. A tight loop
    /// here is most of the speed of mapping.
    #[inline]
    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        for i in 0..count {
            let offset = i.wrapping_mul(width.bytes());
            self.write(at.wrapping_add(offset), width, entry(i));
        }
    }

    /// Stores what `change` makes of the entry at `at`, if it makes something of it, and says whether.
    ///
    /// For the one who alone changes the entry: between the load and the store nothing is held. Worth an
    /// implementation of its own where finding the entry costs something.
    #[inline(always)]
    fn change(&self, at: u64, width: Width, change: impl FnOnce(u64) -> Option<u64>) -> bool {
        let new = change(self.load(at, width));
        if let Some(new) = new {
            self.write(at, width, new);
        }
        new.is_some()
    }

    /// [`read`](ReadEntry::read), which cannot fail here.
    #[inline(always)]
    fn load(&self, at: u64, width: Width) -> u64 {
        let Ok(entry) = self.read(at, width);
        entry
    }

    /// [`compare_exchange`](UpdateEntry::compare_exchange), which can only find something else here.
    ///
    /// # Errors
    ///
    /// What was found instead of `current`.
    #[inline]
    fn exchange(&self, at: u64, width: Width, current: u64, new: u64) -> Result<(), u64> {
        let Ok(found) = self.compare_exchange(at, width, current, new);
        if found == current { Ok(()) } else { Err(found) }
    }
}

/// Frames to make tables of: 4 KiB each (one whole table), aligned to their size.
pub trait Frames {
    /// A frame that nobody else uses, with any content; `None` when there are none.
    fn allocate(&self) -> Option<u64>;

    /// Takes back a frame that [`allocate`](Self::allocate) returned. Nobody reads it any more.
    fn free(&self, frame: u64);
}

impl<T: ReadEntry + ?Sized> ReadEntry for &T {
    type Error = T::Error;

    #[inline]
    fn read(&self, at: u64, width: Width) -> Result<u64, Self::Error> {
        (**self).read(at, width)
    }
}

impl<T: UpdateEntry + ?Sized> UpdateEntry for &T {
    #[inline]
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Self::Error> {
        (**self).compare_exchange(at, width, current, new)
    }
}

impl<T: OwnEntries> OwnEntries for &T {
    #[inline]
    fn write(&self, at: u64, width: Width, entry: u64) {
        (**self).write(at, width, entry);
    }

    #[inline]
    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        (**self).fill(at, width, count, entry);
    }

    #[inline(always)]
    fn change(&self, at: u64, width: Width, change: impl FnOnce(u64) -> Option<u64>) -> bool {
        (**self).change(at, width, change)
    }
}

impl<T: Frames + ?Sized> Frames for &T {
    #[inline]
    fn allocate(&self) -> Option<u64> {
        (**self).allocate()
    }

    #[inline]
    fn free(&self, frame: u64) {
        (**self).free(frame);
    }
}
