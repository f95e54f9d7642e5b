// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking shadow tables back: because the budget is used up, because the guest's table is one no more,
//! or because the host wants its memory.

use hvkit_page_table::{Frames, OwnEntries};

use super::links::Head;
use super::pages::{Page, Sync};
use super::stage::Stage;
use super::{Mmu, Owed, Reclaim};

/// Frames that a fault should find free: a path's, and one.
const RESERVE: usize = 6;

/// Tables that are not given up ahead of need: those below a root that one instruction may need at a time, its own
/// page's, its stack's, its operands', with descriptors, four for each. Without them it would never be done.
const KEPT: usize = 24;

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// Gives up to `count` shadow tables back, those first that were not used for long. Roots of open
    /// spaces stay, and what [`Tuning::reclaim`](super::Tuning) spares.
    pub fn shrink(&mut self, count: usize) -> Owed {
        self.reclaim(count);
        self.owe()
    }

    /// How many tables to give up at a time.
    pub(super) fn batch(&self) -> usize {
        (self.budget / 16).max(RESERVE)
    }

    /// Gives tables up ahead of need: their frames come back when the token is settled, so the next
    /// fault need not be tried twice.
    pub(super) fn keep_some_free(&mut self) {
        if self.held.saturating_add(RESERVE) > self.budget
            && self.unsettled == 0
            && self.debt.frames() == 0
        {
            let more = self.pages.but_roots().saturating_sub(KEPT);
            self.reclaim(self.batch().min(more));
        }
    }

    /// Gives tables up to go on with the way of tables that `way` begins, and none of those. `Retry` follows if that
    /// gives frames.
    pub(super) fn reclaim_for(&mut self, way: &[u32]) {
        self.reclaim_but(self.batch(), way);
        // What others' tokens hold may be enough: their owners settle them, and this one meanwhile.
        if self.debt.frames() == 0 && self.held > self.pages.live() {
            self.reclaim(self.batch());
        }
    }

    pub(super) fn reclaim(&mut self, count: usize) {
        self.reclaim_but(count, &[]);
    }

    fn reclaim_but(&mut self, count: usize, but: &[u32]) {
        for _ in 0..count {
            let any = self.tuning.reclaim == Reclaim::Any;
            let victim = self.pages.victim(|id, page: &Page| {
                (any || page.parents == Head::EMPTY) && !but.contains(&id)
            });
            let Some(id) = victim else {
                return;
            };
            self.remove_table(id);
        }
    }

    /// Removes a table: its entries, the links to it, then itself. Its frame goes into the token.
    pub(super) fn remove_table(&mut self, id: u32) {
        // Unlinked first: what is below must not be reached any more when it changes.
        while let Some(parents) = self.pages.get(id).map(|page| page.parents)
            && let Some(link) = self.reverse.lists.get(parents, 0)
        {
            self.drop_entry(link);
        }
        self.empty_table(id);
        let Some(page) = self.pages.remove(id) else {
            return;
        };
        if page.sync != Sync::Guarded {
            self.unsync.retain(|&other| other != id);
        }
        // Without its format the frame could only be lost.
        if let Some(stage) = self.stages.get(usize::from(page.key.stage)) {
            self.debt.take(stage.shadow(), &self.tables, page.frame);
        }
    }
}
