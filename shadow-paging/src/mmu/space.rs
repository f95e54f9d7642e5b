// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One processor's address space: where its tables begin, the guest's and ours.

use hvkit_page_table::{Frames, OwnEntries, ReadEntry};

use super::host::{HostMap, Machine};
use super::key::root_key;
use super::pages::{Page, Sync};
use super::stage::{Stage, Top};
use super::{Cause, Failed, Mmu, Owed};

/// What one of the guest's processors translates by. One for each, kept by the caller.
///
/// While it is open, its root is not reclaimed: [`close`](Mmu::close) it in the end.
#[derive(Debug)]
#[must_use = "its root stays until it is closed"]
pub struct Space<S> {
    pub(super) owner: u64,
    pub(super) stage: S,
    pub(super) number: u8,
    pub(super) top: Top,
    /// Number and frame of the root.
    pub(super) root: u32,
    pub(super) frame: u64,
}

impl<S: Stage> Space<S> {
    /// Host-physical address of the shadow's root: for CR3, or an EPT pointer.
    #[inline]
    pub const fn root(&self) -> u64 {
        self.frame
    }

    /// What its entries mean.
    pub const fn stage(&self) -> &S {
        &self.stage
    }

    /// Where the guest's tables begin.
    pub const fn top(&self) -> &Top {
        &self.top
    }
}

/// What a processor forgets when it begins to translate by other tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Load {
    /// All but global translations, or all: what the guest wrote unseen must be looked at.
    Forget,
    /// Nothing: MOV to CR3 with bit 63 set, while CR4.PCIDE is. For a root by which this processor has translated
    /// since it last forgot what goes by the same tag.
    Keep,
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// A space for a processor whose tables begin at `top` and mean what `stage` says.
    ///
    /// # Errors
    ///
    /// No frame or memory for its root, or the guest's root is not in memory. [`Cause::OutOfFrames`] with a token that is
    /// not empty: settle it and try again.
    pub fn open<M: ReadEntry, B: HostMap>(
        &mut self,
        stage: S,
        top: Top,
        machine: Machine<'_, M, B>,
    ) -> Result<(Space<S>, Owed), Failed<M::Error>> {
        let result = self.open_root(&stage, &top, machine);
        self.make_room(&result);
        let (root, owed) = self.settle_up(result)?;
        let (number, root, frame) = root;
        let owner = self.owner;
        let space = Space {
            owner,
            stage,
            number,
            top,
            root,
            frame,
        };
        Ok((space, owed))
    }

    /// The processor of `space` begins to translate by other tables, or in another mode. A root that is
    /// there already is used again, with all below it.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open). The space stays as it was.
    pub fn enter<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &mut Space<S>,
        stage: S,
        top: Top,
        load: Load,
        machine: Machine<'_, M, B>,
    ) -> Result<Owed, Failed<M::Error>> {
        let result = self.change_root(space, &stage, top, load, machine);
        self.make_room(&result);
        self.settle_load(load, result).map(|((), owed)| owed)
    }

    /// The same, by another root in the same mode: MOV to CR3.
    ///
    /// # Errors
    ///
    /// As [`enter`](Self::enter).
    pub fn switch<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &mut Space<S>,
        top: Top,
        load: Load,
        machine: Machine<'_, M, B>,
    ) -> Result<Owed, Failed<M::Error>> {
        let result = self.switch_root(space, top, load, machine);
        self.make_room(&result);
        self.settle_load(load, result).map(|((), owed)| owed)
    }

    /// A root that found no frame finds one the next time, if any table can be given up.
    fn make_room<R, E>(&mut self, result: &Result<R, Cause<E>>) {
        if matches!(result, Err(Cause::OutOfFrames)) {
            self.reclaim(self.batch());
        }
    }

    fn settle_load<E>(
        &mut self,
        load: Load,
        result: Result<(), Cause<E>>,
    ) -> Result<((), Owed), Failed<E>> {
        match load {
            Load::Forget => self.settle_up_for_good(result),
            Load::Keep => self.settle_up(result),
        }
    }

    fn switch_root<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &mut Space<S>,
        top: Top,
        load: Load,
        machine: Machine<'_, M, B>,
    ) -> Result<(), Cause<M::Error>> {
        if space.owner != self.owner {
            return Err(Cause::Foreign);
        }
        let same = space.top == top;
        let (root, frame, unused) = if same {
            (space.root, space.frame, false)
        } else {
            // What is below is looked at next, or was all this time.
            let root = self.table(&root_key(&space.stage, space.number, &top), machine)?;
            let unused = self.pages.get(root).is_some_and(|page| !page.in_use());
            (root, self.hold_root(root)?, unused)
        };
        let synced = match load {
            Load::Forget if !self.unsync.is_empty() => self.sync_loaded(machine, root),
            // Invalidations looked at the tables below it, as those are linked, and not at itself.
            Load::Keep if unused => self.sync_unused(machine, root),
            Load::Forget | Load::Keep => Ok(()),
        };
        if synced.is_err() && !same {
            self.leave_root(root);
        }
        synced?;
        if !same {
            self.leave_root(space.root);
            (space.top, space.root, space.frame) = (top, root, frame);
        }
        Ok(())
    }

    /// Compares `root`, that table alone, if the guest may have written it unseen.
    fn sync_unused<M: ReadEntry, B: HostMap>(
        &mut self,
        machine: Machine<'_, M, B>,
        root: u32,
    ) -> Result<(), Cause<M::Error>> {
        let guarded = |page: &Page| page.sync == Sync::Guarded;
        if self.pages.get(root).is_none_or(guarded) {
            return Ok(());
        }
        self.sync_table(machine, root)?;
        Ok(())
    }

    fn change_root<M: ReadEntry, B: HostMap>(
        &mut self,
        space: &mut Space<S>,
        stage: &S,
        top: Top,
        load: Load,
        machine: Machine<'_, M, B>,
    ) -> Result<(), Cause<M::Error>> {
        if space.owner != self.owner {
            return Err(Cause::Foreign);
        }
        if load == Load::Forget {
            self.sync_all(machine)?;
        }
        if space.top == top && space.stage == *stage {
            return Ok(());
        }
        let (number, root, frame) = self.open_root(stage, &top, machine)?;
        self.leave_root(space.root);
        *space = Space {
            owner: self.owner,
            stage: *stage,
            number,
            top,
            root,
            frame,
        };
        Ok(())
    }

    /// Ends a space. What it translated by stays for others.
    ///
    /// A space of another MMU is given up without effect.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a space that is closed cannot be used again"
    )]
    pub fn close(&mut self, space: Space<S>) {
        if space.owner == self.owner {
            self.leave_root(space.root);
        }
    }

    fn leave_root(&mut self, root: u32) {
        if let Some(page) = self.pages.get_mut(root) {
            page.roots = page.roots.saturating_sub(1);
        }
    }

    /// The root for `top`, compared and in use once more: its stage, number and frame.
    fn open_root<M: ReadEntry, B: HostMap>(
        &mut self,
        stage: &S,
        top: &Top,
        machine: Machine<'_, M, B>,
    ) -> Result<(u8, u32, u64), Cause<M::Error>> {
        let number = self.stage_number(stage)?;
        let root = self.current_table(&root_key(stage, number, top), machine, None)?;
        let frame = self.hold_root(root)?;
        Ok((number, root, frame))
    }

    /// `root` is in use once more: its frame.
    fn hold_root<E>(&mut self, root: u32) -> Result<u64, Cause<E>> {
        let page = self.pages.get_mut(root).ok_or(Cause::OutOfFrames)?;
        page.roots = page.roots.checked_add(1).ok_or(Cause::OutOfFrames)?;
        Ok(page.frame)
    }
}
