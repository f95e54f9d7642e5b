// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Descriptor chains: from a head index to a list of buffers.
//!
//! ```text
//!   table   [ addr len flags next ]  16 bytes a descriptor
//!              |         |
//!              |         '- NEXT: go on at `next`     WRITE: for the device to write
//!              '- INDIRECT: the chain goes on, and ends, in a table of its own at `addr`
//! ```
//!
//! "The Virtqueue Descriptor Table" (2.7.5).

use vm_memory::{GuestMemory, GuestMemoryError, Permissions};

use super::Buffers;
use super::view::{Fault, View};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u32 = 16;

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
    #[error("descriptor at {address:#x} cannot be read")]
    Unreadable {
        /// Where.
        address: u64,
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

/// Which way a buffer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Readable,
    Writable,
}

/// The buffers of one chain. Reused from chain to chain, so that popping allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    segments: Vec<Segment>,
    readable: usize,
}

impl Chain {
    /// An empty chain.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the device is to read.
    pub fn readable(&self) -> Buffers<'_> {
        Buffers::new(&self.segments[..self.readable])
    }

    /// What the device is to write.
    pub fn writable(&self) -> Buffers<'_> {
        Buffers::new(&self.segments[self.readable..])
    }

    /// Takes in all of a chain, or fails.
    pub(super) fn fill<M: GuestMemory + ?Sized>(
        &mut self,
        descriptors: Descriptors<'_, '_, M>,
    ) -> Result<(), ChainError> {
        self.segments.clear();
        self.readable = 0;
        for item in descriptors {
            let (segment, direction) = item?;
            self.segments.push(segment);
            if direction == Direction::Readable {
                self.readable = self.segments.len();
            }
        }
        Ok(())
    }
}

/// Where in a chain indirect descriptors stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Indirect {
    Refused,
    Allowed,
    Inside,
}

/// The descriptors of a chain. Ends: after the last one, or after an error, which is then the last item.
/// Never yields more than the queue has descriptors.
pub(super) struct Descriptors<'t, 'm, M: GuestMemory + ?Sized> {
    memory: &'m M,
    table: &'t View<'m, M>,
    /// The indirect table that the chain goes on in.
    inner: Option<View<'m, M>>,
    /// Descriptors in the current table.
    entries: u32,
    next: Option<u16>,
    size: u16,
    left: u16,
    bytes: u64,
    direction: Direction,
    indirect: Indirect,
}

impl<'t, 'm, M: GuestMemory + ?Sized> Descriptors<'t, 'm, M> {
    /// The chain that starts at `head` of `table`, in a queue of `size`.
    pub(super) fn new(
        memory: &'m M,
        table: &'t View<'m, M>,
        size: u16,
        head: u16,
        indirect: bool,
    ) -> Self {
        Self {
            memory,
            table,
            inner: None,
            entries: u32::from(size),
            next: Some(head),
            size,
            left: size,
            bytes: 0,
            direction: Direction::Readable,
            indirect: if indirect {
                Indirect::Allowed
            } else {
                Indirect::Refused
            },
        }
    }

    fn step(&mut self, index: u16) -> Result<(Segment, Direction), ChainError> {
        let mut index = index;
        let mut descriptor = self.load(index)?;
        if descriptor.flags & INDIRECT != 0 {
            self.enter(index, &descriptor)?;
            index = 0;
            descriptor = self.load(index)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(ChainError::IndirectNested { index });
            }
        }
        self.left = self
            .left
            .checked_sub(1)
            .ok_or(ChainError::TooLong { size: self.size })?;
        let Descriptor {
            address,
            length,
            flags,
            next,
        } = descriptor;
        let direction = if flags & WRITE != 0 {
            Direction::Writable
        } else {
            Direction::Readable
        };
        if (self.direction, direction) == (Direction::Writable, Direction::Readable) {
            return Err(ChainError::ReadableAfterWritable { index });
        }
        self.direction = direction;
        if address.checked_add(u64::from(length)).is_none() {
            return Err(ChainError::Wraps { address, length });
        }
        // At most 32768 times 2^32: no overflow.
        self.bytes += u64::from(length);
        if self.bytes > 1 << 32 {
            return Err(ChainError::TooBig { bytes: self.bytes });
        }
        self.next = (flags & NEXT != 0).then_some(next);
        Ok((Segment { address, length }, direction))
    }

    /// Goes on in the table that `descriptor` points at. Its WRITE flag means nothing (2.7.5.3.2).
    fn enter(&mut self, index: u16, descriptor: &Descriptor) -> Result<(), ChainError> {
        match self.indirect {
            Indirect::Refused => return Err(ChainError::IndirectNotNegotiated { index }),
            Indirect::Inside => return Err(ChainError::IndirectNested { index }),
            Indirect::Allowed => self.indirect = Indirect::Inside,
        }
        let Descriptor {
            address,
            length,
            flags,
            ..
        } = *descriptor;
        if flags & NEXT != 0 {
            return Err(ChainError::IndirectNext { index });
        }
        if length == 0 || !length.is_multiple_of(DESCRIPTOR) {
            return Err(ChainError::IndirectLength { length });
        }
        if address.checked_add(u64::from(length)).is_none() {
            return Err(ChainError::Wraps { address, length });
        }
        let length64 = u64::from(length);
        self.inner = Some(View::new(self.memory, address, length64, Permissions::Read));
        self.entries = length / DESCRIPTOR;
        Ok(())
    }

    fn load(&self, index: u16) -> Result<Descriptor, ChainError> {
        if u32::from(index) >= self.entries {
            return Err(ChainError::Index {
                index,
                entries: self.entries,
            });
        }
        // Inside: both tables have `entries` descriptors.
        let offset = u64::from(index) * u64::from(DESCRIPTOR);
        let table = self.inner.as_ref().unwrap_or(self.table);
        let raw = table
            .read128(offset)
            .map_err(|Fault { address, source }| ChainError::Unreadable { address, source })?;
        // Truncations on purpose: these are the fields of "struct virtq_desc".
        Ok(Descriptor {
            address: raw as u64,
            length: (raw >> 64) as u32,
            flags: (raw >> 96) as u16,
            next: (raw >> 112) as u16,
        })
    }
}

impl<M: GuestMemory + ?Sized> Iterator for Descriptors<'_, '_, M> {
    type Item = Result<(Segment, Direction), ChainError>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = self.next.take()?;
        Some(self.step(index))
    }
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}
