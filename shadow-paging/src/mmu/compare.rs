// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Comparing a shadow table with the guest's, and mending what is wrong.

use hvkit_page_table::{Entry, Frames, OwnEntries, ReadEntry};

use super::Mmu;
use super::entry::Slot;
use super::expect::{Expected, Unread, Wrong};
use super::host::{HostMap, Machine};
use super::links::Link;
use super::pages::Sync;
use super::row::{Near, Row, Scan};
use super::seen::{MOST_SEEN, Seen};
use super::stage::Stage;

/// What a comparison came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// Every entry was right.
    Same,
    /// Some were not, and are gone.
    Changed,
}

/// An entry that is not right.
struct Mistake<S: Stage> {
    slot: Slot<S>,
    expected: Expected,
    wrong: Wrong,
}

/// Which entry is not right, or that the guest's cannot be read.
type Found<S, E> = (usize, Result<Mistake<S>, Unread<E>>);

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// Compares each entry of a table with the guest's, and drops what is wrong.
    ///
    /// Entries of the guest's that cannot be read are dropped too, then the first is told of.
    pub(super) fn sync_table<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        id: u32,
    ) -> Result<Compared, Unread<M::Error>> {
        let mut result = Ok(Compared::Same);
        let near = Near::new(machine.map);
        let mut scan = self.scan(id);
        // Taken out meanwhile, so what is mended here is not forgotten there.
        let mut seen = self.take_seen(id);
        while let Some((index, found)) =
            self.next_wrong(machine.memory, &near, id, &mut scan, seen.as_mut())
        {
            match found {
                Ok(wrong) => {
                    self.mend(&near, Link::new(id, index), &wrong);
                    result = result.map(|_| Compared::Changed);
                }
                Err(unread) => {
                    self.drop_entry(Link::new(id, index));
                    result = result.and(Err(unread));
                }
            }
        }
        self.scanned(id, scan);
        if let Some(page) = self.pages.get_mut(id) {
            page.seen = seen;
        }
        result
    }

    /// What was seen behind table `id`, or something to write it down in.
    fn take_seen(&mut self, id: u32) -> Option<Seen> {
        let few = self.unsync.len() <= MOST_SEEN && !self.unguarded();
        let page = self.pages.get_mut(id)?;
        match page.seen.take() {
            None if few && page.sync == Sync::Unsync && Self::may_be_unsync(page) => Seen::new(),
            seen => seen,
        }
    }

    /// The next entry of table `id` that is not right.
    fn next_wrong<M: ReadEntry, B: HostMap>(
        &self,
        memory: &M,
        near: &Near<'_, B>,
        id: u32,
        scan: &mut Scan,
        mut seen: Option<&mut Seen>,
    ) -> Option<Found<S, M::Error>> {
        let row = self.row(id)?.beside();
        while let Some((index, word)) = self.next_filled(&row, scan) {
            let judged = match &mut seen {
                None => row
                    .expected(memory, index)
                    .map(|expected| self.judge_entry(&row, near, word, expected)),
                Some(seen) => match row.behind(memory, index) {
                    Ok(Some(behind)) if seen.was(index, behind.entry) => continue,
                    Ok(Some(behind)) => {
                        let judged = self.judge_entry(&row, near, word, row.by(behind));
                        match &judged {
                            None => seen.right(index, behind.entry),
                            Some(_) => seen.forget(index),
                        }
                        Ok(judged)
                    }
                    Ok(None) => Ok(self.judge_entry(&row, near, word, Expected::Nothing)),
                    Err(unread) => Err(unread),
                },
            };
            if let Some(found) = judged.transpose() {
                return Some((index, found));
            }
        }
        None
    }

    /// What is wrong with an entry of the table, whose word this is and not that of an empty one.
    #[inline]
    fn judge_entry<B: HostMap>(
        &self,
        row: &Row<'_, S>,
        near: &Near<'_, B>,
        word: u64,
        expected: Expected,
    ) -> Option<Mistake<S>> {
        let slot = row.decode(word);
        let wrong = self.wrong(row, near, &slot, expected)?;
        Some(Mistake {
            slot,
            expected,
            wrong,
        })
    }

    /// Makes the entry at `link` right: a leaf that grants too much grants less, what else is wrong is
    /// dropped.
    pub(super) fn check<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        link: Link,
    ) -> Result<Compared, Unread<M::Error>> {
        let Some(row) = self.row(link.page()) else {
            return Ok(Compared::Same);
        };
        let word = self.word(&row, link.index());
        if word == row.empty {
            return Ok(Compared::Same);
        }
        let near = Near::new(machine.map);
        let expected = row.expected(machine.memory, link.index());
        match expected.map(|expected| self.judge_entry(&row, &near, word, expected)) {
            Ok(None) => Ok(Compared::Same),
            Ok(Some(mistake)) => {
                self.mend(&near, link, &mistake);
                Ok(Compared::Changed)
            }
            Err(unread) => {
                self.drop_entry(link);
                Err(unread)
            }
        }
    }

    fn mend<B: HostMap>(&mut self, near: &Near<'_, B>, link: Link, mistake: &Mistake<S>) {
        match mistake.wrong {
            Wrong::TooMuch => self.grant_less(near, link, &mistake.slot, mistake.expected),
            _ => self.drop_entry(link),
        }
    }

    /// The leaf at `link` grants more than guest and host do now: it gets what they grant, or goes. So reads go
    /// on after a fork has made everything read-only.
    fn grant_less<B: HostMap>(
        &mut self,
        near: &Near<'_, B>,
        link: Link,
        slot: &Slot<S>,
        expected: Expected,
    ) {
        if let (
            Entry::Leaf { target, attributes },
            Expected::Page {
                target: guest,
                rights,
            },
        ) = (*slot, expected)
            && let Some(stage) = self.pages.get(link.page()).map(|page| page.key.stage)
            && self
                .pages
                .get(link.page())
                .is_some_and(|page| page.key.level == 1)
            && let Some(stage) = self.stages.get(usize::from(stage))
        {
            let page = near.backing(guest).page(guest, 4096);
            let less = page.and_then(|page| self.usual(stage, rights, page.rights, guest));
            if let Some(less) = less {
                return self.change_leaf(link, target, attributes, less);
            }
        }
        self.drop_entry(link);
    }
}
