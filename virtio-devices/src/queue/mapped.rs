// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue for the length of a batch: chains are taken, completed and published.

use vm_memory::GuestMemory;

use super::areas::{self, Areas, Layout, Places};
use super::in_order::InOrder;
use super::packed::PackedRing;
use super::reach::{Reach, Slice};
use super::split::SplitRing;
use super::words::Scattered;
#[cfg(feature = "vhost-user")]
use super::{Begun, Position};
use super::{Chain, Guard, Head, Notify, Queue, QueueError, Ring};

/// A ring and its areas, and how they are to be gone about. One look tells the first two, which are quick, from all
/// that is slow anyway.
enum Found<'a, M: GuestMemory + ?Sized> {
    Split(&'a mut SplitRing, Areas<Slice<'a, M>>),
    Packed(&'a mut PackedRing, Areas<Slice<'a, M>>),
    /// The same two, whose guard is to be asked: an error has ended the queue, or completions may have to wait.
    GuardedSplit(&'a mut SplitRing, Areas<Slice<'a, M>>),
    GuardedPacked(&'a mut PackedRing, Areas<Slice<'a, M>>),
    /// At least one area is in several pieces, and so all are accessed the slow way. The guard is asked here too.
    Scattered(&'a mut Ring, Areas<Scattered<'a, M>>),
    /// While it is being replaced.
    Nothing,
}

/// Runs the same on either layout, wherever its areas are.
macro_rules! on_areas {
    ($mapped:expr, $ring:ident, $areas:ident => $run:expr, $nothing:expr) => {
        match &mut $mapped.found {
            Found::Split($ring, $areas) | Found::GuardedSplit($ring, $areas) => $run,
            Found::Packed($ring, $areas) | Found::GuardedPacked($ring, $areas) => $run,
            Found::Scattered(ring, $areas) => either!(ring, $ring => $run),
            Found::Nothing => $nothing,
        }
    };
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
    /// Finds `queue`, which has that `layout`, in `memory`.
    #[inline(always)]
    pub(super) fn find(queue: &'a mut Queue, layout: Layout, memory: &'a M) -> Self {
        let reach = Reach::new(memory);
        let places = areas::find(&queue.config, layout, &reach);
        let found = match (&mut queue.ring, places) {
            (Ring::Split(ring), Places::Whole(areas)) => Found::Split(ring, areas),
            (Ring::Packed(ring), Places::Whole(areas)) => Found::Packed(ring, areas),
            (ring, Places::Scattered(areas)) => Found::Scattered(ring, areas),
        };
        let mut mapped = Self {
            guard: &mut queue.guard,
            found,
            reach,
        };
        if mapped.guard.special() {
            mapped.set_guarded();
        }
        mapped
    }

    /// From now on the guard is asked.
    #[cold]
    fn set_guarded(&mut self) {
        self.found = match std::mem::replace(&mut self.found, Found::Nothing) {
            Found::Split(ring, areas) => Found::GuardedSplit(ring, areas),
            Found::Packed(ring, areas) => Found::GuardedPacked(ring, areas),
            guarded => guarded,
        };
    }

    /// As [`Queue::fail`].
    pub fn fail(&mut self) {
        self.guard.failed = true;
        self.set_guarded();
    }

    /// Latches an error. It stays in its box until it is returned: an error that is written through a pointer
    /// keeps what is returned instead of it out of registers.
    #[cold]
    #[inline(never)]
    fn end(&mut self, error: Box<QueueError>) -> Box<QueueError> {
        self.fail();
        error
    }

    fn latch<T, E: Into<Box<QueueError>>>(
        &mut self,
        result: Result<T, E>,
    ) -> Result<T, Box<QueueError>> {
        result.map_err(|error| self.end(error.into()))
    }

    /// The memory that buffers are in.
    #[inline(always)]
    pub fn reach(&self) -> &Reach<'a, M> {
        &self.reach
    }

    /// Takes the next available chain and puts its buffers in `chain`; `None` if there is none, or the
    /// queue has failed.
    #[inline(always)]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, Box<QueueError>> {
        let popped = match &mut self.found {
            Found::Split(ring, areas) => ring.pop_quick(&self.reach, areas, chain),
            Found::Packed(ring, areas) => ring.pop_quick(&self.reach, areas, chain),
            _ => self.pop_guarded(chain),
        };
        match popped {
            Ok(head) => Ok(head),
            Err(error) => Err(self.end(error)),
        }
    }

    #[inline(never)]
    fn pop_guarded(&mut self, chain: &mut Chain) -> Result<Option<Head>, Box<QueueError>> {
        if self.guard.failed {
            return Ok(None);
        }
        #[cfg(feature = "vhost-user")]
        if let Some(left) = self
            .guard
            .notes
            .as_mut()
            .and_then(|notes| notes.take_left())
        {
            return self.retake(&left, chain).map(Some);
        }
        let mut head =
            on_areas!(self, ring, areas => ring.pop(&self.reach, areas, chain), Ok(None))?;
        #[cfg(feature = "vhost-user")]
        if let (Some(head), Some(notes)) = (&mut head, &mut self.guard.notes) {
            let descriptors = match &self.found {
                Found::Packed(ring, areas) | Found::GuardedPacked(ring, areas) => {
                    ring.descriptors(areas, head)?
                }
                Found::Scattered(Ring::Packed(ring), areas) => ring.descriptors(areas, head)?,
                // In a split ring nothing of a chain is written over before it is used.
                _ => Vec::new(),
            };
            notes
                .began(head, &descriptors)
                .map_err(|source| QueueError::chain(head.index(), source))?;
        }
        if let (Some(head), Some(order)) = (&mut head, &mut self.guard.order) {
            order.number(head);
        }
        Ok(head)
    }

    /// Takes back what somebody who had `begun` those may have completed and not shown the driver. Before any of them is retaken.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn withdraw(&mut self, begun: &[Begun]) -> Result<(), Box<QueueError>> {
        let slots = begun.iter().map(|begun| begun.slots()).sum::<usize>();
        // No queue has more.
        let slots = u16::try_from(slots).unwrap_or(u16::MAX);
        match &self.found {
            Found::Packed(ring, areas) | Found::GuardedPacked(ring, areas) => {
                ring.withdraw(areas, slots)
            }
            Found::Scattered(Ring::Packed(ring), areas) => ring.withdraw(areas, slots),
            // A split ring's driver sees no further than the used ring's index.
            _ => Ok(()),
        }
    }

    /// Takes the chain that somebody has `begun` who cannot complete it any more. Before anything else is popped, from a queue
    /// that goes on where the used ring does.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn retake(
        &mut self,
        begun: &Begun,
        chain: &mut Chain,
    ) -> Result<Head, Box<QueueError>> {
        let reach = &self.reach;
        let taken = match (begun, &mut self.found) {
            (Begun::Split(head), Found::Split(ring, areas) | Found::GuardedSplit(ring, areas)) => {
                ring.retake(reach, areas, *head, chain)
            }
            (Begun::Split(head), Found::Scattered(Ring::Split(ring), areas)) => {
                ring.retake(reach, areas, *head, chain)
            }
            (Begun::Packed(copied), Found::Packed(ring, _) | Found::GuardedPacked(ring, _)) => {
                ring.retake(reach, copied.descriptors(), chain)
            }
            (Begun::Packed(copied), Found::Scattered(Ring::Packed(ring), _)) => {
                ring.retake(reach, copied.descriptors(), chain)
            }
            // Of the other layout.
            (_, found) => {
                let (size, position) = match found {
                    Found::Split(ring, _) | Found::GuardedSplit(ring, _) => {
                        (ring.size(), ring.position())
                    }
                    Found::Packed(ring, _) | Found::GuardedPacked(ring, _) => {
                        (ring.size(), ring.position())
                    }
                    Found::Scattered(ring, _) => {
                        either!(ring, ring => (ring.size(), ring.position()))
                    }
                    Found::Nothing => (0, Position::default()),
                };
                Err(QueueError::Position { size, position })
            }
        };
        let mut head = self.latch(taken)?;
        if let Begun::Packed(copied) = begun {
            head.set_entry(copied.head());
        }
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
        on_areas!(self, ring, _areas => ring.put_back(&head), ());
        if let Some(order) = &mut self.guard.order {
            order.put_back();
        }
        #[cfg(feature = "vhost-user")]
        if let Some(notes) = &mut self.guard.notes {
            notes.put_back(&head);
        }
    }

    /// Puts a chain in the used ring. The driver does not see it until [`publish`](Self::publish).
    ///
    /// `written` is how many bytes from the start of the chain's writable part were written.
    #[inline(always)]
    pub fn complete(&mut self, head: Head, written: u32) -> Result<(), Box<QueueError>> {
        let completed = match &mut self.found {
            Found::Split(ring, areas) => ring.complete(areas, head, written),
            Found::Packed(ring, areas) => ring.complete(areas, head, written),
            _ => self.complete_guarded(head, written),
        };
        match completed {
            Ok(()) => Ok(()),
            Err(error) => Err(self.end(error)),
        }
    }

    #[inline(never)]
    fn complete_guarded(&mut self, head: Head, written: u32) -> Result<(), Box<QueueError>> {
        if self.guard.failed {
            return Ok(());
        }
        match &mut self.guard.order {
            Some(order) => order.hold(head, written),
            None => return self.show(head, written),
        }
        while let Some((head, written)) = self.guard.order.as_mut().and_then(InOrder::release) {
            self.show(head, written)?;
        }
        Ok(())
    }

    fn show(&mut self, head: Head, written: u32) -> Result<(), Box<QueueError>> {
        #[cfg(feature = "vhost-user")]
        if let Some(notes) = &mut self.guard.notes {
            notes.completed(&head);
        }
        on_areas!(self, ring, areas => ring.complete(areas, head, written), Ok(()))
    }

    /// Shows the driver all that was completed, at once.
    ///
    /// "Used Buffer Notification Suppression" (2.7.7), "Driver and Device Event Suppression" (2.8.10).
    pub fn publish(&mut self) -> Result<Notify, Box<QueueError>> {
        #[cfg(feature = "vhost-user")]
        if let Some(notes) = &mut self.guard.notes {
            let position = on_areas!(self, ring, _areas => ring.position(), Position::default());
            notes.publishing(position);
        }
        let published = on_areas!(self, ring, areas => ring.publish(areas), Ok(Notify::No));
        if self.guard.failed && published.is_err() {
            return Ok(Notify::No);
        }
        // Where that failed, the ring alone says whether the driver was shown it.
        #[cfg(feature = "vhost-user")]
        if let (Ok(_), Some(notes)) = (&published, &mut self.guard.notes) {
            let position = on_areas!(self, ring, _areas => ring.position(), Position::default());
            notes.published(position);
        }
        self.latch(published)
    }

    /// Asks the driver not to notify: we are looking anyway. A hint.
    pub fn disable_kicks(&mut self) -> Result<(), Box<QueueError>> {
        if self.guard.failed {
            return Ok(());
        }
        let done = on_areas!(self, ring, areas => ring.disable_kicks(areas), Ok(()));
        self.latch(done)
    }

    /// Asks the driver to notify, then looks again: true if something became available meanwhile, for which
    /// no notification will come.
    ///
    /// "Available Buffer Notification Suppression" (2.7.10).
    pub fn enable_kicks(&mut self) -> Result<bool, Box<QueueError>> {
        if self.guard.failed {
            return Ok(false);
        }
        let more = on_areas!(self, ring, areas => ring.enable_kicks(areas), Ok(false));
        self.latch(more)
    }
}
