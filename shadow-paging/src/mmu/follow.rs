// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Following a guest's tables without faults: what a device needs, whose DMA cannot be tried again.
//!
//! ```text
//!   guest: entry changed, invalidate span, wait
//!            |
//!            v
//!   follow:  1. every entry of the shadow in the span that is wrong is dropped; nothing can prevent it
//!            2. every page that the guest maps in the span is mapped
//!            |
//!            v
//!   settle:  the real unit forgets; then the guest's wait is done
//! ```
//!
//! A table that is reached over and over (the guest may link tables in circles) is looked at as a whole
//! once in each pass: the work is bounded by the budget, not by what the guest's tables unfold to.

use hvkit_page_table::{Entry, Format, Frames, OwnEntries, ReadEntry, Span};

use super::entry::fits;
use super::expect::Expected;
use super::host::{HostMap, Machine};
use super::key::{Base, Key, coverage};
use super::links::Link;
use super::pages::{Page, Pass};
use super::space::Space;
use super::stage::{Rights, Stage};
use super::{Cause, Failed, Mmu, Owed, Reclaim};

/// The last of 2^`bits` addresses from 0 on; no table has more than 63 bits.
const fn last_of(bits: u32) -> u64 {
    1u64.wrapping_shl(bits).wrapping_sub(1)
}

/// A table that is passed over, and the part of it: addresses from its first byte on.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    level: u8,
    first: u64,
    last: u64,
}

impl Part {
    /// What of the part lies under entry `index`, as a part of the table `id` there.
    fn below(self, id: u32, index: usize, shift: u32) -> Self {
        let start = (index as u64) << shift;
        Self {
            id,
            level: self.level.saturating_sub(1),
            first: self.first.saturating_sub(start),
            last: self.last.saturating_sub(start).min(last_of(shift)),
        }
    }

    /// The entries that the part touches.
    fn entries(self, shift: u32) -> core::ops::RangeInclusive<usize> {
        (self.first >> shift) as usize..=(self.last >> shift) as usize
    }
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// The guest invalidates the addresses `span` in `space`: afterwards the shadow maps there what the
    /// guest's tables do, as far as they need no accessed or dirty flag set and the host has memory.
    ///
    /// For devices in place of [`fault`](Self::fault): call it with everything after
    /// [`open`](Self::open) and [`enter`](Self::enter), and with its addresses for each invalidation of the
    /// guest's, mapping included (VT-d's caching mode, which the guest must be offered). Tell the guest that
    /// its invalidation is done once the token is settled.
    ///
    /// Where there are no tables ([`Top::Direct`](super::Top)) and the map does not say where
    /// [memory begins](HostMap::memory_from), `span` should be memory: a table is made for each part of it.
    ///
    /// # Errors
    ///
    /// [`Cause::Foreign`] and [`Cause::Guarding`] (the MMU did not begin with
    /// [`Unsync::Always`](super::Unsync), which [`Tuning::DEVICES`](super::Tuning::DEVICES) has): nothing was done.
    ///
    /// Any other: nothing that the guest does not map is mapped in the span any more; what it maps may
    /// be missing. [`Cause::OutOfFrames`] with a token that is not empty: settle it and call again.
    pub fn follow<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        span: Span,
    ) -> Result<Owed, Failed<M::Error>> {
        let result = self.follow_span(space, machine, span);
        if matches!(result, Err(Cause::OutOfFrames)) {
            self.reclaim(self.batch());
        }
        self.settle_up_for_good(result).map(|((), owed)| owed)
    }

    fn follow_span<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        span: Span,
    ) -> Result<(), Cause<M::Error>> {
        if space.owner != self.owner {
            return Err(Cause::Foreign);
        }
        if !self.unguarded() {
            return Err(Cause::Guarding);
        }
        let shape = space.stage.shadow().shape();
        let level = shape.levels();
        let reach = last_of(coverage(shape, level));
        if span.length == 0 || span.start > reach {
            return Ok(());
        }
        let all = Part {
            id: space.root,
            level,
            first: span.start,
            last: span.last().min(reach),
        };
        let pass = self.pages.begin_pass();
        let dropped = self.drop_wrong(machine, all, pass);
        self.fill(machine, all, pass).and(dropped)
    }

    /// Drops what is wrong in table `id` and in all below it.
    pub(super) fn drop_wrong_below<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        id: u32,
        pass: Option<Pass>,
    ) -> Result<(), Cause<M::Error>> {
        let Some(row) = self.row(id) else {
            return Ok(());
        };
        let level = row.key.level;
        let whole = Part {
            id,
            level,
            first: 0,
            last: last_of(coverage(row.stage.shadow().shape(), level)),
        };
        let pass = pass.unwrap_or_else(|| self.pages.begin_pass());
        self.drop_wrong(machine, whole, pass)
    }

    /// Whether there is nothing more to see in `part`: it is a whole table, and `pass` has been there, which
    /// `stamp` tells.
    fn done(&mut self, part: Part, pass: Pass, stamp: impl Fn(&mut Page) -> &mut Pass) -> bool {
        let Some(row) = self.row(part.id) else {
            return true;
        };
        let last = last_of(coverage(row.stage.shadow().shape(), part.level));
        let whole = part.first == 0 && part.last == last;
        let page = self.pages.get_mut(part.id).filter(|_| whole);
        page.is_some_and(|page| core::mem::replace(stamp(page), pass) == pass)
    }

    fn shift(&self, part: Part) -> u32 {
        let row = self.row(part.id);
        row.map_or(0, |row| row.stage.shadow().shape().shift(part.level))
    }

    /// Entries that cannot be read are dropped; the first is told of when everything has been seen.
    fn drop_wrong<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        part: Part,
        pass: Pass,
    ) -> Result<(), Cause<M::Error>> {
        if self.done(part, pass, |page| &mut page.checked) {
            return Ok(());
        }
        let (shift, mut result) = (self.shift(part), Ok(()));
        for index in part.entries(shift) {
            let link = Link::new(part.id, index);
            let checked = self.check(machine, link).map_err(Cause::from);
            result = result.and(checked.map(|_| ()));
            if let Some(child) = self.child(link) {
                let below = self.drop_wrong(machine, part.below(child, index, shift), pass);
                result = result.and(below);
            }
        }
        result
    }

    /// The table that the entry at `link` leads to.
    fn child(&self, link: Link) -> Option<u32> {
        match self.slot(link) {
            Entry::Table { frame, .. } => self.pages.at_frame(frame),
            _ => None,
        }
    }

    /// Maps what the guest maps. Entries that cannot be read are left empty; the first is told of.
    fn fill<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        part: Part,
        pass: Pass,
    ) -> Result<(), Cause<M::Error>> {
        if self.done(part, pass, |page| &mut page.filled) {
            return Ok(());
        }
        let (shift, mut result) = (self.shift(part), Ok(()));
        for index in part.entries(shift) {
            let link = Link::new(part.id, index);
            match self.fill_entry(machine, part, link, pass) {
                Err(unread @ Cause::Memory { .. } | unread @ Cause::TableOutsideMemory { .. }) => {
                    result = result.and(Err(unread));
                }
                other => other?,
            }
        }
        result
    }

    fn fill_entry<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        part: Part,
        link: Link,
        pass: Pass,
    ) -> Result<(), Cause<M::Error>> {
        let shift = self.shift(part);
        let key = match self.expected(machine.memory, link)? {
            Expected::Nothing => return Ok(()),
            Expected::Child(key) => key,
            Expected::Page { target, rights } => {
                let memory = machine.map.memory_from(target);
                if memory.is_none_or(|from| from.saturating_sub(target) >> shift != 0) {
                    return Ok(());
                }
                if self.fill_leaf(machine, link, target, rights)? || part.level == 1 {
                    return Ok(());
                }
                let Some(stage) = self.pages.get(part.id).map(|page| page.key.stage) else {
                    return Ok(());
                };
                Key {
                    base: Base::Direct(target),
                    level: part.level.saturating_sub(1),
                    part: 0,
                    stage,
                    rights,
                }
            }
        };
        let below = match self.linked(link, &key) {
            Some(child) => part.below(child, link.index(), shift),
            None => {
                let child = self.current_table(&key, machine, Some(pass))?;
                self.put_link(link, child)?;
                // As a whole: what lies beside the span was mapped by what was here before, and may be in
                // use.
                Part {
                    id: child,
                    level: part.level.saturating_sub(1),
                    first: 0,
                    last: last_of(shift),
                }
            }
        };
        self.fill(machine, below, pass)
    }

    /// Puts a leaf at `link` if one leaf can say it. Whether there is nothing more to do.
    fn fill_leaf<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        link: Link,
        target: u64,
        rights: Rights,
    ) -> Result<bool, Cause<M::Error>> {
        let Some((&stage, level, _)) = self.stage_of(link) else {
            return Ok(true);
        };
        let shape = stage.shadow().shape();
        let size = shape.size(level);
        // Nothing is guarded here, so a page may be as large as it likes.
        if level > self.tuning.largest.max(1) || !shape.leaf_at(level) {
            return Ok(false);
        }
        let Some(page) = machine.map.backing(target).page(target, size) else {
            return Ok(false);
        };
        if !fits(&stage, level, page.host) {
            return Ok(true);
        }
        let Some(attributes) = self.usual(&stage, rights, page.rights, target) else {
            return Ok(true);
        };
        match self.slot(link) {
            Entry::Leaf {
                target,
                attributes: old,
            } if target == page.host => {
                self.change_leaf(link, target, old, attributes);
            }
            _ => {
                let most = Self::MOST_MAPPINGS_FOR_DEVICES;
                if self.tuning.reclaim == Reclaim::Unlinked
                    && self.mappings(level, page.host) >= most
                {
                    return Err(Cause::Crowded { host: page.host });
                }
                self.put_leaf(link, page.host, attributes)?;
            }
        }
        Ok(true)
    }
}
