// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looking at everything: whether each shadow entry, list and state is as the rules say.

use hvkit_page_table::{Entry, Format, Frames, OwnEntries, ReadEntry};

use super::Mmu;
use super::entry::Slot;
use super::expect::Expected;
pub(super) use super::expect::Wrong;
use super::host::{HostMap, Machine};
use super::key::Base;
use super::links::Link;
use super::pages::Sync;
use super::row::{Near, Row, line_of};
use super::stage::Stage;

/// Something that must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// An entry that the guest's tables, the host's map or a guard do not allow.
    Entry {
        /// Host-physical address of the shadow table.
        table: u64,
        /// Which entry.
        index: usize,
        /// What is wrong with it.
        wrong: Wrong,
    },
    /// An entry behind which the guest's could not be read.
    Unreadable {
        /// Host-physical address of the shadow table.
        table: u64,
        /// Which entry.
        index: usize,
    },
    /// A leaf that the reverse map does not know.
    LostLeaf {
        /// Host-physical address of the shadow table.
        table: u64,
        /// Which entry.
        index: usize,
    },
    /// A link to a table that is not there, or does not know of it.
    LostLink {
        /// Host-physical address of the shadow table.
        table: u64,
        /// Which entry.
        index: usize,
    },
    /// More links are remembered than there are.
    Remembered {
        /// Links in lists.
        listed: usize,
        /// Entries of tables.
        entries: usize,
    },
    /// An entry in a line of its table that is taken for empty.
    Overlooked {
        /// Host-physical address of the shadow table.
        table: u64,
        /// Which entry.
        index: usize,
    },
    /// An entry that is wrong by the very entry of the guest's by which it was found right.
    Misremembered {
        /// Host-physical address of the shadow table.
        table: u64,
        /// Which entry.
        index: usize,
    },
    /// A table that is not guarded and on no list, or the other way round.
    Unlisted {
        /// Host-physical address of the shadow table.
        table: u64,
    },
    /// More frames than the budget.
    Budget {
        /// Frames in use.
        frames: usize,
    },
}

/// What an audit saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Tables looked at.
    pub tables: usize,
    /// Leaves among their entries.
    pub leaves: usize,
    /// Links among their entries.
    pub links: usize,
    /// Tables that are not guarded.
    pub unsync: usize,
    /// Entries that are stale as a TLB's may be: their tables are not guarded.
    pub stale: usize,
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// Looks at every entry of every table, and tells `found` of each one that breaks a rule. Changes
    /// nothing.
    pub fn audit<M: ReadEntry, B: HostMap>(
        &self,
        machine: Machine<'_, M, B>,
        mut found: impl FnMut(Finding),
    ) -> Audit {
        let mut audit = Audit::default();
        for id in self.pages.ids() {
            self.audit_table(machine, id, &mut audit, &mut found);
        }
        let parents = self.pages.ids().filter_map(|id| self.pages.get(id));
        let parents: usize = parents
            .map(|page| self.reverse.lists.len(page.parents))
            .sum();
        for (listed, entries) in [
            (self.reverse.live(), audit.leaves),
            (parents, audit.links),
            (self.unsync.len(), audit.unsync),
        ] {
            if listed != entries {
                found(Finding::Remembered { listed, entries });
            }
        }
        if self.held > self.budget || self.held < self.pages.live() {
            found(Finding::Budget { frames: self.held });
        }
        audit
    }

    fn audit_table<M: ReadEntry, B: HostMap>(
        &self,
        machine: Machine<'_, M, B>,
        id: u32,
        audit: &mut Audit,
        found: &mut impl FnMut(Finding),
    ) {
        let Some(page) = self.pages.get(id) else {
            return;
        };
        let table = page.frame;
        audit.tables = audit.tables.saturating_add(1);
        let unsync = page.sync != Sync::Guarded;
        audit.unsync = audit.unsync.saturating_add(usize::from(unsync));
        let shadows = matches!(page.key.base, Base::Table(_));
        if unsync != self.unsync.contains(&id) || unsync && !shadows {
            found(Finding::Unlisted { table });
        }
        let Some(row) = self.row(id) else {
            return;
        };
        let near = Near::new(machine.map);
        for index in 0..Self::entries(row.stage, page.key.level) as usize {
            let word = self.word(&row, index);
            if word == row.empty {
                continue;
            }
            if page.lines & line_of(index) == 0 {
                found(Finding::Overlooked { table, index });
            }
            let (link, slot) = (Link::new(id, index), row.decode(word));
            match slot {
                Entry::Leaf { target, .. } => {
                    audit.leaves = audit.leaves.saturating_add(1);
                    if !self.knows_leaf(page.key.level, target, link) {
                        found(Finding::LostLeaf { table, index });
                    }
                }
                Entry::Table { frame, .. } => {
                    audit.links = audit.links.saturating_add(1);
                    if !self.knows_link(frame, link) {
                        found(Finding::LostLink { table, index });
                    }
                }
                Entry::Empty | Entry::Malformed(_) => (),
            }
            let Ok(expected) = row.expected(machine.memory, index) else {
                found(Finding::Unreadable { table, index });
                continue;
            };
            let Some(wrong) = self.wrong(&row, &near, &slot, expected) else {
                continue;
            };
            if let Some(seen) = &page.seen
                && let Ok(Some(behind)) = row.behind(machine.memory, index)
                && seen.was(index, behind.entry)
            {
                found(Finding::Misremembered { table, index });
            }
            // What a guest may see of it, it may see of a TLB.
            let stale = unsync && wrong != Wrong::WritesGuarded && wrong != Wrong::Malformed;
            let wrong = if stale {
                self.never_stale(machine.map, &row, &near, &slot, expected)
            } else {
                Some(wrong)
            };
            match wrong {
                Some(wrong) => found(Finding::Entry {
                    table,
                    index,
                    wrong,
                }),
                None => audit.stale = audit.stale.saturating_add(1),
            }
        }
    }

    /// What no entry may be, however far behind the guest: a leaf that can write what the MMU or the host keeps from being
    /// written. Its own target tells, as far as the map does: that says of guest frames what is behind them and not
    /// the reverse, so of a leaf that the guest's entry does not stand for any more only guarded tables are known.
    fn never_stale<B: HostMap>(
        &self,
        map: &B,
        row: &Row<'_, S>,
        near: &Near<'_, B>,
        slot: &Slot<S>,
        expected: Expected,
    ) -> Option<Wrong> {
        let Entry::Leaf { target, attributes } = *slot else {
            return None;
        };
        if row.stage.protect(attributes) == Some(attributes) {
            return None;
        }
        let size = row.stage.shadow().shape().size(row.key.level);
        let guarded = |frame: u64| {
            let page = map.backing(frame).page(frame, 4096);
            page.is_some_and(|page| page.host.wrapping_sub(target) < size)
        };
        let writes_guarded = self.pages.ids().any(|id| {
            self.pages.get(id).is_some_and(|page| match page.key.base {
                Base::Table(frame) => page.sync != Sync::Unsync && guarded(frame),
                _ => false,
            })
        });
        if writes_guarded {
            return Some(Wrong::WritesGuarded);
        }
        let Expected::Page { target: guest, .. } = expected else {
            return None;
        };
        let page = near.backing(guest).page(guest, size)?;
        (page.host == target && !page.rights.write).then_some(Wrong::TooMuch)
    }

    fn knows_leaf(&self, level: u8, target: u64, link: Link) -> bool {
        self.reverse.place(level, target).is_some_and(|place| {
            (0..self.reverse.count(place)).any(|at| self.reverse.link(place, at) == Some(link))
        })
    }

    fn knows_link(&self, frame: u64, link: Link) -> bool {
        let child = self.pages.at_frame(frame);
        child
            .and_then(|child| self.pages.get(child))
            .is_some_and(|page| self.reverse.lists.iter(page.parents).any(|l| l == link))
    }
}
