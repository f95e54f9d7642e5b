// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Guarding a guest's table: while it is shadowed, no leaf can write it, so each write is seen.
//!
//! Hardware may hold a writable translation until the flush is done. So a table that was writable when
//! it was guarded is *pending*: its shadow is compared with it once more, when the guest invalidates
//! and no token is out.

use hvkit_page_table::{Encode, Entry, Format, Frames, OwnEntries};

use super::Mmu;
use super::entry::Attributes;
use super::host::{HostMap, HostRights, Machine};
use super::links::Link;
use super::pages::{Page, Sync};
use super::reverse_map::page_size;
use super::stage::{Rights, Stage};

/// Whether any leaf could write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Was {
    /// None.
    ReadOnly,
    /// Some leaf, which cannot now.
    Writable,
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// Takes the right to write from every leaf that maps the 4 KiB at host address `host`.
    pub(super) fn write_protect(&mut self, host: u64) -> Was {
        let mut was = Was::ReadOnly;
        for level in 1..=3 {
            let page = host & !page_size(level).wrapping_sub(1);
            let mut at = 0;
            while let Some(place) = self.reverse.place(level, page)
                && let Some(link) = self.reverse.link(place, at)
            {
                if self.protect_leaf(link) == Was::Writable {
                    was = Was::Writable;
                }
                // A leaf that was dropped left its place to another.
                at = at.saturating_add(usize::from(self.maps(link, page)));
            }
        }
        was
    }

    /// Takes the right to write from the leaf at `link`: a large one goes as a whole.
    pub(super) fn protect_leaf(&mut self, link: Link) -> Was {
        let Entry::Leaf { target, attributes } = self.slot(link) else {
            return Was::ReadOnly;
        };
        let Some((stage, level, _)) = self.stage_of(link) else {
            return Was::ReadOnly;
        };
        match stage.protect(attributes) {
            Some(same) if same == attributes => return Was::ReadOnly,
            Some(protected) if level == 1 && stage.shadow().check(protected, level).is_ok() => {
                self.change_leaf(link, target, attributes, protected);
            }
            _ => self.drop_entry(link),
        }
        Was::Writable
    }

    /// Takes the right to write the guest's frame at `frame` from every leaf. `None` if it is not
    /// memory.
    pub(super) fn guard<M, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        frame: u64,
    ) -> Option<Was> {
        let page = machine.map.backing(frame).page(frame, 4096)?;
        Some(self.write_protect(page.host))
    }

    /// The attributes of a leaf of the lowest level to guest-physical `target`, whoever uses it first: without the right
    /// to write a table that is guarded.
    pub(super) fn usual(
        &self,
        stage: &S,
        rights: Rights,
        host: HostRights,
        target: u64,
    ) -> Option<Attributes<S>> {
        let most = stage.grant(rights, host, None)?;
        // Looked up only where it matters.
        if stage.protect(most) == Some(most) || !self.guards(target) {
            return Some(most);
        }
        let host = HostRights {
            write: false,
            ..host
        };
        stage.grant(rights, host, None)
    }

    /// The state of a table that was compared right after it was guarded. What a processor may still
    /// write through is flushed with this step's token, or with an earlier one that is still out.
    pub(super) fn after_guarding(&self, was: Option<Was>) -> Sync {
        if was == Some(Was::ReadOnly) && self.unsettled == 0 && self.debt.is_empty() {
            Sync::Guarded
        } else {
            Sync::Pending
        }
    }

    /// Puts a table on the list of those to look at when the guest invalidates.
    pub(super) fn watch(&mut self, id: u32, sync: Sync) {
        if let Some(page) = self.pages.get_mut(id) {
            if page.sync == Sync::Guarded {
                self.unsync.push(id);
            }
            page.sync = sync;
        }
    }

    /// Whether the guest's table behind `page` may be written unseen until the guest invalidates.
    pub(super) fn may_be_unsync(page: &Page) -> bool {
        page.key.level == 1
    }

    /// The format's shape of tables at `level`, in entries.
    pub(super) fn entries(stage: &S, level: u8) -> u64 {
        stage.shadow().shape().entries(level)
    }
}
