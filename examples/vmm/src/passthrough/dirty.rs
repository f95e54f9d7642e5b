// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What devices of the host may have written.

use super::space::DmaSpace;
use crate::dirty_log::{By, Pages, Writer};
use hvkit_vtd_iommu::emulation::Mapping;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// The devices of one space, which is logged for all of them.
#[derive(Debug)]
pub struct Devices {
    names: Vec<String>,
    space: Arc<DmaSpace>,
}

impl Devices {
    /// Those with these `names` in `space`.
    #[must_use]
    pub fn new(names: Vec<String>, space: Arc<DmaSpace>) -> Self {
        Devices { names, space }
    }
}

impl Writer for Devices {
    fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn start(&mut self) -> io::Result<()> {
        self.space.start_log()
    }

    fn pages(&mut self, pages: &mut Pages) -> io::Result<By> {
        self.space.written(pages)
    }

    fn stop(&mut self) -> io::Result<()> {
        self.space.stop_log()
    }
}

/// What a device behind the guest's unit may write: what is mapped for it, and, while there is a log, what was.
#[derive(Debug, Default)]
pub(super) struct Reached {
    /// By first address. As many as the unit lets a device have.
    now: BTreeMap<u64, Mapping>,
    /// Of memory that it has lost since the log began, or since somebody asked.
    lost: Option<Pages>,
}

impl Reached {
    pub(super) fn map(&mut self, piece: Mapping) {
        if piece.writes {
            self.now.insert(piece.first, piece);
        }
    }

    pub(super) fn unmap(&mut self, piece: Mapping) {
        if let (Some(gone), Some(lost)) = (self.now.remove(&piece.first), &mut self.lost) {
            add(gone, lost);
        }
    }

    /// A log begins; `none` is of all memory.
    pub(super) fn start(&mut self, none: Pages) {
        self.lost = Some(none);
    }

    pub(super) fn written(&mut self, pages: &mut Pages) {
        if let Some(lost) = &mut self.lost {
            pages.join(lost);
            *lost = lost.none_of_these();
        }
        for piece in self.now.values() {
            add(*piece, pages);
        }
    }

    pub(super) fn stop(&mut self) {
        self.lost = None;
    }
}

/// Adds the memory that `piece` leads to.
fn add(piece: Mapping, pages: &mut Pages) {
    let length = piece.last.saturating_sub(piece.first);
    pages.add(piece.target, piece.target.saturating_add(length));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(first: u64, pages: u64, target: u64, writes: bool) -> Mapping {
        Mapping {
            first,
            last: first + (pages << 12) - 1,
            target,
            reads: true,
            writes,
        }
    }

    /// Of 256 pages.
    fn none() -> Pages {
        Pages::none(std::iter::once(0..0x10_0000))
    }

    fn written(reached: &mut Reached) -> u64 {
        let mut pages = none();
        reached.written(&mut pages);
        pages.count()
    }

    #[test]
    fn what_was_taken_back_was_written_once_and_what_is_there_always() {
        let mut reached = Reached::default();
        let (early, stays, goes, read) = (
            piece(0x9000, 1, 0x1000, true),
            piece(0xffff_0000_0000, 2, 0x2000, true),
            piece(0x5000, 4, 0x8000, true),
            piece(0x1000, 8, 0x10000, false),
        );
        // Gone before the log began.
        reached.map(early);
        reached.unmap(early);
        reached.map(stays);
        reached.start(none());
        assert_eq!(written(&mut reached), 2);
        reached.map(goes);
        reached.map(read);
        reached.unmap(goes);
        reached.unmap(read);
        assert_eq!(written(&mut reached), 6);
        assert_eq!(written(&mut reached), 2);
        reached.unmap(stays);
        assert_eq!(written(&mut reached), 2);
        assert_eq!(written(&mut reached), 0);
        reached.stop();
        reached.map(goes);
        reached.unmap(goes);
        assert_eq!(written(&mut reached), 0);
    }
}
