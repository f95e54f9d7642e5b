// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains: what of a driver's descriptors becomes a list of buffers, in either layout.
//!
//! "The Virtqueue Descriptor Table" (2.7.5), "Descriptor Ring" of packed virtqueues (2.8.13).

use vm_memory::{GuestMemory, GuestMemoryError, Permissions};

use super::Buffers;
use super::reach::Reach;
use super::words::{Fault, Place, Words};

/// VIRTQ_DESC_F_NEXT.
pub(super) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub(super) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub(super) const INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u64 = 16;

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
    /// Room for the longest chain so far; those of this one come first.
    room: Vec<Segment>,
    count: usize,
    /// How many of the segments, and of their bytes, are for the device to read.
    readable: usize,
    readable_bytes: u64,
    bytes: u64,
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the device is to read.
    #[inline(always)]
    pub fn readable(&self) -> Buffers<'_> {
        Buffers::new(self.readable_segments(), self.readable_bytes)
    }

    /// What the device is to write.
    #[inline(always)]
    pub fn writable(&self) -> Buffers<'_> {
        // The sum has the parts.
        let bytes = self.bytes.wrapping_sub(self.readable_bytes);
        Buffers::new(self.writable_segments(), bytes)
    }

    /// What the device is to read, buffer by buffer as the driver cut it. Some may be empty.
    #[inline(always)]
    pub fn readable_segments(&self) -> &[Segment] {
        &self.room[..self.readable]
    }

    /// What the device is to write, buffer by buffer as the driver cut it. Some may be empty.
    #[inline(always)]
    pub fn writable_segments(&self) -> &[Segment] {
        &self.room[self.readable..self.count]
    }

    /// Begins anew, with at most `size` buffers. Until [`finish`](Filling::finish) the chain is the old one.
    #[inline(always)]
    pub(super) fn refill(&mut self, size: u16) -> Filling<'_> {
        Filling {
            chain: self,
            size: size.into(),
            count: 0,
            readable: 0,
            readable_bytes: 0,
            bytes: 0,
        }
    }
}

/// A chain that is being filled. Its numbers are apart, so that they stay in registers.
pub(super) struct Filling<'c> {
    chain: &'c mut Chain,
    /// Descriptors in the queue.
    size: usize,
    count: usize,
    readable: usize,
    readable_bytes: u64,
    bytes: u64,
}

impl Filling<'_> {
    /// Appends the buffer of a descriptor that stands at `index` of its table.
    #[inline(always)]
    pub(super) fn add(&mut self, index: u16, descriptor: Descriptor) -> Result<(), ChainError> {
        let Descriptor {
            address,
            length,
            flags,
            ..
        } = descriptor;
        if self.count >= self.size {
            // It was made from 16 bits.
            let size = self.size as u16;
            return Err(ChainError::TooLong { size });
        }
        if address.checked_add(u64::from(length)).is_none() {
            return Err(ChainError::Wraps { address, length });
        }
        // At most 2^33: no overflow, here or below.
        self.bytes = self.bytes.wrapping_add(u64::from(length));
        if self.bytes > 1 << 32 {
            return Err(ChainError::TooBig { bytes: self.bytes });
        }
        let count = self.count.wrapping_add(1);
        if flags & WRITE == 0 {
            if self.readable != self.count {
                return Err(ChainError::ReadableAfterWritable { index });
            }
            self.readable = count;
            self.readable_bytes = self.bytes;
        }
        if self.count >= self.chain.room.len() {
            grow(&mut self.chain.room, self.size);
        }
        if let Some(place) = self.chain.room.get_mut(self.count) {
            *place = Segment { address, length };
        }
        self.count = count;
        Ok(())
    }

    /// The same, to be gone on with elsewhere: a function that is not inlined wants it in memory, and this one
    /// may stay in registers.
    #[inline(always)]
    pub(super) fn apart(&mut self) -> Filling<'_> {
        Filling {
            chain: self.chain,
            size: self.size,
            count: self.count,
            readable: self.readable,
            readable_bytes: self.readable_bytes,
            bytes: self.bytes,
        }
    }

    /// Makes the chain what was added.
    #[inline(always)]
    pub(super) fn finish(&mut self) {
        self.chain.count = self.count;
        self.chain.readable = self.readable;
        self.chain.readable_bytes = self.readable_bytes;
        self.chain.bytes = self.bytes;
    }
}

/// Twice the room, at most what a queue of `size` needs.
#[cold]
#[inline(never)]
fn grow(room: &mut Vec<Segment>, size: usize) {
    let empty = Segment {
        address: 0,
        length: 0,
    };
    room.resize((2 * room.len()).max(16).min(size), empty);
}

/// "struct virtq_desc". In the packed layout the last two fields are the other way round, and `next` is the
/// buffer's identifier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
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

/// The table that an indirect descriptor at `index` points at, and how many descriptors it has. The
/// descriptor's WRITE flag means nothing (2.7.5.3.2).
pub(super) fn indirect_table<'m, M: GuestMemory + ?Sized>(
    reach: &Reach<'m, M>,
    index: u16,
    descriptor: Descriptor,
) -> Result<(Place<'m, M>, u32), ChainError> {
    let Descriptor {
        address,
        length,
        flags,
        ..
    } = descriptor;
    if flags & NEXT != 0 {
        return Err(ChainError::IndirectNext { index });
    }
    let bytes = u64::from(length);
    if length == 0 || !bytes.is_multiple_of(DESCRIPTOR) {
        return Err(ChainError::IndirectLength { length });
    }
    if address.checked_add(bytes).is_none() {
        return Err(ChainError::Wraps { address, length });
    }
    let place = Place::find(reach, address, bytes, Permissions::Read);
    Ok((place, length / DESCRIPTOR as u32))
}

/// A descriptor at `index` of a table, as its two words.
#[inline(always)]
pub(super) fn words(table: &impl Words, index: u16) -> Result<[u64; 2], ChainError> {
    match table.get::<[u64; 2]>(u64::from(index) * DESCRIPTOR) {
        Ok(words) => Ok(words.map(u64::from_le)),
        Err(Fault { source, .. }) => Err(ChainError::Unreadable { index, source }),
    }
}
