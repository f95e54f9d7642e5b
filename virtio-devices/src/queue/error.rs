// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What no driver may do to a queue.

use super::{ChainError, Position};

/// One of a queue's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Area {
    /// Descriptor table.
    Descriptor,
    /// Available ring.
    Driver,
    /// Used ring.
    Device,
}

/// What the driver did to a queue that no driver may do.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Zero, not a power of two, or above [`MAX_SIZE`](super::MAX_SIZE). A packed queue may have any other.
    #[error("a queue of {size} descriptors")]
    Size {
        /// Descriptors asked for.
        size: u16,
    },
    /// An area is not aligned as it must be.
    #[error("{area:?} area at {address:#x} is not aligned to {alignment}")]
    Alignment {
        /// Which one.
        area: Area,
        /// Where the driver put it.
        address: u64,
        /// Bytes.
        alignment: u64,
    },
    /// An area is not all in memory that the device may use.
    #[error("{area:?} area {address:#x}+{length:#x} is not in guest memory")]
    Unmapped {
        /// Which one.
        area: Area,
        /// Where the driver put it.
        address: u64,
        /// Bytes.
        length: u64,
    },
    /// A ring could not be accessed, although it was in memory at first.
    #[error("access to a ring failed")]
    Access {
        /// Where, if the ring was not in one piece on the host.
        address: Option<u64>,
        /// Why.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// More was made available than the queue holds.
    #[error("available index {available} with {used} used, in a queue of {size}")]
    Available {
        /// The driver's index.
        available: u16,
        /// The index that we last published.
        used: u16,
        /// Descriptors in the queue.
        size: u16,
    },
    /// A state to go on from that no queue with nothing in flight has.
    #[error("no queue of {size} goes on at {position:x?}")]
    Position {
        /// Descriptors in the queue.
        size: u16,
        /// What was asked for.
        position: Position,
    },
    /// A chain is malformed.
    #[error("chain {head} is malformed")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
        /// What is wrong.
        #[source]
        source: ChainError,
    },
}

impl QueueError {
    /// The chain at `head` is malformed.
    #[cold]
    #[inline(never)]
    #[expect(
        clippy::boxed_local,
        reason = "it comes in a box, and is unpacked only here"
    )]
    pub(super) fn chain(head: u16, source: Box<ChainError>) -> Box<Self> {
        let source = *source;
        Box::new(Self::Chain { head, source })
    }
}

/// Queues hand errors out as they are, and pass them on in a box.
impl From<Box<Self>> for QueueError {
    #[cold]
    fn from(error: Box<Self>) -> Self {
        *error
    }
}
