// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The entries of one shadow table, one after the other: what is the same for all of them is looked up once, and
//! lines of the table that were never written are passed over.

use core::cell::Cell;

use hvkit_page_table::{Encode, Format, Frames, OwnEntries, Width};

use super::Mmu;
use super::entry::Slot;
use super::host::{Backing, HostMap};
use super::key::Key;
use super::stage::Stage;

/// Entries of a line: 128 bytes.
const LINE: usize = 16;

/// The bit in [`Page::lines`](super::pages::Page) of the line that entry `index` is in.
pub(super) const fn line_of(index: usize) -> u32 {
    1 << (index / LINE)
}

/// One shadow table.
#[derive(Debug)]
pub(super) struct Row<'a, S: Stage> {
    pub(super) key: &'a Key,
    pub(super) stage: &'a S,
    /// Where it is.
    pub(super) frame: u64,
    /// An entry that says nothing.
    pub(super) empty: u64,
    /// Where the guest's entry behind the first is, if each entry has one of its own, side by side; once it is
    /// [looked up](Self::beside).
    pub(super) first_behind: Option<u64>,
}

impl<S: Stage> Row<'_, S> {
    /// Where entry `index` is.
    pub(super) const fn at(&self, index: usize) -> u64 {
        self.frame.wrapping_add((index as u64) << 3)
    }

    /// The same for whoever goes along the entries of both tables.
    pub(super) fn beside(self) -> Self {
        let (key, shape) = (self.key, self.stage.shadow().shape());
        let guest = self.stage.guest();
        Self {
            first_behind: guest.and_then(|guest| key.first_behind(guest, shape)),
            ..self
        }
    }

    /// What an entry with this word is.
    #[inline]
    pub(super) fn decode(&self, word: u64) -> Slot<S> {
        self.stage.shadow().decode(word, self.key.level)
    }
}

/// A way through the entries of a table that are not empty. What is dropped meanwhile is not missed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scan {
    /// Lines to see.
    lines: u32,
    /// The next entry in the first of them.
    next: usize,
    /// Lines that had an entry.
    kept: u32,
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    pub(super) fn row(&self, id: u32) -> Option<Row<'_, S>> {
        let page = self.pages.get(id)?;
        let stage = self.stages.get(usize::from(page.key.stage))?;
        Some(Row {
            key: &page.key,
            stage,
            frame: page.frame,
            empty: stage.shadow().empty(),
            first_behind: None,
        })
    }

    /// What entry `index` of the table is as a word.
    #[inline]
    pub(super) fn word(&self, row: &Row<'_, S>, index: usize) -> u64 {
        self.tables.load(row.at(index), Width::Eight)
    }

    pub(super) fn scan(&self, id: u32) -> Scan {
        Scan {
            lines: self.pages.get(id).map_or(0, |page| page.lines),
            next: 0,
            kept: 0,
        }
    }

    /// The next entry that is not empty, and its word.
    #[inline]
    pub(super) fn next_filled(&self, row: &Row<'_, S>, scan: &mut Scan) -> Option<(usize, u64)> {
        while scan.lines != 0 {
            let first = (scan.lines.trailing_zeros() as usize).wrapping_mul(LINE);
            while scan.next < LINE {
                let index = first.wrapping_add(scan.next);
                scan.next = scan.next.wrapping_add(1);
                let word = self.word(row, index);
                if word != row.empty {
                    scan.kept |= line_of(index);
                    return Some((index, word));
                }
            }
            scan.next = 0;
            scan.lines &= scan.lines.wrapping_sub(1);
        }
        None
    }

    /// A scan of table `id` came to its end.
    pub(super) fn scanned(&mut self, id: u32, scan: Scan) {
        if let Some(page) = self.pages.get_mut(id) {
            page.lines = scan.kept;
        }
    }
}

/// The host's map, with its last answer: neighbours mostly lie in one span.
#[derive(Debug)]
pub(super) struct Near<'a, B> {
    map: &'a B,
    last: Cell<Backing>,
}

impl<'a, B: HostMap> Near<'a, B> {
    pub(super) const fn new(map: &'a B) -> Self {
        Self::from(map, Backing::Absent)
    }

    /// The same where `last` is what the map has just answered.
    pub(super) const fn from(map: &'a B, last: Backing) -> Self {
        Self {
            map,
            last: Cell::new(last),
        }
    }

    /// What is behind `guest`.
    #[inline]
    pub(super) fn backing(&self, guest: u64) -> Backing {
        if let last @ Backing::Memory { guest: span, .. } = self.last.get()
            && guest.wrapping_sub(span.start) < span.length
        {
            return last;
        }
        let backing = self.map.backing(guest);
        self.last.set(backing);
        backing
    }
}
