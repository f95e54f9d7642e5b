// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One entry of a shadow table: stored, changed, dropped, and what hardware may hold of it after.

use hvkit_page_table::{Encode, Entry, Format, Frames, OwnEntries, Span, Width};

use super::key::coverage;
use super::links::Link;
use super::owed::Flush;
use super::reverse_map::Place;
use super::row::{Row, line_of};
use super::stage::Stage;
use super::{Mmu, OutOfMemory, Reclaim};

/// A shadow entry, read.
pub(super) type Slot<S> =
    Entry<<<S as Stage>::Shadow as Format>::Attributes, <<S as Stage>::Shadow as Format>::Rule>;

/// The attributes of shadow leaves.
pub(super) type Attributes<S> = <<S as Stage>::Shadow as Format>::Attributes;

/// A leaf that is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewLeaf {
    level: u8,
    target: u64,
    /// Where, and what.
    at: u64,
    word: u64,
}

impl NewLeaf {
    /// To host address `target`, in entry `index` of the table.
    pub(super) fn of<S: Stage>(
        row: &Row<'_, S>,
        index: usize,
        target: u64,
        attributes: Attributes<S>,
    ) -> Self {
        let level = row.key.level;
        Self {
            level,
            target,
            at: row.at(index),
            word: row.stage.shadow().leaf(target, attributes, level),
        }
    }
}

/// Whether a leaf of `level` can hold the host address `host`.
#[inline]
pub(super) fn fits<S: Stage>(stage: &S, level: u8, host: u64) -> bool {
    host >> stage.shadow().target_bits(level).min(52) == 0
}

/// How often a host frame is mapped before mappings of long ago make room: what bounds a search.
const MOST_MAPPINGS: usize = 1024;

/// How many parents are looked at to learn the linear address of an entry.
const MOST_PARENTS: usize = 64;

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    pub(super) fn stage_of(&self, link: Link) -> Option<(&S, u8, u64)> {
        let page = self.pages.get(link.page())?;
        let stage = self.stages.get(usize::from(page.key.stage))?;
        let at = stage
            .shadow()
            .shape()
            .slot_at(page.frame, link.index() as u64);
        Some((stage, page.key.level, at))
    }

    /// What the entry at `link` is.
    #[inline]
    pub(super) fn slot(&self, link: Link) -> Slot<S> {
        self.stage_of(link)
            .map_or(Entry::Empty, |(stage, level, at)| {
                let word = self.tables.load(at, Width::Eight);
                stage.shadow().decode(word, level)
            })
    }

    fn store(&self, link: Link, word: impl FnOnce(&S::Shadow, u8) -> u64) {
        if let Some((stage, level, at)) = self.stage_of(link) {
            let word = word(stage.shadow(), level);
            self.tables.write(at, Width::Eight, word);
        }
    }

    /// Puts a leaf where there is nothing, or a leaf to elsewhere.
    pub(super) fn put_leaf(
        &mut self,
        link: Link,
        target: u64,
        attributes: Attributes<S>,
    ) -> Result<(), OutOfMemory> {
        let Some(row) = self.row(link.page()) else {
            return Ok(());
        };
        let new = NewLeaf::of(&row, link.index(), target, attributes);
        if self.word(&row, link.index()) != row.empty {
            self.reverse.reserve(new.level, target)?;
            self.drop_entry(link);
        }
        self.insert_leaf(link, new)
    }

    /// Puts a leaf where there is nothing. Another one to the same page makes room if there are many.
    pub(super) fn insert_leaf(&mut self, link: Link, new: NewLeaf) -> Result<(), OutOfMemory> {
        let NewLeaf { level, target, .. } = new;
        let mut place = self.reverse.reserve(level, target)?;
        if self.crowded(place)
            && let Some(old) = self.reverse.old(place)
        {
            self.drop_entry(old);
            // The chunk goes when its last link does: look again.
            place = self.reverse.reserve(level, target)?;
        }
        self.insert_at(place, link, new);
        Ok(())
    }

    /// The same for a leaf that nobody waits for: none makes room for it. The one that somebody does wait for might.
    pub(super) fn insert_if_room(&mut self, link: Link, new: NewLeaf) -> Result<(), OutOfMemory> {
        let place = self.reverse.reserve(new.level, new.target)?;
        if !self.crowded(place) {
            self.insert_at(place, link, new);
        }
        Ok(())
    }

    fn crowded(&self, place: Place) -> bool {
        self.tuning.reclaim == Reclaim::Any && self.reverse.count(place) >= MOST_MAPPINGS
    }

    /// Puts a leaf where there is nothing, and its link where there is room.
    fn insert_at(&mut self, place: Place, link: Link, new: NewLeaf) {
        self.reverse.push(place, link);
        self.tables.write(new.at, Width::Eight, new.word);
        self.stored(link);
    }

    /// The entry at `link` is another, and not empty.
    fn stored(&mut self, link: Link) {
        if let Some(page) = self.pages.get_mut(link.page()) {
            page.lines |= line_of(link.index());
            if let Some(seen) = &mut page.seen {
                seen.forget(link.index());
            }
        }
    }

    /// The same where none may make room: beyond, [`follow`](Self::follow) refuses.
    pub(super) const MOST_MAPPINGS_FOR_DEVICES: usize = 1 << 14;

    /// How many leaves of `level` lead to the page at `host`.
    pub(super) fn mappings(&self, level: u8, host: u64) -> usize {
        let place = self.reverse.place(level, host);
        place.map_or(0, |place| self.reverse.count(place))
    }

    /// Gives the leaf at `link`, which is to `target` with `old`, other attributes.
    pub(super) fn change_leaf(
        &mut self,
        link: Link,
        target: u64,
        old: Attributes<S>,
        new: Attributes<S>,
    ) {
        if old == new {
            return;
        }
        self.store(link, |format, level| format.leaf(target, new, level));
        self.stored(link);
        let stale = self
            .stage_of(link)
            .is_some_and(|(stage, ..)| stage.shadow().leaves_stale(old, new));
        if stale {
            self.owe_flush(link);
        }
    }

    /// Leads the entry at `link` to the table `child`.
    pub(super) fn put_link(&mut self, link: Link, child: u32) -> Result<(), OutOfMemory> {
        let Some(parents) = self.pages.get(child).map(|page| page.parents) else {
            return Ok(());
        };
        self.reverse.lists.reserve(parents)?;
        self.drop_entry(link);
        let mut frame = 0;
        if let Some(page) = self.pages.get_mut(child) {
            self.reverse.lists.push(&mut page.parents, link);
            frame = page.frame;
        }
        self.store(link, |format, level| format.table(frame, level));
        self.stored(link);
        Ok(())
    }

    /// Empties the entry at `link`, whatever it is.
    pub(super) fn drop_entry(&mut self, link: Link) {
        let Some(row) = self.row(link.page()) else {
            return;
        };
        let (level, at, empty) = (row.key.level, row.at(link.index()), row.empty);
        match row.decode(self.word(&row, link.index())) {
            Entry::Empty => return,
            // Damaged: what it was is not known, nor what hardware made of it.
            Entry::Malformed(_) => self.debt.add(Flush::Everything),
            Entry::Leaf { target, .. } => {
                self.owe_flush(link);
                let known = self.reverse.remove(level, target, link);
                debug_assert!(known, "every leaf is in the reverse map");
            }
            Entry::Table { frame, .. } => {
                self.debt.add(Flush::Everything);
                if let Some(child) = self.pages.at_frame(frame)
                    && let Some(page) = self.pages.get_mut(child)
                {
                    let known = self.reverse.lists.remove(&mut page.parents, link);
                    debug_assert!(known, "every link is among the parents");
                }
            }
        }
        self.tables.write(at, Width::Eight, empty);
    }

    /// What is translated through the entry at `link` is to be flushed.
    fn owe_flush(&mut self, link: Link) {
        // What is owed all the same need not be named.
        if self.debt.flush() != Flush::Everything {
            let flush = self.flush_of(link);
            self.debt.add(flush);
        }
    }

    /// Which linear addresses are translated through the entry at `link`: named if it is one page of
    /// one address.
    pub(super) fn flush_of(&self, link: Link) -> Flush {
        self.linear(link).map_or(Flush::Everything, Flush::Span)
    }

    fn linear(&self, link: Link) -> Option<Span> {
        let (stage, level, _) = self.stage_of(link)?;
        let shape = stage.shadow().shape();
        let size = shape.size(level);
        let mut address = (link.index() as u64) << shape.shift(level);
        let mut page = self.pages.get(link.page())?;
        while page.key.level < shape.levels() {
            // Many roots may share it, as long as all have it at the same place.
            let parents = page.parents;
            let first = self.reverse.lists.get(parents, 0)?;
            if self.reverse.lists.len(parents) > MOST_PARENTS {
                return None;
            }
            let above = self.pages.get(first.page())?;
            let alike = self.reverse.lists.iter(parents).all(|other| {
                other == first
                    || other.index() == first.index() && above.key.level == shape.levels()
            });
            if !alike {
                return None;
            }
            address |= (first.index() as u64) << coverage(shape, page.key.level);
            page = above;
        }
        Some(Span::new(shape.extend(address), size))
    }
}
