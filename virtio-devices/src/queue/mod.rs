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
//! here, checked, and never read again. The first thing that no driver may do ends the queue: it is
//! reported once, and from then on the queue looks empty. Whoever gets the report asks for a reset.
//!
//! A queue has one of two layouts, split or packed; devices cannot tell. If the driver relies on the order of
//! use (IN_ORDER), completions that come early are held back.
//!
//! "Virtqueues" (2.6), "Split Virtqueues" (2.7), "Packed Virtqueues" (2.8).

mod areas;
mod buffers;
mod chain;
mod error;
mod in_order;
mod packed;
mod reach;
mod split;
mod words;

use vm_memory::{GuestAddress, GuestMemory};

pub(crate) use areas::Layout;
use areas::{AreaShape, Areas, Places};
pub use buffers::Buffers;
pub use chain::{Chain, ChainError, Segment};
pub use error::{Area, QueueError};
use in_order::InOrder;
use packed::PackedRing;
pub use reach::{Reach, Slice};
use split::SplitRing;
use words::Scattered;

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
    fn start(layout: Layout) -> Self {
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
    /// The index, above it the descriptors of the ring that it took, and above those its place among the
    /// chains under way, if that matters. In one word: parts that are stored one by one and loaded together
    /// cost more than all else that popping a chain does.
    word: u64,
}

impl Head {
    #[inline(always)]
    fn new(index: u16, slots: u16) -> Self {
        Self {
            word: u64::from(index) | u64::from(slots) << 16,
        }
    }

    /// Truncated on purpose.
    #[inline(always)]
    fn slots(&self) -> u16 {
        (self.word >> 16) as u16
    }

    /// Gives it a place among the chains under way, once.
    fn set_place(&mut self, place: u16) {
        self.word |= u64::from(place) << 32;
    }

    fn place(&self) -> u16 {
        (self.word >> 32) as u16
    }

    /// What the driver knows the chain by: the index of its first descriptor, or in a packed queue its
    /// identifier.
    #[inline(always)]
    pub fn index(&self) -> u16 {
        self.word as u16
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
    /// An error has ended the queue, or completions may have to wait: the next two have to be looked at.
    special: bool,
    failed: bool,
    order: Option<InOrder>,
}

impl Guard {
    /// Latches an error.
    #[cold]
    #[inline(never)]
    fn end(&mut self, error: impl Into<QueueError>) -> QueueError {
        self.fail();
        error.into()
    }

    fn latch<T>(&mut self, result: Result<T, QueueError>) -> Result<T, QueueError> {
        result.map_err(|error| self.end(error))
    }

    fn fail(&mut self) {
        self.failed = true;
        self.special = true;
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

/// A ring and its areas.
enum Found<'a, M: GuestMemory + ?Sized> {
    Split(&'a mut SplitRing, Areas<Slice<'a, M>>),
    Packed(&'a mut PackedRing, Areas<Slice<'a, M>>),
    /// At least one area is in several pieces, and so all are accessed the slow way.
    Scattered(&'a mut Ring, Areas<Scattered<'a, M>>),
}

/// Runs the same on either layout, wherever its areas are.
macro_rules! on_areas {
    ($mapped:expr, $ring:ident, $areas:ident => $run:expr) => {
        match &mut $mapped.found {
            Found::Split($ring, $areas) => $run,
            Found::Packed($ring, $areas) => $run,
            Found::Scattered(ring, $areas) => apart(|| either!(ring, $ring => $run)),
        }
    };
}

/// Keeps what is slow anyway out of the way of what is not.
#[cold]
#[inline(never)]
fn apart<R>(run: impl FnOnce() -> R) -> R {
    run()
}

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
                special: ordered,
                failed: false,
                order: ordered.then(|| InOrder::new(size)),
            },
        })
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
        self.guard.fail();
    }

    /// Finds the queue in `memory`, for a batch of work on it.
    #[inline(always)]
    pub fn map<'a, M: GuestMemory + ?Sized>(&'a mut self, memory: &'a M) -> Mapped<'a, M> {
        let layout = match self.ring {
            Ring::Split(_) => Layout::Split,
            Ring::Packed(_) => Layout::Packed,
        };
        let reach = Reach::new(memory);
        let places = areas::find(&self.config, layout, &reach);
        let found = match (&mut self.ring, places) {
            (Ring::Split(ring), Places::Whole(areas)) => Found::Split(ring, areas),
            (Ring::Packed(ring), Places::Whole(areas)) => Found::Packed(ring, areas),
            (ring, Places::Scattered(areas)) => Found::Scattered(ring, areas),
        };
        Mapped {
            guard: &mut self.guard,
            found,
            reach,
        }
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

/// A queue and the memory it lies in, for the length of a batch: where the rings are, and what an IOMMU says of
/// them, is asked once, not for each word.
pub struct Mapped<'a, M: GuestMemory + ?Sized> {
    guard: &'a mut Guard,
    found: Found<'a, M>,
    reach: Reach<'a, M>,
}

impl<M: GuestMemory + ?Sized> std::fmt::Debug for Mapped<'_, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mapped")
            .field("guard", &self.guard)
            .finish_non_exhaustive()
    }
}

impl<'a, M: GuestMemory + ?Sized> Mapped<'a, M> {
    /// As [`Queue::fail`].
    pub fn fail(&mut self) {
        self.guard.fail();
    }

    /// The memory that buffers are in.
    #[inline(always)]
    pub fn reach(&self) -> &Reach<'a, M> {
        &self.reach
    }

    /// Takes the next available chain and puts its buffers in `chain`; `None` if there is none, or the
    /// queue has failed.
    #[inline(always)]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, QueueError> {
        let popped = match self.guard.special {
            false => on_areas!(self, ring, areas => ring.pop(&self.reach, areas, chain)),
            true => self.pop_specially(chain),
        };
        match popped {
            Ok(head) => Ok(head),
            Err(error) => Err(self.guard.end(error)),
        }
    }

    #[inline(never)]
    fn pop_specially(&mut self, chain: &mut Chain) -> Result<Option<Head>, Box<QueueError>> {
        if self.guard.failed {
            return Ok(None);
        }
        let mut head = on_areas!(self, ring, areas => ring.pop(&self.reach, areas, chain))?;
        if let (Some(head), Some(order)) = (&mut head, &mut self.guard.order) {
            order.number(head);
        }
        Ok(head)
    }

    /// Takes the chain `head`, which somebody took who cannot complete it any more. Before anything else is popped,
    /// from a split queue that goes on where the used ring does.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn retake(&mut self, head: u16, chain: &mut Chain) -> Result<Head, QueueError> {
        let packed = |ring: &PackedRing| QueueError::Position {
            size: ring.size(),
            position: ring.position(),
        };
        let taken = match &mut self.found {
            Found::Split(ring, areas) => ring.retake(&self.reach, areas, head, chain),
            Found::Packed(ring, _) => Err(packed(ring)),
            Found::Scattered(Ring::Split(ring), areas) => {
                ring.retake(&self.reach, areas, head, chain)
            }
            Found::Scattered(Ring::Packed(ring), _) => Err(packed(ring)),
        };
        let mut head = self.guard.latch(taken)?;
        if let Some(order) = &mut self.guard.order {
            order.number(&mut head);
        }
        Ok(head)
    }

    /// Gives back the chain that was popped last, as if it had not been: it is the next one again.
    ///
    /// For a device that finds that it has nothing for a chain yet.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "taken by value so that it is not completed too"
    )]
    pub fn put_back(&mut self, head: Head) {
        on_areas!(self, ring, _areas => ring.put_back(&head));
        if let Some(order) = &mut self.guard.order {
            order.put_back();
        }
    }

    /// Puts a chain in the used ring. The driver does not see it until [`publish`](Self::publish).
    ///
    /// `written` is how many bytes from the start of the chain's writable part were written.
    #[inline(always)]
    pub fn complete(&mut self, head: Head, written: u32) -> Result<(), QueueError> {
        let completed = match self.guard.special {
            false => on_areas!(self, ring, areas => ring.complete(areas, &head, written)),
            true => self.complete_specially(head, written),
        };
        match completed {
            Ok(()) => Ok(()),
            Err(error) => Err(self.guard.end(error)),
        }
    }

    #[inline(never)]
    fn complete_specially(&mut self, head: Head, written: u32) -> Result<(), Box<QueueError>> {
        if self.guard.failed {
            return Ok(());
        }
        if let Some(order) = &mut self.guard.order {
            order.hold(head, written);
        }
        while let Some((head, written)) = self.guard.order.as_mut().and_then(InOrder::release) {
            on_areas!(self, ring, areas => ring.complete(areas, &head, written))?;
        }
        Ok(())
    }

    /// Shows the driver all that was completed, at once.
    ///
    /// "Used Buffer Notification Suppression" (2.7.7), "Driver and Device Event Suppression" (2.8.10).
    pub fn publish(&mut self) -> Result<Notify, QueueError> {
        let published = on_areas!(self, ring, areas => ring.publish(areas));
        if self.guard.failed && published.is_err() {
            return Ok(Notify::No);
        }
        self.guard.latch(published)
    }

    /// Asks the driver not to notify: we are looking anyway. A hint.
    pub fn disable_kicks(&mut self) -> Result<(), QueueError> {
        if self.guard.failed {
            return Ok(());
        }
        let done = on_areas!(self, ring, areas => ring.disable_kicks(areas));
        self.guard.latch(done)
    }

    /// Asks the driver to notify, then looks again: true if something became available meanwhile, for which
    /// no notification will come.
    ///
    /// "Available Buffer Notification Suppression" (2.7.10).
    pub fn enable_kicks(&mut self) -> Result<bool, QueueError> {
        if self.guard.failed {
            return Ok(false);
        }
        let more = on_areas!(self, ring, areas => ring.enable_kicks(areas));
        self.guard.latch(more)
    }
}
