// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Bringing shadow tables that may be stale in step with the guest's, when it invalidates.

use hvkit_page_table::{Format, Frames, OwnEntries, ReadEntry};

use super::compare::Compared;
use super::expect::Unread;
use super::host::{HostMap, Machine};
use super::key::Base;
use super::links::Link;
use super::pages::{Page, Pass, Sync};
use super::row::line_of;
use super::space::Space;
use super::stage::Stage;
use super::{Cause, Failed, Mmu, Owed};

/// How many parents of a table are looked at to learn whether it is below another.
const MOST_PARENTS: usize = 8;

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// The guest invalidates one linear address in `space` (INVLPG, INVPCID of one address, INVEPT's
    /// and INVVPID's like).
    ///
    /// # Errors
    ///
    /// Guest memory that cannot be read: the entry there was dropped.
    pub fn invalidate<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        address: u64,
    ) -> Result<Owed, Failed<M::Error>> {
        let result = self.invalidate_address(space, machine, address);
        self.settle_up_for_good(result).map(|((), owed)| owed)
    }

    fn invalidate_address<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        address: u64,
    ) -> Result<(), Cause<M::Error>> {
        if space.owner != self.owner {
            return Err(Cause::Foreign);
        }
        let shape = *space.stage.shadow().shape();
        let Some(bits) = shape.strip(address) else {
            return Ok(());
        };
        // In every table that may be stale, wherever it is linked now: a global translation goes for all spaces. One that
        // is linked nowhere is refreshed before it is linked again.
        let mut result = Ok(());
        let mut at = 0;
        while let Some(&id) = self.unsync.get(at) {
            at = at.saturating_add(1);
            let Some(page) = self.pages.get(id).filter(|page| page.in_use()) else {
                continue;
            };
            let lines = page.lines;
            let index = shape.index(bits, page.key.level) as usize;
            for index in self.entries_beside(page, index) {
                if lines & line_of(index) != 0 {
                    let checked = self.check(machine, Link::new(id, index));
                    result = result.and(checked.map(|_| ()));
                }
            }
        }
        result.map_err(Cause::from)
    }

    /// The entries of `page` that have the same guest's entry behind them as entry `index`: two, for a 4-MiB page.
    fn entries_beside(&self, page: &Page, index: usize) -> core::ops::Range<usize> {
        let stage = self.stages.get(usize::from(page.key.stage));
        let more = match (page.key.base, stage.map(|stage| (stage, stage.guest()))) {
            (Base::Table(_), Some((stage, Some(guest)))) => {
                let ours = stage.shadow().shape().shift(page.key.level);
                guest.shift(page.key.level).saturating_sub(ours)
            }
            _ => 0,
        };
        let below = 1usize.wrapping_shl(more).wrapping_sub(1);
        index & !below..(index | below).wrapping_add(1)
    }

    /// The guest invalidates everything, or all of some PCID: what it may have written unseen is
    /// looked at. Nothing is rebuilt.
    ///
    /// # Errors
    ///
    /// Guest memory that cannot be read: the entries there were dropped.
    pub fn invalidate_all<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
    ) -> Result<Owed, Failed<M::Error>> {
        let result = self.sync_all(machine);
        self.settle_up_for_good(result).map(|((), owed)| owed)
    }

    /// Compares every table that is not guarded and that something leads to, and guards what can be.
    pub(super) fn sync_all<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
    ) -> Result<(), Cause<M::Error>> {
        self.sync_those(machine, |mmu, id| {
            mmu.pages.get(id).is_some_and(Page::in_use)
        })
    }

    /// The guest loads `root`: the same for those that a walk from it can come to. The others are looked at when
    /// their own root is loaded, or when a table above them is linked.
    pub(super) fn sync_loaded<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        root: u32,
    ) -> Result<(), Cause<M::Error>> {
        if self.unguarded() {
            return self.refresh(machine, root, None);
        }
        self.sync_those(machine, |mmu, id| mmu.is_below(id, root))
    }

    /// Table `top`, which is there already, is about to be within hardware's reach: compares it and what a walk
    /// from it can come to, as far as it may be stale. While nobody could come to it, nobody saw to it.
    ///
    /// `pass`: the one under way, if there is one.
    pub(super) fn refresh<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        top: u32,
        pass: Option<Pass>,
    ) -> Result<(), Cause<M::Error>> {
        let Some(page) = self.pages.get(top) else {
            return Ok(());
        };
        if self.unguarded() {
            // All may be: downwards, each once in a pass.
            return self.drop_wrong_below(machine, top, pass);
        }
        if page.key.level == 1 && page.sync == Sync::Guarded {
            return Ok(());
        }
        // Few are: upwards from those.
        let mut result = Ok(());
        let mut at = 0;
        while let Some(&id) = self.unsync.get(at) {
            at = at.saturating_add(1);
            if self.is_below(id, top) {
                let synced = self.sync_table(machine, id);
                result = result.and(synced.map(|_| ()));
            }
        }
        result.map_err(Cause::from)
    }

    fn sync_those<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        which: impl Fn(&Self, u32) -> bool,
    ) -> Result<(), Cause<M::Error>> {
        let mut result = Ok(());
        let mut kept = 0;
        let mut at = 0;
        while let Some(&id) = self.unsync.get(at) {
            at = at.saturating_add(1);
            let mut done = false;
            if which(self, id) {
                let state = match self.sync_and_guard(machine, id) {
                    Ok(state) => state,
                    Err(unread) => {
                        result = Err(unread);
                        self.unsynced()
                    }
                };
                done = state == Sync::Guarded;
                if let Some(page) = self.pages.get_mut(id) {
                    page.sync = state;
                    if done {
                        page.seen = None;
                    }
                }
            }
            if !done {
                // Never more than were looked at.
                if let Some(place) = self.unsync.get_mut(kept) {
                    *place = id;
                }
                kept = kept.saturating_add(1);
            }
        }
        self.unsync.truncate(kept);
        result.map_err(Cause::from)
    }

    /// Whether a walk from table `top` can come to table `id`. May say so of one that it cannot come to: one with
    /// many parents is the kernel's, mostly.
    fn is_below(&self, id: u32, top: u32) -> bool {
        id == top
            || self.pages.get(id).is_some_and(|page| {
                let parents = page.parents;
                self.reverse.lists.len(parents) > MOST_PARENTS
                    || self
                        .reverse
                        .lists
                        .iter(parents)
                        .any(|link| self.is_below(link.page(), top))
            })
    }

    /// Compares the table behind `id`. One that the guest goes on writing stays unsync: to guard it would cost a fault at
    /// its next write. Otherwise it is guarded. What its state is now.
    fn sync_and_guard<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        id: u32,
    ) -> Result<Sync, Unread<M::Error>> {
        let Some((Base::Table(frame), was)) =
            self.pages.get(id).map(|page| (page.key.base, page.sync))
        else {
            return Ok(Sync::Guarded);
        };
        if self.unguarded() {
            return self.sync_table(machine, id).map(|_| Sync::Unsync);
        }
        if was == Sync::Unsync {
            let compared = self.sync_table(machine, id);
            let enough = self.pages.get_mut(id).is_none_or(|page| match compared {
                Ok(Compared::Changed) => {
                    page.heat.changed();
                    false
                }
                Ok(Compared::Same) => page.heat.same(),
                Err(_) => true,
            });
            if !enough {
                return Ok(Sync::Unsync);
            }
            // What is written meanwhile is written after the guest's invalidation: it is found by the next one.
            let writers = self.guard(machine, frame);
            return compared.map(|_| self.after_guarding(writers));
        }
        let writers = self.guard(machine, frame);
        self.sync_table(machine, id)?;
        Ok(self.after_guarding(writers))
    }

    /// The state of a table that was not compared as a whole.
    fn unsynced(&self) -> Sync {
        if self.unguarded() {
            Sync::Unsync
        } else {
            Sync::Pending
        }
    }

    /// The guest's memory was written: `length` bytes at guest-physical `at`.
    ///
    /// To be called after each emulated write to a guarded table, and after every other write that
    /// does not go through the shadow (devices, the host). Entries behind other memory cost nothing.
    pub fn guest_wrote(&mut self, at: u64, length: u64) -> Owed {
        let Some(more) = length.checked_sub(1) else {
            return self.owe();
        };
        let (first, last) = (at >> 12, at.saturating_add(more) >> 12);
        // Dropping entries takes no table away, so the numbers stay.
        if last.saturating_sub(first) < self.pages.live() as u64 {
            for frame in first..=last {
                let mut seen = 0;
                while let Some(id) = self.pages.shadow_of(frame << 12, seen) {
                    seen = seen.saturating_add(1);
                    self.drop_behind(id, at, length);
                }
            }
        } else {
            for id in 0..self.budget as u32 {
                self.drop_behind(id, at, length);
            }
        }
        self.owe()
    }

    /// Drops the entries of table `id` that come from `length` bytes at guest-physical `at`.
    fn drop_behind(&mut self, id: u32, at: u64, length: u64) {
        let Some(row) = self.row(id) else {
            return;
        };
        let Some(guest) = row.stage.guest() else {
            return;
        };
        let shadow = row.stage.shadow();
        let entries = row.key.entries_behind(guest, shadow, at, length);
        for index in entries {
            self.drop_entry(Link::new(id, index));
        }
    }
}

impl<E> From<Unread<E>> for Cause<E> {
    fn from(unread: Unread<E>) -> Self {
        let Unread { level, at, error } = unread;
        Self::Memory { level, at, error }
    }
}
