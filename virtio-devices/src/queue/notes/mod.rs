// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is under way in a queue, noted in memory that outlives this process, so that another can finish it.
//!
//! Each layout has notes of its own: of a split queue they say which chains are under way, of a packed one what those consist of,
//! too, as that is written over in the ring.
//!
//! "Inflight I/O tracking" of the vhost-user protocol, whose byte order is the host's.

pub(crate) mod packed;
pub(crate) mod split;

use super::chain::Descriptor;
use super::refused::Refused;
use super::{Head, Layout, Position};

/// A chain that was taken by a process that cannot complete it any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// In the descriptor table from that head on.
    Split(u16),
    /// A copy of what was in the ring.
    Packed(packed::Copied),
}

impl Begun {
    /// How many places it has in a packed ring.
    pub(super) fn slots(&self) -> usize {
        match self {
            Self::Split(_) => 0,
            Self::Packed(copied) => copied.descriptors().len(),
        }
    }
}

/// Where a queue goes on behind a process that is gone, and what that had begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// As [`Position::used`].
    pub(crate) used: u16,
    /// In the order in which they were begun.
    pub(crate) begun: Vec<Begun>,
    /// Of a packed queue: entries that hold nothing, in the order of their list.
    pub(crate) free: Vec<u16>,
}

impl Left {
    /// Nothing was begun.
    pub(crate) fn nothing(used: u16) -> Self {
        Self {
            used,
            begun: Vec::new(),
            free: Vec::new(),
        }
    }
}

/// Bytes before the entries of a queue's area, and of each: one for a descriptor.
pub(crate) fn lengths(layout: Layout) -> (usize, usize) {
    match layout {
        Layout::Split => (split::HEAD, split::DESCRIPTOR),
        Layout::Packed => (packed::HEAD, packed::ENTRY),
    }
}

/// The notes of one queue.
#[derive(Debug)]
pub(crate) struct Notes {
    area: Area,
    /// Begun by a process that is gone, the last one first.
    left: Vec<Begun>,
    /// The chain that was taken last, if it was one of those.
    again: Option<Begun>,
}

#[derive(Debug)]
enum Area {
    Split(split::Notes),
    Packed(packed::Notes),
}

impl Notes {
    /// Goes on in `area` of `memory` with a queue of `layout` and `size`, of which there is `left` what is to be finished first.
    /// Nothing if the area has no room.
    pub(crate) fn new(
        memory: std::sync::Arc<vm_memory::MmapRegion>,
        area: std::ops::Range<usize>,
        (layout, size): (Layout, u16),
        mut left: Left,
    ) -> Option<Self> {
        let (head, entry) = lengths(layout);
        let room = entry.checked_mul(size.into())?.checked_add(head)?;
        let end = area.start.checked_add(room)?;
        if end > area.end || area.end > memory.size() {
            return None;
        }
        let area = match layout {
            Layout::Split => Area::Split(split::Notes::new(memory, area, size, &left)),
            Layout::Packed => Area::Packed(packed::Notes::new(memory, area, size, &left)),
        };
        left.begun.reverse();
        Some(Self {
            area,
            left: left.begun,
            again: None,
        })
    }

    /// The next one that another process has begun.
    pub(super) fn take_left(&mut self) -> Option<Begun> {
        self.again = self.left.pop();
        self.again.clone()
    }

    /// A chain is begun, which consists in the ring of `descriptors` if the queue is packed.
    ///
    /// # Errors
    ///
    /// There is no room for it, and nothing is noted.
    pub(super) fn began(
        &mut self,
        head: &mut Head,
        descriptors: &[Descriptor],
    ) -> Result<(), Refused> {
        match &mut self.area {
            Area::Split(notes) => notes.began(head.index()),
            Area::Packed(notes) => head.set_entry(notes.began(descriptors)?),
        }
        Ok(())
    }

    /// The chain that was begun last was not.
    pub(super) fn put_back(&mut self, head: &Head) {
        match (self.again.take(), &mut self.area) {
            (Some(again), _) => self.left.push(again),
            (None, Area::Split(notes)) => notes.put_back(head.index()),
            (None, Area::Packed(notes)) => notes.put_back(head.entry()),
        }
    }

    /// A chain is about to be used.
    pub(super) fn completed(&mut self, head: &Head) {
        match &mut self.area {
            Area::Split(notes) => notes.completed(head.index()),
            Area::Packed(notes) => notes.completed(head.entry()),
        }
    }

    /// What was completed is about to be shown, and then the queue is at `position`.
    pub(super) fn publishing(&mut self, position: Position) {
        match &mut self.area {
            Area::Split(_) => {}
            Area::Packed(notes) => notes.publishing(position.used),
        }
    }

    /// It was shown.
    pub(super) fn published(&mut self, position: Position) {
        match &mut self.area {
            Area::Split(notes) => notes.published(position.used),
            Area::Packed(notes) => notes.published(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vm_memory::MmapRegion;

    #[test]
    fn an_area_without_room_is_none() {
        for (layout, length) in [(Layout::Split, 16 + 16 * 8), (Layout::Packed, 32 + 32 * 8)] {
            let memory = || Arc::new(MmapRegion::new(length).unwrap());
            let made = |area, size| {
                let notes = Notes::new(memory(), area, (layout, size), Left::nothing(0));
                notes.is_some()
            };
            assert!(made(0..length, 8));
            assert!(!made(0..length, 9));
            assert!(!made(1..length, 8));
            assert!(!made(1..length + 1, 8));
            assert!(!made(usize::MAX..usize::MAX, 8));
        }
    }
}
