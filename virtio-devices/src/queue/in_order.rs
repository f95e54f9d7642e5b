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
    popped: u64,
    used: u64,
}

impl InOrder {
    pub(super) fn new(size: u16) -> Self {
        Self {
            waiting: (0..size).map(|_| None).collect(),
            popped: 0,
            used: 0,
        }
    }

    /// Gives a chain its place in the order.
    pub(super) fn number(&mut self, head: &mut Head) {
        head.order = self.popped;
        self.popped += 1;
    }

    /// Undoes the last [`number`](Self::number).
    pub(super) fn put_back(&mut self) {
        self.popped -= 1;
    }

    fn place(&mut self, order: u64) -> Option<&mut Option<(Head, u32)>> {
        let slot = order % self.waiting.len().max(1) as u64;
        self.waiting.get_mut(slot as usize)
    }

    pub(super) fn hold(&mut self, head: Head, written: u32) {
        if let Some(place) = self.place(head.order) {
            *place = Some((head, written));
        }
    }

    /// The next completion, if it is that one's turn.
    pub(super) fn release(&mut self) -> Option<(Head, u32)> {
        let next = self.place(self.used)?.take()?;
        self.used += 1;
        Some(next)
    }
}
