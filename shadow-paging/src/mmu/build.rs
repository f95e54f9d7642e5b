// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The way from a root to the table that a leaf goes into.
//!
//! Each table on the way is found by its role, or made; a link to another one is replaced.

use hvkit_page_table::{Encode, Entry, Format, Frames, MAX_LEVELS, OwnEntries, ReadEntry, Width};

use super::guard::Was;
use super::host::{Backing, HostMap, Machine};
use super::key::{Base, Key, key_on_path};
use super::links::{Head, Link};
use super::pages::{Heat, Page, Pass, Sync, room};
use super::space::Space;
use super::stage::{Path, Stage};
use super::{Cause, Mmu};

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// The entry for a leaf at `level` on `path`, with every table above it linked. Where a frame is missing, other tables
    /// are given up if there are any.
    pub(super) fn leaf_slot<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        path: &Path,
        address: u64,
        level: u8,
    ) -> Result<Link, Cause<M::Error>> {
        let shape = *space.stage.shadow().shape();
        let bits = shape.strip(address).unwrap_or(0);
        let index = shape.index(bits, level) as usize;
        if let Some(id) = self.quick(space, path, bits, level) {
            return Ok(Link::new(id, index));
        }
        // By level of the table.
        let mut way = [space.root; MAX_LEVELS];
        let mut id = space.root;
        for below in (level..shape.levels()).rev() {
            let key = key_on_path(&space.stage, space.number, path, bits, below);
            let here = below.saturating_add(1);
            let link = Link::new(id, shape.index(bits, here) as usize);
            id = match self.linked(link, &key) {
                Some(child) => child,
                None => {
                    let child = self.current_table(&key, machine, None);
                    if matches!(child, Err(Cause::OutOfFrames)) {
                        self.reclaim_for(&way);
                    }
                    let child = child?;
                    self.put_link(link, child)?;
                    child
                }
            };
            if let Some(slot) = way.get_mut(usize::from(below)) {
                *slot = id;
            }
            self.touch(id);
        }
        Ok(Link::new(id, index))
    }

    /// The table that the leaf goes into, if everything above it is linked: the usual case, as fast as
    /// a walk.
    fn quick(&mut self, space: &Space<S>, path: &Path, bits: u64, level: u8) -> Option<u32> {
        let (format, shape) = (space.stage.shadow(), space.stage.shadow().shape());
        let mut table = space.frame;
        for above in (level.saturating_add(1)..=shape.levels()).rev() {
            let at = shape.entry_at(table, bits, above);
            match format.decode(self.tables.load(at, Width::Eight), above) {
                Entry::Table { frame, .. } => table = frame,
                _ => return None,
            }
        }
        if level == shape.levels() {
            return Some(space.root);
        }
        let key = key_on_path(&space.stage, space.number, path, bits, level);
        let id = self.pages.find(&key)?;
        let page = self.pages.get_mut(id)?;
        page.used = true;
        page.writes = 0;
        (page.frame == table).then_some(id)
    }

    /// The table that the entry at `link` leads to, if it is the one with `key`.
    pub(super) fn linked(&self, link: Link, key: &Key) -> Option<u32> {
        let Entry::Table { frame, .. } = self.slot(link) else {
            return None;
        };
        let child = self.pages.at_frame(frame)?;
        (self.pages.get(child)?.key == *key).then_some(child)
    }

    fn touch(&mut self, id: u32) {
        if let Some(page) = self.pages.get_mut(id) {
            page.used = true;
            page.writes = 0;
        }
    }

    /// The table with `key`, to be linked: as it would be if it were made now. One that was linked nowhere, or in
    /// other address spaces, may have entries that this address space never had, and so may those below it.
    /// `pass`: the one under way, if there is one.
    pub(super) fn current_table<M: ReadEntry, B: HostMap>(
        &mut self,
        key: &Key,
        machine: Machine<'_, M, B>,
        pass: Option<Pass>,
    ) -> Result<u32, Cause<M::Error>> {
        if let Some(id) = self.pages.find(key) {
            self.refresh(machine, id, pass)?;
        }
        self.table(key, machine)
    }

    /// The table with `key`: one that is there, or a new one without entries.
    pub(super) fn table<M: ReadEntry, B: HostMap>(
        &mut self,
        key: &Key,
        machine: Machine<'_, M, B>,
    ) -> Result<u32, Cause<M::Error>> {
        if let Some(id) = self.pages.find(key) {
            self.touch(id);
            return Ok(id);
        }
        if let Base::Table(frame) | Base::Above(frame) = key.base
            && !matches!(machine.map.backing(frame), Backing::Memory { .. })
        {
            return Err(Cause::TableOutsideMemory { frame });
        }
        let tables = self.pages.reserve()?;
        room(&mut self.unsync, tables)?;
        let frame = self.allocate(key)?;
        let id = self.pages.insert(Page {
            key: *key,
            frame,
            lines: 0,
            parents: Head::EMPTY,
            sync: Sync::Guarded,
            roots: 0,
            writes: 0,
            used: true,
            checked: 0,
            filled: 0,
            heat: Heat::default(),
            seen: None,
        });
        if let (Base::Table(_), true) = (key.base, self.unguarded()) {
            self.watch(id, Sync::Unsync);
        } else if let Base::Table(table) = key.base {
            let was = self.guard(machine, table).or(Some(Was::Writable));
            let sync = self.after_guarding(was);
            if sync != Sync::Guarded {
                self.watch(id, sync);
            }
        }
        Ok(id)
    }

    /// A frame for a table with `key`, filled with empty entries.
    fn allocate<E>(&mut self, key: &Key) -> Result<u64, Cause<E>> {
        // Only a key of another MMU names a stage that this one has not.
        let stage = self.stages.get(usize::from(key.stage));
        let stage = stage.ok_or(Cause::Foreign)?;
        let format = *stage.shadow();
        if self.held >= self.budget {
            return Err(Cause::OutOfFrames);
        }
        let frame = self.pool.allocate().ok_or(Cause::OutOfFrames)?;
        let bits = if key.level == format.shape().levels() {
            stage.root_bits().min(format.frame_bits())
        } else {
            format.frame_bits()
        };
        if frame & 0xfff != 0 || frame >> bits.min(52) != 0 {
            self.pool.free(frame);
            return Err(Cause::BadFrame { frame });
        }
        self.held = self.held.saturating_add(1);
        // A whole frame, however few entries the table has: its frame may serve another format next.
        let empty = format.empty();
        self.tables.fill(frame, Width::Eight, 512, |_| empty);
        Ok(frame)
    }
}
