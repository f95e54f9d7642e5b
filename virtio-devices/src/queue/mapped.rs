// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue for the length of a batch: chains are taken, completed and published.

use vm_memory::GuestMemory;

#[cfg(feature = "vhost-user")]
use super::Begun;
use super::areas::{self, Areas, Layout, Places};
use super::in_order::InOrder;
use super::packed::PackedRing;
use super::reach::{Reach, Slice};
use super::split::SplitRing;
use super::words::Scattered;
use super::{Chain, Guard, Head, Notify, Queue, QueueError, Ring, apart};

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
        Self {
            guard: &mut queue.guard,
            found,
            reach,
        }
    }

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
            Err(error) => Err(*self.guard.end(error)),
        }
    }

    #[inline(never)]
    fn pop_specially(&mut self, chain: &mut Chain) -> Result<Option<Head>, Box<QueueError>> {
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
            return self.retake(&left, chain).map(Some).map_err(Box::new);
        }
        let mut head = on_areas!(self, ring, areas => ring.pop(&self.reach, areas, chain))?;
        #[cfg(feature = "vhost-user")]
        if let (Some(head), Some(notes)) = (&mut head, &mut self.guard.notes) {
            let descriptors = on_areas!(self, ring, areas => ring.descriptors(areas, head))?;
            notes.began(head, &descriptors);
        }
        if let (Some(head), Some(order)) = (&mut head, &mut self.guard.order) {
            order.number(head);
        }
        Ok(head)
    }

    /// Takes back what somebody who had `begun` those may have completed and not shown the driver. Before any of them is retaken.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn withdraw(&mut self, begun: &[Begun]) -> Result<(), QueueError> {
        let slots = begun.iter().map(|begun| begun.slots()).sum::<usize>();
        // No queue has more.
        let slots = u16::try_from(slots).unwrap_or(u16::MAX);
        Ok(on_areas!(self, ring, areas => ring.withdraw(areas, slots))?)
    }

    /// Takes the chain that somebody has `begun` who cannot complete it any more. Before anything else is popped, from a queue
    /// that goes on where the used ring does.
    #[cfg(feature = "vhost-user")]
    pub(crate) fn retake(&mut self, begun: &Begun, chain: &mut Chain) -> Result<Head, QueueError> {
        let reach = &self.reach;
        let taken = match (begun, &mut self.found) {
            (Begun::Split(head), Found::Split(ring, areas)) => {
                ring.retake(reach, areas, *head, chain)
            }
            (Begun::Split(head), Found::Scattered(Ring::Split(ring), areas)) => {
                ring.retake(reach, areas, *head, chain)
            }
            (Begun::Packed(copied), Found::Packed(ring, _)) => {
                ring.retake(reach, copied.descriptors(), chain)
            }
            (Begun::Packed(copied), Found::Scattered(Ring::Packed(ring), _)) => {
                ring.retake(reach, copied.descriptors(), chain)
            }
            // Of the other layout.
            (_, found) => {
                let (size, position) = match found {
                    Found::Split(ring, _) => (ring.size(), ring.position()),
                    Found::Packed(ring, _) => (ring.size(), ring.position()),
                    Found::Scattered(ring, _) => {
                        either!(ring, ring => (ring.size(), ring.position()))
                    }
                };
                Err(QueueError::Position { size, position })
            }
        };
        let mut head = self.guard.latch(taken)?;
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
        on_areas!(self, ring, _areas => ring.put_back(&head));
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
    pub fn complete(&mut self, head: Head, written: u32) -> Result<(), QueueError> {
        let completed = match self.guard.special {
            false => on_areas!(self, ring, areas => ring.complete(areas, &head, written)),
            true => self.complete_specially(head, written),
        };
        match completed {
            Ok(()) => Ok(()),
            Err(error) => Err(*self.guard.end(error)),
        }
    }

    #[inline(never)]
    fn complete_specially(&mut self, head: Head, written: u32) -> Result<(), Box<QueueError>> {
        if self.guard.failed {
            return Ok(());
        }
        match &mut self.guard.order {
            Some(order) => order.hold(head, written),
            None => return self.show(&head, written),
        }
        while let Some((head, written)) = self.guard.order.as_mut().and_then(InOrder::release) {
            self.show(&head, written)?;
        }
        Ok(())
    }

    fn show(&mut self, head: &Head, written: u32) -> Result<(), Box<QueueError>> {
        #[cfg(feature = "vhost-user")]
        if let Some(notes) = &mut self.guard.notes {
            notes.completed(head);
        }
        on_areas!(self, ring, areas => ring.complete(areas, head, written))
    }

    /// Shows the driver all that was completed, at once.
    ///
    /// "Used Buffer Notification Suppression" (2.7.7), "Driver and Device Event Suppression" (2.8.10).
    pub fn publish(&mut self) -> Result<Notify, QueueError> {
        #[cfg(feature = "vhost-user")]
        if let Some(notes) = &mut self.guard.notes {
            notes.publishing(on_areas!(self, ring, _areas => ring.position()));
        }
        let published = on_areas!(self, ring, areas => ring.publish(areas));
        if self.guard.failed && published.is_err() {
            return Ok(Notify::No);
        }
        // Where that failed, the ring alone says whether the driver was shown it.
        #[cfg(feature = "vhost-user")]
        if let (Ok(_), Some(notes)) = (&published, &mut self.guard.notes) {
            notes.published(on_areas!(self, ring, _areas => ring.position()));
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
