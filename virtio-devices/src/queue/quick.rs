// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Chains of the usual shapes, taken in without a word about what could be wrong with others.
//!
//! Everything is checked here too. But what does not pass, or is merely unusual (a buffer near the end of the address
//! space, a flag that means nothing, a chain around the end of a packed ring), is only left: then the chain is read
//! anew from its start, by code that says what is wrong with it, and what was read before is forgotten.

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{GuestMemory, VolatileArrayRef, VolatileMemory, VolatileSlice};

use super::Segment;
use super::chain::{DESCRIPTOR_BITS, INDIRECT, NEXT, Numbers, WRITE};
use super::reach::{Reach, Slice};

/// Descriptors one behind the other, as their two words.
pub(super) type Descriptors<'m, B> = VolatileArrayRef<'m, [u64; 2], B>;

/// The `count` descriptors from `first` on, if all of them are in `area`.
#[inline(always)]
pub(super) fn descriptors<'a, B: BitmapSlice>(
    area: &'a VolatileSlice<'_, B>,
    first: u16,
    count: usize,
) -> Option<Descriptors<'a, B>> {
    area.get_array_ref(usize::from(first) << DESCRIPTOR_BITS, count)
        .ok()
}

/// The descriptor at `index`, if there is one.
#[inline(always)]
pub(super) fn descriptor<B: BitmapSlice>(
    table: &Descriptors<'_, B>,
    index: usize,
) -> Option<[u64; 2]> {
    (index < table.len()).then(|| table.load(index).map(u64::from_le))
}

/// The indirect table that a descriptor names, if it is whole and in one piece.
#[inline(always)]
pub(super) fn table<'m, M: GuestMemory + ?Sized>(
    reach: &Reach<'m, M>,
    [address, rest]: [u64; 2],
) -> Option<Slice<'m, M>> {
    let length = rest as u32 as usize;
    (length != 0 && length.trailing_zeros() >= DESCRIPTOR_BITS)
        .then(|| reach.known(address, length))
        .flatten()
}

/// A chain that is being followed.
pub(super) struct Quick<'c> {
    /// As many as there may be buffers.
    room: &'c mut [Segment],
    count: usize,
    bytes: u64,
    /// All addresses, one over the other.
    addresses: u64,
}

impl<'c> Quick<'c> {
    #[inline(always)]
    pub(super) fn new(room: &'c mut [Segment]) -> Self {
        Self {
            room,
            count: 0,
            bytes: 0,
            addresses: 0,
        }
    }

    #[inline(always)]
    fn push(&mut self, [address, rest]: [u64; 2]) -> Option<()> {
        let length = rest as u32;
        *self.room.get_mut(self.count)? = Segment { address, length };
        // Neither overflows: at most 2^15 buffers of less than 2^32 bytes.
        self.count = self.count.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(length.into());
        self.addresses |= address;
        Some(())
    }

    /// Follows a chain from its descriptor `words` on. `flags` takes the flags out of a second word, which are to be
    /// `marks` and those that mean something here; `next` finds the descriptor after one with that second word, before
    /// which there are so many. Returns the last one's second word.
    #[inline(always)]
    pub(super) fn follow(
        mut self,
        mut words: [u64; 2],
        marks: u16,
        flags: impl Fn(u64) -> u16,
        next: impl Fn(usize, u64) -> Option<[u64; 2]>,
    ) -> Option<(Numbers, u64)> {
        while flags(words[1]) == marks | NEXT {
            self.push(words)?;
            words = next(self.count, words[1])?;
        }
        let (mut readable, mut readable_bytes) = (self.count, self.bytes);
        while flags(words[1]) == marks | WRITE | NEXT {
            self.push(words)?;
            words = next(self.count, words[1])?;
        }
        let all_readable = self.count == readable;
        self.push(words)?;
        if flags(words[1]) != marks | WRITE {
            if flags(words[1]) != marks || !all_readable {
                return None;
            }
            (readable, readable_bytes) = (self.count, self.bytes);
        }
        Some((self.finish(readable, readable_bytes)?, words[1]))
    }

    /// Takes in all of a table, in which the flags say no more than which way the buffers go.
    #[inline(always)]
    pub(super) fn take<B: BitmapSlice>(
        mut self,
        table: &Descriptors<'_, B>,
        flags: impl Fn(u64) -> u16,
    ) -> Option<Numbers> {
        let mut next = descriptor(table, 0);
        while let Some(words) = next
            && flags(words[1]) & (WRITE | INDIRECT) == 0
        {
            self.push(words)?;
            next = descriptor(table, self.count);
        }
        let (readable, readable_bytes) = (self.count, self.bytes);
        while let Some(words) = next {
            if flags(words[1]) & (WRITE | INDIRECT) != WRITE {
                return None;
            }
            self.push(words)?;
            next = descriptor(table, self.count);
        }
        self.finish(readable, readable_bytes)
    }

    #[inline(always)]
    fn finish(self, readable: usize, readable_bytes: u64) -> Option<Numbers> {
        // No address in the upper half: with less than 2^32 bytes, no buffer runs past the end of the address space.
        // And no more bytes together than a chain may have.
        let fits = (self.addresses >> 31 | self.bytes) >> 32 == 0;
        fits.then_some(Numbers {
            count: self.count,
            readable,
            readable_bytes,
            bytes: self.bytes,
        })
    }
}
