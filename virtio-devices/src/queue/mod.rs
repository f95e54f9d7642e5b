// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtqueues, the device's side.
//!
//! ```text
//!   descriptor area   what the buffers are             read by us
//!   driver area       which are available (in split)   read by us
//!   device area       which are used      (in split)   written by us
//!
//!   map --> pop --> Chain, Head --> the device works --> complete(Head, written) --> publish --> interrupt?
//! ```
//!
//! Everything in the three areas but the last may change under our feet. So each word is read once, kept
//! here, checked, and never read again. The first thing that no driver may do ends the queue: it is
//! reported once, and from then on the queue looks empty. Whoever gets the report asks for a reset.
//!
//! "Virtqueues" (2.6), "Split Virtqueues" (2.7).

mod buffers;
mod chain;
mod split;
mod view;

use vm_memory::{GuestAddress, GuestMemory};

pub use buffers::Buffers;
pub use chain::{Chain, ChainError, Segment};
use split::{AreaShape, Areas, SplitRing};

use crate::features::Features;

/// The largest number of descriptors in a queue.
pub const MAX_SIZE: u16 = 1 << 15;

/// Where a queue is, as the driver has set it up. Not checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QueueConfig {
    /// Number of descriptors.
    pub size: u16,
    /// Address of the descriptor area (split: the descriptor table).
    pub descriptor_area: u64,
    /// Address of the driver area (split: the available ring).
    pub driver_area: u64,
    /// Address of the device area (split: the used ring).
    pub device_area: u64,
}

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
    /// Zero, not a power of two, or above [`MAX_SIZE`].
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
    #[error("access to a ring at {address:#x} failed")]
    Access {
        /// Where.
        address: u64,
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

/// A chain that was popped and must be completed.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the driver waits for this chain: complete it"]
pub struct Head(u16);

impl Head {
    /// Index of the chain's first descriptor.
    pub fn index(&self) -> u16 {
        self.0
    }
}

/// Whether the driver wants an interrupt for what was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a driver that waits for an interrupt waits forever"]
pub enum Notify {
    /// It does.
    Yes,
    /// It does not, or nothing was published.
    No,
}

/// A virtqueue.
#[derive(Debug)]
pub struct Queue {
    ring: SplitRing,
    failed: bool,
}

impl Queue {
    /// A queue at rest, as after a reset: nothing available, nothing used.
    ///
    /// Checks size, alignment, and that the areas are in `memory`.
    pub fn new<M: GuestMemory + ?Sized>(
        config: &QueueConfig,
        features: Features,
        memory: &M,
    ) -> Result<Self, QueueError> {
        let size = config.size;
        if !size.is_power_of_two() || size > MAX_SIZE {
            return Err(QueueError::Size { size });
        }
        for shape in config.areas() {
            let AreaShape {
                area,
                address,
                alignment,
                length,
                access,
            } = shape;
            if !address.is_multiple_of(alignment) {
                return Err(QueueError::Alignment {
                    area,
                    address,
                    alignment,
                });
            }
            // The sum is checked first: not every `GuestMemory` does.
            let mapped = address.checked_add(length).is_some()
                && usize::try_from(length)
                    .is_ok_and(|l| memory.check_range(GuestAddress(address), l, access));
            if !mapped {
                return Err(QueueError::Unmapped {
                    area,
                    address,
                    length,
                });
            }
        }
        Ok(Self {
            ring: SplitRing::new(config, features),
            failed: false,
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether an error has ended this queue.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Ends this queue for a reason that only the device can see, as a protocol error would.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// Finds the queue in `memory`, for a batch of work on it.
    pub fn map<'a, M: GuestMemory + ?Sized>(&'a mut self, memory: &'a M) -> Mapped<'a, M> {
        let areas = self.ring.find(memory);
        Mapped { queue: self, areas }
    }
}

/// A queue and the memory it lies in, for the length of a batch: what an IOMMU says of the rings is asked
/// once, not for each word.
pub struct Mapped<'a, M: GuestMemory + ?Sized> {
    queue: &'a mut Queue,
    areas: Areas<'a, M>,
}

impl<M: GuestMemory + ?Sized> std::fmt::Debug for Mapped<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped")
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

impl<M: GuestMemory + ?Sized> Mapped<'_, M> {
    /// As [`Queue::fail`].
    pub fn fail(&mut self) {
        self.queue.fail();
    }

    /// Takes the next available chain and puts its buffers in `chain`; `None` if there is none, or the
    /// queue has failed.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        if self.queue.failed {
            return Ok(None);
        }
        let popped = self.queue.ring.pop(&self.areas, chain);
        self.queue.latch(popped)
    }

    /// Puts a chain in the used ring. The driver does not see it until [`publish`](Self::publish).
    ///
    /// `written` is how many bytes from the start of the chain's writable part were written.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "taken by value so that no chain is completed twice"
    )]
    pub fn complete(&mut self, head: Head, written: u32) -> Result<(), QueueError> {
        if self.queue.failed {
            return Ok(());
        }
        let completed = self.queue.ring.complete(&self.areas, head.0, written);
        self.queue.latch(completed)
    }

    /// Shows the driver all that was completed, at once.
    ///
    /// "Used Buffer Notification Suppression" (2.7.7).
    pub fn publish(&mut self) -> Result<Notify, QueueError> {
        let published = self.queue.ring.publish(&self.areas);
        if self.queue.failed && published.is_err() {
            return Ok(Notify::No);
        }
        self.queue.latch(published)
    }

    /// Asks the driver not to notify: we are looking anyway. A hint.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        if self.queue.failed {
            return Ok(());
        }
        let done = self.queue.ring.disable_kicks(&self.areas);
        self.queue.latch(done)
    }

    /// Asks the driver to notify, then looks again: true if something became available meanwhile, for which
    /// no notification will come.
    ///
    /// "Available Buffer Notification Suppression" (2.7.10).
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        if self.queue.failed {
            return Ok(false);
        }
        let more = self.queue.ring.enable_kicks(&self.areas);
        self.queue.latch(more)
    }
}

impl Queue {
    fn latch<T>(&mut self, result: Result<T, QueueError>) -> Result<T, QueueError> {
        self.failed |= result.is_err();
        result
    }
}
