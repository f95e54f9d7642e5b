// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Virtqueues, the device's side.
//!
//! ```text
//!   descriptor area   what the buffers are              read by us; in packed, which are used: written by us
//!   driver area       which are available, or our wish to interrupt it         read by us
//!   device area       which are used, or its wish to notify us                 written by us
//!
//!   map --> pop --> Chain, Head --> the device works --> complete(Head, written) --> publish --> interrupt?
//! ```
//!
//! Everything that we read there may change under our feet. So each word is read once, kept
//! here, checked, and never read again; or all that was read of a chain is forgotten, and the chain read anew from its
//! start. Chains come by one of two ways: a short one for the usual, which only says that a chain is not one of
//! them, and a long one, which takes any and says what is wrong. The first thing that no driver may do ends the queue: it is
//! reported once, and from then on the queue looks empty. Whoever gets the report asks for a reset.
//!
//! A queue has one of two layouts, split or packed; devices cannot tell. If the driver relies on the order of
//! use (IN_ORDER), completions that come early are held back.
//!
//! "Virtqueues" (2.6), "Split Virtqueues" (2.7), "Packed Virtqueues" (2.8).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod areas;
mod buffers;
mod chain;
mod error;
mod in_order;
#[cfg(feature = "vhost-user")]
pub(crate) mod notes;
mod packed;
mod quick;
mod reach;
mod refused;
mod split;
mod words;

use vm_memory::{GuestAddress, GuestMemory};

use areas::AreaShape;
pub(crate) use areas::Layout;
pub use buffers::Buffers;
pub use chain::{Chain, ChainError, Segment};
pub use error::{Area, QueueError};
use in_order::InOrder;
use packed::PackedRing;
pub use reach::{Reach, Slice};
use split::SplitRing;

use crate::features::Features;

/// The largest number of descriptors in a queue.
pub const MAX_SIZE: u16 = 1 << 15;

/// Where a queue is, as the driver has set it up. Not checked yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
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

/// Where a queue with nothing in flight goes on, for save and restore.
///
/// Split: the next index to take and to use. Packed: the next place, with the wrap counter in bit 15.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Position {
    /// Of the next available chain.
    pub available: u16,
    /// Of the next used one.
    pub used: u16,
}

impl Position {
    /// As after a reset.
    pub(crate) fn start(layout: Layout) -> Self {
        let both = match layout {
            Layout::Split => 0,
            Layout::Packed => 1 << 15,
        };
        Self {
            available: both,
            used: both,
        }
    }
}

/// A chain that was popped and must be completed.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the driver waits for this chain: complete it"]
pub struct Head {
    /// The descriptors of the ring that it took, above them its place among the chains under way, if that matters, above
    /// that the index, where a used descriptor has it, and above all where it is noted, if it is. In one word: parts that
    /// are stored one by one and loaded together cost more than all else that popping a chain does.
    word: u64,
}

impl Head {
    #[inline(always)]
    fn new(index: u16, slots: u16) -> Self {
        Self {
            word: u64::from(index) << 32 | u64::from(slots),
        }
    }

    /// Truncated on purpose.
    #[inline(always)]
    fn slots(&self) -> u16 {
        self.word as u16
    }

    /// The index, above 32 bits of nothing, and below 16.
    #[inline(always)]
    fn index_above(&self) -> u64 {
        self.word & 0xffff << 32
    }

    /// Gives it a place among the chains under way, once.
    fn set_place(&mut self, place: u16) {
        self.word |= u64::from(place) << 16;
    }

    fn place(&self) -> u16 {
        (self.word >> 16) as u16
    }

    /// Says where it is noted, once.
    #[cfg(feature = "vhost-user")]
    fn set_entry(&mut self, entry: u16) {
        self.word |= u64::from(entry) << 48;
    }

    #[cfg(feature = "vhost-user")]
    fn entry(&self) -> u16 {
        (self.word >> 48) as u16
    }

    /// What the driver knows the chain by: the index of its first descriptor, or in a packed queue its
    /// identifier.
    #[inline(always)]
    pub fn index(&self) -> u16 {
        (self.word >> 32) as u16
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
    config: QueueConfig,
    ring: Ring,
    guard: Guard,
}

/// What may stand before a ring.
#[derive(Debug)]
struct Guard {
    failed: bool,
    order: Option<InOrder>,
    /// Where what is under way is noted.
    #[cfg(feature = "vhost-user")]
    notes: Option<Box<Notes>>,
}

impl Guard {
    /// Whether it is to be asked each time: an error has ended the queue, or completions may have to wait, or what is
    /// under way is noted.
    #[inline(always)]
    fn special(&self) -> bool {
        #[cfg(feature = "vhost-user")]
        let noted = self.notes.is_some();
        #[cfg(not(feature = "vhost-user"))]
        let noted = false;
        self.failed || noted || self.order.is_some()
    }
}

#[derive(Debug)]
enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

/// Runs the same on either layout.
macro_rules! either {
    ($ring:expr, $bound:ident => $run:expr) => {
        match $ring {
            Ring::Split($bound) => $run,
            Ring::Packed($bound) => $run,
        }
    };
}

#[cfg(feature = "vhost-user")]
pub(crate) use notes::{Begun, Left, Notes};

mod mapped;

pub use mapped::Mapped;

impl Layout {
    /// The layout that was negotiated.
    pub(crate) fn of(features: Features) -> Self {
        if features.contains(Features::RING_PACKED) {
            Self::Packed
        } else {
            Self::Split
        }
    }

    /// Whether a queue may have that size: any, if it is packed (2.8.10.1).
    pub(crate) fn allows(self, size: u16) -> bool {
        (1..=MAX_SIZE).contains(&size) && (self == Self::Packed || size.is_power_of_two())
    }
}

impl Queue {
    /// A queue at rest, as after a reset: nothing available, nothing used. `features` are those that were
    /// negotiated; they choose the layout.
    ///
    /// Checks size, alignment, and that the areas are in `memory`.
    pub fn new<M: GuestMemory + ?Sized>(
        config: &QueueConfig,
        features: Features,
        memory: &M,
    ) -> Result<Self, QueueError> {
        let position = Position::start(Layout::of(features));
        Self::restored(config, features, memory, position)
    }

    /// A queue that goes on where one of the same configuration was, with nothing in flight.
    pub fn restored<M: GuestMemory + ?Sized>(
        config: &QueueConfig,
        features: Features,
        memory: &M,
        position: Position,
    ) -> Result<Self, QueueError> {
        let (size, layout) = (config.size, Layout::of(features));
        if !layout.allows(size) {
            return Err(QueueError::Size { size });
        }
        for shape in config.areas(layout) {
            check(&shape, memory)?;
        }
        let nowhere = QueueError::Position { size, position };
        let ring = match layout {
            Layout::Split if position.available == position.used => {
                Ring::Split(SplitRing::new(size, features, position))
            }
            Layout::Split => return Err(nowhere),
            Layout::Packed => {
                Ring::Packed(PackedRing::new(size, features, position).ok_or(nowhere)?)
            }
        };
        let ordered = features.contains(Features::IN_ORDER);
        Ok(Self {
            config: *config,
            ring,
            guard: Guard {
                failed: false,
                order: ordered.then(|| InOrder::new(size)),
                #[cfg(feature = "vhost-user")]
                notes: None,
            },
        })
    }

    /// Notes what is under way from now on, and takes first what `notes` say that another process has begun. Before
    /// anything is taken.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn note_in(&mut self, notes: Notes) {
        self.guard.notes = Some(Box::new(notes));
    }

    /// Where it is, which was checked.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        either!(&self.ring, ring => ring.size())
    }

    /// Where it would go on. Means something only while nothing is in flight: all that was popped was
    /// completed and published.
    pub fn position(&self) -> Position {
        either!(&self.ring, ring => ring.position())
    }

    /// Whether an error has ended this queue.
    pub fn is_failed(&self) -> bool {
        self.guard.failed
    }

    /// Ends this queue for a reason that only the device can see, as a protocol error would.
    pub fn fail(&mut self) {
        self.guard.failed = true;
    }

    /// Finds the queue in `memory`, for a batch of work on it.
    #[inline(always)]
    pub fn map<'a, M: GuestMemory + ?Sized>(&'a mut self, memory: &'a M) -> Mapped<'a, M> {
        let layout = match self.ring {
            Ring::Split(_) => Layout::Split,
            Ring::Packed(_) => Layout::Packed,
        };
        Mapped::find(self, layout, memory)
    }
}

fn check<M: GuestMemory + ?Sized>(shape: &AreaShape, memory: &M) -> Result<(), QueueError> {
    let &AreaShape {
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
            .is_ok_and(|length| memory.check_range(GuestAddress(address), length, access));
    if !mapped {
        return Err(QueueError::Unmapped {
            area,
            address,
            length,
        });
    }
    Ok(())
}
