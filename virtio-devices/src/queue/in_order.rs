// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Completions held back until those before them are there, for drivers that rely on the order.
//!
//! "In-order use of descriptors" (2.7.9, 2.8.8).

use super::Head;

/// Chains between being popped and being used, in order. There are never more than the queue has
/// descriptors.
#[derive(Debug)]
pub(super) struct InOrder {
    waiting: Box<[Option<(Head, u32)>]>,
    /// The place of the next that is popped, and of the next that is used.
    popped: u16,
    used: u16,
}

impl InOrder {
    pub(super) fn new(size: u16) -> Self {
        Self {
            waiting: (0..size).map(|_| None).collect(),
            popped: 0,
            used: 0,
        }
    }

    /// The place after `place`, around the end.
    fn after(&self, place: u16) -> u16 {
        // Below the number of descriptors, which is at most 2^15.
        match place.wrapping_add(1) {
            next if usize::from(next) < self.waiting.len() => next,
            _ => 0,
        }
    }

    /// Gives a chain its place in the order.
    pub(super) fn number(&mut self, head: &mut Head) {
        head.set_place(self.popped);
        self.popped = self.after(self.popped);
    }

    /// Undoes the last [`number`](Self::number).
    pub(super) fn put_back(&mut self) {
        // At most 32768.
        let last = (self.waiting.len() as u16).saturating_sub(1);
        self.popped = self.popped.checked_sub(1).unwrap_or(last);
    }

    pub(super) fn hold(&mut self, head: Head, written: u32) {
        if let Some(place) = self.waiting.get_mut(usize::from(head.place())) {
            *place = Some((head, written));
        }
    }

    /// The next completion, if it is that one's turn.
    pub(super) fn release(&mut self) -> Option<(Head, u32)> {
        let next = self.waiting.get_mut(usize::from(self.used))?.take()?;
        self.used = self.after(self.used);
        Some(next)
    }
}
