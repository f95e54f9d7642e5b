// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains: what of a driver's descriptors becomes a list of buffers, in either layout.
//!
//! "The Virtqueue Descriptor Table" (2.7.5), "Descriptor Ring" of packed virtqueues (2.8.13).

use vm_memory::{GuestMemory, GuestMemoryError, Permissions};

use super::Buffers;
use super::reach::{Reach, Slice};
use super::refused::{
    Refused, indirect_length, indirect_next, readable_after_writable, too_big, too_long,
    unreadable, wraps,
};
use super::words::{Place, Words};

/// VIRTQ_DESC_F_NEXT.
pub(super) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub(super) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub(super) const INDIRECT: u16 = 4;

/// Bytes of all of a chain's buffers, at most (2.7.5.2).
pub(super) const MOST_BYTES: u64 = 1 << 32;

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 1 << DESCRIPTOR_BITS;
pub(super) const DESCRIPTOR_BITS: u32 = 4;

/// Why a chain was refused.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// An index outside its table.
    #[error("descriptor {index} of a table of {entries}")]
    Index {
        /// What the driver wrote.
        index: u16,
        /// Descriptors in the table.
        entries: u32,
    },
    /// More descriptors than the queue holds, as when a chain loops. "A driver MUST NOT create a
    /// descriptor chain longer than the Queue Size of the device" (2.7.5.3.1).
    #[error("more than {size} descriptors")]
    TooLong {
        /// Descriptors in the queue.
        size: u16,
    },
    /// More than 2^32 bytes in total (2.7.5.2).
    #[error("{bytes} bytes in total")]
    TooBig {
        /// Bytes up to the descriptor that was one too many.
        bytes: u64,
    },
    /// A buffer that runs past the end of the address space.
    #[error("buffer {address:#x}+{length:#x} wraps")]
    Wraps {
        /// First address.
        address: u64,
        /// Bytes.
        length: u32,
    },
    /// A buffer to read after a buffer to write (2.7.4.2).
    #[error("descriptor {index} is to be read, after one to be written")]
    ReadableAfterWritable {
        /// Index in its table.
        index: u16,
    },
    /// An indirect descriptor, and the feature was not negotiated.
    #[error("descriptor {index} is indirect, which was not negotiated")]
    IndirectNotNegotiated {
        /// Index in its table.
        index: u16,
    },
    /// An indirect descriptor in an indirect table.
    #[error("descriptor {index} of an indirect table is indirect")]
    IndirectNested {
        /// Index in its table.
        index: u16,
    },
    /// An indirect descriptor that also has a next one.
    #[error("descriptor {index} is indirect and has a next one")]
    IndirectNext {
        /// Index in its table.
        index: u16,
    },
    /// An indirect table that is empty or not a whole number of descriptors.
    #[error("indirect table of {length} bytes")]
    IndirectLength {
        /// Bytes.
        length: u32,
    },
    /// A table is not in memory that the device may read.
    #[error("descriptor {index} cannot be read")]
    Unreadable {
        /// Index in its table.
        index: u16,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
}

/// A buffer of the driver. It may be empty, and it may be anywhere: accesses to it can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Segment {
    /// First address. `address + length` does not wrap.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// The buffers of one chain. Reused from chain to chain, so that popping allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Room for the longest chain of the largest queue so far; those of this chain come first.
    room: Vec<Segment>,
    numbers: Numbers,
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// Becomes the same as `other`, whose buffers are the only thing that is copied.
    pub fn copy_from(&mut self, other: &Self) {
        self.room.clear();
        let filled = other.room.get(..other.numbers.count);
        self.room.extend_from_slice(filled.unwrap_or_default());
        self.numbers = other.numbers;
    }

    /// What the device is to read.
    #[inline(always)]
    pub fn readable(&self) -> Buffers<'_> {
        Buffers::new(self.readable_segments(), self.numbers.readable_bytes)
    }

    /// What the device is to write.
    #[inline(always)]
    pub fn writable(&self) -> Buffers<'_> {
        Buffers::new(self.writable_segments(), self.writable_bytes())
    }

    /// Bytes that the device is to read, at most 2^32.
    #[inline(always)]
    pub fn readable_bytes(&self) -> u64 {
        self.numbers.readable_bytes
    }

    /// Bytes that the device is to write, at most 2^32.
    #[inline(always)]
    pub fn writable_bytes(&self) -> u64 {
        // The sum has the parts.
        self.numbers.bytes.wrapping_sub(self.numbers.readable_bytes)
    }

    /// Where the last byte is that the device is to write, if there is any.
    #[inline(always)]
    pub fn last_writable(&self) -> Option<u64> {
        let mut segments = self.writable_segments().iter().rev();
        let last = segments.find(|segment| segment.length > 0)?;
        // Neither goes below 0 nor wraps: it has a byte, and its end is no further than memory's.
        Some(
            last.address
                .wrapping_add(u64::from(last.length.wrapping_sub(1))),
        )
    }

    /// What the device is to read, buffer by buffer as the driver cut it. Some may be empty.
    #[inline(always)]
    pub fn readable_segments(&self) -> &[Segment] {
        // They are there: the room has as many as were counted.
        self.room.get(..self.numbers.readable).unwrap_or_default()
    }

    /// What the device is to write, buffer by buffer as the driver cut it. Some may be empty.
    #[inline(always)]
    pub fn writable_segments(&self) -> &[Segment] {
        let Numbers {
            readable, count, ..
        } = self.numbers;
        self.room.get(readable..count).unwrap_or_default()
    }

    /// Room for `size` buffers. Until [`set`](Self::set) the chain is the old one.
    #[inline(always)]
    pub(super) fn room(&mut self, size: u16) -> &mut [Segment] {
        let size = usize::from(size);
        if self.room.len() < size {
            grow(&mut self.room, size);
        }
        self.room.get_mut(..size).unwrap_or_default()
    }

    /// Begins anew, with at most `size` buffers.
    pub(super) fn refill(&mut self, size: u16) -> Filling<'_> {
        Filling {
            room: self.room(size),
            count: 0,
            readable: 0,
            readable_bytes: 0,
            bytes: 0,
        }
    }

    /// Makes the chain what its room was filled with, unless that is too much.
    #[inline(always)]
    pub(super) fn set(&mut self, numbers: Numbers) -> Result<(), Refused> {
        if numbers.bytes > MOST_BYTES {
            let filled = self.room.get(..numbers.count);
            return Err(too_big(filled.unwrap_or_default()));
        }
        self.numbers = numbers;
        Ok(())
    }

    /// The same, for numbers that are known not to be too much.
    #[inline(always)]
    pub(super) fn set_quick(&mut self, numbers: Numbers) {
        self.numbers = numbers;
    }
}

/// How much of a chain's room is filled, and with what.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    pub(super) count: usize,
    /// How many of the segments, and of their bytes, are for the device to read.
    pub(super) readable: usize,
    pub(super) readable_bytes: u64,
    pub(super) bytes: u64,
}

/// A chain that is being filled. Its numbers are apart, so that they stay in registers.
pub(super) struct Filling<'c> {
    /// As many as the queue has descriptors: no chain has more.
    room: &'c mut [Segment],
    /// How many are filled.
    count: usize,
    readable: usize,
    readable_bytes: u64,
    bytes: u64,
}

impl Filling<'_> {
    /// Appends a descriptor's buffer, whichever way it goes.
    #[inline(always)]
    fn push(&mut self, descriptor: &Descriptor) -> Result<(), Refused> {
        let &Descriptor {
            address, length, ..
        } = descriptor;
        let bytes = u64::from(length);
        let size = self.room.len();
        let Some(place) = self.room.get_mut(self.count) else {
            return Err(too_long(size));
        };
        if address.checked_add(bytes).is_none() {
            return Err(wraps(address, length));
        }
        // At most 2^15 descriptors of less than 2^32 bytes: no overflow. Whether it is too much, `Chain::set` says.
        self.bytes = self.bytes.wrapping_add(bytes);
        // Not beyond the room.
        self.count = self.count.wrapping_add(1);
        *place = Segment { address, length };
        Ok(())
    }

    /// Appends the buffer of a descriptor that stands at `index` of its table.
    #[inline(always)]
    pub(super) fn add(&mut self, index: u16, descriptor: &Descriptor) -> Result<(), Refused> {
        let before = self.count;
        self.push(descriptor)?;
        if descriptor.flags & WRITE == 0 {
            if self.readable != before {
                return Err(readable_after_writable(index));
            }
            self.all_readable();
        }
        Ok(())
    }

    /// All until now is for the device to read.
    #[inline(always)]
    fn all_readable(&mut self) {
        self.readable = self.count;
        self.readable_bytes = self.bytes;
    }

    /// Appends `first`, which stands at `index`, and what `next` says comes after each, to the chain's end.
    #[inline(always)]
    pub(super) fn follow(
        &mut self,
        mut index: u16,
        first: Descriptor,
        mut next: impl FnMut(&Descriptor) -> Result<(u16, Descriptor), Refused>,
    ) -> Result<Met, Refused> {
        let mut descriptor = first;
        // Most chains begin with some that are read, have a next one, and nothing else. What goes on in an indirect
        // table may have begun with some that are written.
        if self.readable == self.count {
            while descriptor.flags & (NEXT | WRITE | INDIRECT) == NEXT {
                self.push(&descriptor)?;
                (index, descriptor) = next(&descriptor)?;
            }
            self.all_readable();
        }
        // And they end with some that are written.
        while descriptor.flags & (WRITE | INDIRECT) == WRITE {
            self.push(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(Met::End(descriptor));
            }
            (index, descriptor) = next(&descriptor)?;
        }
        if descriptor.flags & INDIRECT != 0 {
            return Ok(Met::Indirect(index, descriptor));
        }
        // To be read: if it has a next one, one to be written stood before it.
        self.add(index, &descriptor)?;
        Ok(Met::End(descriptor))
    }

    /// What it was filled with.
    #[inline(always)]
    pub(super) fn finish(self) -> Numbers {
        Numbers {
            count: self.count,
            readable: self.readable,
            readable_bytes: self.readable_bytes,
            bytes: self.bytes,
        }
    }
}

/// Where following a chain has ended.
pub(super) enum Met {
    /// At its last descriptor.
    End(Descriptor),
    /// At an indirect descriptor, which stands at that index and was not added.
    Indirect(u16, Descriptor),
}

/// Room for as many buffers as a queue of `size` can have in a chain.
#[cold]
#[inline(never)]
fn grow(room: &mut Vec<Segment>, size: usize) {
    let empty = Segment {
        address: 0,
        length: 0,
    };
    room.resize(size, empty);
}

/// "struct virtq_desc". In the packed layout the last two fields are the other way round, and `next` is the
/// buffer's identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    /// From the two words of the split layout. Truncations on purpose: one field each.
    #[inline(always)]
    pub(super) fn split([address, rest]: [u64; 2]) -> Self {
        Self {
            address,
            length: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}

/// A table that an indirect descriptor points at.
#[derive(Clone, Copy)]
pub(super) struct Table {
    address: u64,
    /// A multiple of a descriptor's, and not 0. The end does not wrap.
    bytes: u32,
}

impl Table {
    /// The table that the indirect descriptor at `index` points at. The descriptor's WRITE flag means nothing
    /// (2.7.5.3.2).
    #[inline(always)]
    pub(super) fn of(index: u16, descriptor: &Descriptor) -> Result<Self, Refused> {
        let &Descriptor {
            address,
            length,
            flags,
            ..
        } = descriptor;
        if flags & NEXT != 0 {
            return Err(indirect_next(index));
        }
        if length == 0 || !u64::from(length).is_multiple_of(DESCRIPTOR) {
            return Err(indirect_length(length));
        }
        if address.checked_add(length.into()).is_none() {
            return Err(wraps(address, length));
        }
        Ok(Self {
            address,
            bytes: length,
        })
    }

    /// Descriptors in it.
    #[inline(always)]
    pub(super) fn entries(self) -> u32 {
        self.bytes >> DESCRIPTOR_BITS
    }

    /// The table, if it is in memory whose place is known.
    #[inline(always)]
    pub(super) fn known<'m, M: GuestMemory + ?Sized>(
        self,
        reach: &Reach<'m, M>,
    ) -> Option<Slice<'m, M>> {
        reach.known(self.address, self.bytes as usize)
    }

    /// The table, wherever it is.
    pub(super) fn find<'m, M: GuestMemory + ?Sized>(self, reach: &Reach<'m, M>) -> Place<'m, M> {
        Place::find(reach, self.address, self.bytes.into(), Permissions::Read)
    }
}

/// The descriptor at `index` of a table of `entries`, as its two words.
#[inline(always)]
pub(super) fn words(table: &impl Words, index: u16, entries: u32) -> Result<[u64; 2], Refused> {
    // The table ends behind its last entry, and no access goes beyond it.
    match table.get::<[u64; 2]>(u64::from(index) << DESCRIPTOR_BITS) {
        Ok(words) => Ok(words.map(u64::from_le)),
        Err(fault) => Err(unreadable(index, entries, fault)),
    }
}
