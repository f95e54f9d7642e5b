// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's map changes: memory taken away, moved, shared, logged.

use hvkit_page_table::{Entry, Frames, OwnEntries};

use super::links::Link;
use super::reverse_map::page_size;
use super::row::Scan;
use super::stage::Stage;
use super::{Backed, Mmu, Owed};

/// What becomes of the leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Drop,
    Protect,
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// The guest's memory `gone` is backed so no more: every leaf to it goes, and every shadow of a
    /// table in it loses its entries.
    ///
    /// In this order: change the map, call this, settle the token, use the host's memory for
    /// something else.
    pub fn host_unmap(&mut self, gone: Backed) -> Owed {
        self.each_leaf(gone, Change::Drop);
        let last = gone.guest.saturating_add(gone.length.saturating_sub(1));
        for id in 0..self.budget as u32 {
            let inside = self.pages.get(id).is_some_and(|page| {
                let super::key::Base::Table(frame) = page.key.base else {
                    return false;
                };
                gone.length > 0 && (gone.guest & !0xfff..=last).contains(&frame)
            });
            if !inside {
                continue;
            }
            if self.pages.get(id).is_some_and(|page| page.roots > 0) {
                self.empty_table(id);
            } else {
                self.remove_table(id);
            }
        }
        self.owe_for_good()
    }

    /// The host withholds writes to the guest's memory `logged`: no leaf can write it after this
    /// token is settled. For dirty logging, page sharing, migration.
    ///
    /// In this order: change the map, call this, settle the token, read the memory.
    pub fn host_protect(&mut self, logged: Backed) -> Owed {
        self.each_leaf(logged, Change::Protect);
        self.owe_for_good()
    }

    /// Drops every entry of a table.
    pub(super) fn empty_table(&mut self, id: u32) {
        let mut scan = self.scan(id);
        while let Some(row) = self.row(id)
            && let Some((index, _)) = self.next_filled(&row, &mut scan)
        {
            self.drop_entry(Link::new(id, index));
        }
        self.scanned(id, Scan::default());
    }

    /// Does `change` to every leaf that maps a byte of `memory`.
    fn each_leaf(&mut self, memory: Backed, change: Change) {
        let Some(more) = memory.length.checked_sub(1) else {
            return;
        };
        let last = memory.host.saturating_add(more);
        for level in 1..=3u8 {
            let page = page_size(level);
            let mut at = memory.host & !page.wrapping_sub(1);
            while at <= last {
                let (mapped, chunk) = self.reverse.chunk_around(level, at);
                let step = if mapped {
                    self.change_leaves(level, at, change);
                    page
                } else {
                    chunk.wrapping_sub(at & chunk.wrapping_sub(1))
                };
                let Some(next) = at.checked_add(step) else {
                    break;
                };
                at = next;
            }
        }
    }

    /// Does `change` to every leaf of `level` to the page at `host`.
    fn change_leaves(&mut self, level: u8, host: u64, change: Change) {
        let mut at = 0;
        while let Some(place) = self.reverse.place(level, host)
            && let Some(link) = self.reverse.link(place, at)
        {
            match change {
                Change::Drop => self.drop_entry(link),
                // A large one goes as a whole: the host's map may be cut here now.
                Change::Protect if level > 1 => self.drop_entry(link),
                Change::Protect => {
                    self.protect_leaf(link);
                }
            }
            // A leaf that was dropped left its place to another.
            at = at.saturating_add(usize::from(self.maps(link, host)));
        }
    }

    /// Whether the entry at `link` is a leaf to `host`.
    pub(super) fn maps(&self, link: Link, host: u64) -> bool {
        matches!(self.slot(link), Entry::Leaf { target, .. } if target == host)
    }
}
