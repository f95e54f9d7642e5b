// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory that a unit reads: zeroed frames, entries of several words, and units that do not snoop.

use core::convert::Infallible;
use core::fmt;

use hvkit_page_table::{Frames, OwnEntries, ReadEntry, UpdateEntry, Width};

use super::DriverError;

/// A frame of zeroes.
pub(super) fn zeroed(memory: &impl OwnEntries, frames: &impl Frames) -> Result<u64, DriverError> {
    let frame = frames.allocate().ok_or(DriverError::OutOfFrames)?;
    if frame & 0xfff != 0 {
        frames.free(frame);
        return Err(DriverError::BadTable {
            address: frame,
            size: 0,
        });
    }
    memory.fill(frame, Width::Eight, 512, |_| 0);
    Ok(frame)
}

/// Where word `index` is of what begins at `at`. A table's words are all in its memory, which does not go round.
#[inline]
pub(super) const fn word_at(at: u64, index: u64) -> u64 {
    at.wrapping_add(index << 3)
}

/// Stores an entry of several words, of which the first holds the present bit: that one last.
pub(super) fn store_first_word_last(memory: &impl OwnEntries, at: u64, words: &[u64]) {
    for (i, &word) in words.iter().enumerate().rev() {
        memory.write(word_at(at, i as u64), Width::Eight, word);
    }
}

/// Owned entries of a unit that does not snoop caches (ECAP.C clear): after each store `flush` is called with its
/// address and length, to write the cache lines back (CLFLUSHOPT and a fence, say).
///
/// ```
/// use core::cell::Cell;
/// use hvkit_page_table::{OwnEntries, Width, fake::FakeTables};
/// use hvkit_page_table::Frames;
/// use hvkit_vtd_iommu::driver::Flushed;
///
/// let flushed = Cell::new(0);
/// let fake = FakeTables::new();
/// let frame = fake.allocate().unwrap();
/// let memory = Flushed::new(&fake, |_at, bytes| flushed.set(flushed.get() + bytes));
/// memory.write(frame, Width::Eight, 7);
/// memory.fill(frame, Width::Eight, 512, |_| 0);
/// assert_eq!(flushed.get(), 8 + 4096);
/// ```
#[derive(Clone, Copy)]
pub struct Flushed<M, H> {
    memory: M,
    flush: H,
}

impl<M: OwnEntries, H: Fn(u64, u64)> Flushed<M, H> {
    /// `memory`, with `flush` after each store.
    pub const fn new(memory: M, flush: H) -> Self {
        Self { memory, flush }
    }
}

impl<M: fmt::Debug, H> fmt::Debug for Flushed<M, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Flushed").field(&self.memory).finish()
    }
}

impl<M: OwnEntries, H> ReadEntry for Flushed<M, H> {
    type Error = Infallible;

    #[inline]
    fn read(&self, at: u64, width: Width) -> Result<u64, Infallible> {
        self.memory.read(at, width)
    }
}

impl<M: OwnEntries, H: Fn(u64, u64)> UpdateEntry for Flushed<M, H> {
    #[inline]
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, Infallible> {
        let found = self.memory.compare_exchange(at, width, current, new);
        (self.flush)(at, width.bytes());
        found
    }
}

impl<M: OwnEntries, H: Fn(u64, u64)> OwnEntries for Flushed<M, H> {
    #[inline]
    fn write(&self, at: u64, width: Width, entry: u64) {
        self.memory.write(at, width, entry);
        (self.flush)(at, width.bytes());
    }

    #[inline]
    fn fill(&self, at: u64, width: Width, count: u64, entry: impl Fn(u64) -> u64) {
        self.memory.fill(at, width, count, entry);
        (self.flush)(at, count.wrapping_mul(width.bytes()));
    }
}
