// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a page fault of the real processor comes to.
//!
//! ```text
//!  fault --> guest's own tables --- refuse --------------------------> Guest: inject
//!                 | allow: flags set in the guest's memory
//!                 v
//!            the host's map ------- device ---------------------------> Mmio: emulate
//!                 |                 nothing there, read-only ---------> Host: the host's turn
//!                 v
//!            a guarded table written? -- no entry can grant it --------> Guarded
//!                 |                      lowest level: unsync -----.
//!                 |                      written over and over ----|
//!                 |                      otherwise ----------------|--> Guarded: emulate, `guest_wrote`
//!                 v                                                |
//!            can an entry grant it? -- no -------------------------|--> Emulate
//!                 v                                                |
//!            tables on the way, leaf, neighbours <-----------------' -> Repaired: run on
//! ```

use hvkit_page_table::{Entry, Format, Frames, OwnEntries, UpdateEntry};

use super::entry::fits;
use super::host::{Backing, HostMap, HostPage, HostRights, Machine};
use super::pages::{Page, Sync};
use super::row::Near;
use super::space::Space;
use super::stage::{Path, Stage, Stopped};
use super::{Cause, Failed, Mmu, Owed, Unsync};

/// What a fault came to. `R` is what the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<R> {
    /// The guest's own tables refuse the access: inject this.
    Guest(R),
    /// The shadow allows the access now: let the guest run its instruction again.
    Repaired(Repair),
    /// A device is there: emulate the access.
    Mmio {
        /// Guest-physical address.
        physical: u64,
    },
    /// A write to a table that is shadowed: emulate it, then call [`guest_wrote`](Mmu::guest_wrote).
    Guarded {
        /// Guest-physical address.
        physical: u64,
    },
    /// The host's map does not allow the access at present: change it, or emulate.
    Host {
        /// Guest-physical address.
        physical: u64,
        /// What it lacks.
        reason: HostReason,
    },
    /// The access is allowed, but an entry that allows it would allow what the guest forbids:
    /// emulate it. A supervisor's write to a read-only user page with CR0.WP clear and CR4.SMAP set.
    ///
    /// The host allows it, and no guarded table is in the page. An emulator whose write goes on into the next
    /// page tells [`guest_wrote`](Mmu::guest_wrote), as for [`Guarded`](Self::Guarded).
    Emulate {
        /// Guest-physical address.
        physical: u64,
    },
    /// Frames are on their way back: settle the token and let the guest run its instruction again.
    Retry,
}

/// What was repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// A leaf was made.
    Mapped,
    /// A leaf grants more than it did, or something else.
    Changed,
    /// Nothing was wrong: hardware had an older entry, or another processor was first.
    ///
    /// Over and over at one place means that the access was made with other rights than the caller
    /// said.
    Spurious,
}

/// Why the host's map stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostReason {
    /// Nothing is there.
    Absent,
    /// It does not allow this kind of access.
    Rights(HostRights),
    /// What is there has an address that no entry of the shadow can hold.
    Beyond {
        /// Host-physical address.
        host: u64,
    },
}

/// A verdict, and the flush that is owed before the guest runs on.
#[derive(Debug)]
#[must_use = "settle what is owed"]
pub struct Answer<R> {
    /// What the fault came to.
    pub verdict: Verdict<R>,
    /// To be settled first.
    pub owed: Owed,
}

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// The processor of `space` faulted on `access` to linear address `address`.
    ///
    /// # Errors
    ///
    /// Memory or frames ran out, or guest memory could not be read or marked. What had been shadowed
    /// is still right; [`Cause::OutOfFrames`] comes only when nothing could be reclaimed but the tables on the way to this
    /// very page.
    pub fn fault<M: UpdateEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        address: u64,
        access: S::Access,
    ) -> Result<Answer<S::Refusal>, Failed<M::Error>> {
        let verdict = match self.judge(space, machine, address, access) {
            Err(Cause::OutOfFrames) if self.debt.frames() > 0 => Ok(Verdict::Retry),
            other => other,
        };
        self.keep_some_free();
        let (verdict, owed) = self.settle_up(verdict)?;
        Ok(Answer { verdict, owed })
    }

    fn judge<M: UpdateEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        address: u64,
        access: S::Access,
    ) -> Result<Verdict<S::Refusal>, Cause<M::Error>> {
        if space.owner != self.owner {
            return Err(Cause::Foreign);
        }
        let stage = &space.stage;
        let path = match stage.resolve(&space.top, machine.memory, address, access) {
            Ok(path) => path,
            Err(Stopped::Refused(refusal)) => return Ok(Verdict::Guest(refusal)),
            Err(Stopped::Memory { level, at, error }) => {
                return Err(Cause::Memory { level, at, error });
            }
            Err(Stopped::Contended) => return Err(Cause::Contended),
        };
        let physical = path.target;
        let backing = machine.map.backing(physical);
        let rights = match backing {
            Backing::Mmio => return Ok(Verdict::Mmio { physical }),
            Backing::Absent => {
                let reason = HostReason::Absent;
                return Ok(Verdict::Host { physical, reason });
            }
            Backing::Memory { rights, .. } => rights,
        };
        let writes = stage.writes(access);
        let granted = stage.grant(path.rights, rights, Some(access)).is_some();
        // Whether no entry could grant it, whatever the host allows: the host still may not, and a table
        // is still a table.
        let emulated = !granted
            && stage
                .grant(path.rights, HostRights::ALL, Some(access))
                .is_none();
        if !granted && (!emulated || writes && !rights.write) {
            let reason = HostReason::Rights(rights);
            return Ok(Verdict::Host { physical, reason });
        }
        // What is emulated is told of, so that nothing has to be let go.
        if writes && self.guards(physical & !0xfff) && (emulated || !self.let_write(&path)) {
            return Ok(Verdict::Guarded { physical });
        }
        if emulated {
            return Ok(Verdict::Emulate { physical });
        }
        self.repair(space, machine, &path, &backing, address, access)
    }

    /// Makes the leaf for `path`, and what leads to it.
    fn repair<M: UpdateEntry, B: HostMap>(
        &mut self,
        space: &Space<S>,
        machine: Machine<'_, M, B>,
        path: &Path,
        backing: &Backing,
        address: u64,
        access: S::Access,
    ) -> Result<Verdict<S::Refusal>, Cause<M::Error>> {
        let physical = path.target;
        let (level, page) = self.leaf_size(&space.stage, path, backing);
        let Some(page) = page else {
            // A span that does not hold the address that it was asked for.
            let reason = HostReason::Absent;
            return Ok(Verdict::Host { physical, reason });
        };
        if !fits(&space.stage, level, page.host) {
            let reason = HostReason::Beyond { host: page.host };
            return Ok(Verdict::Host { physical, reason });
        }
        let link = self.leaf_slot(space, machine, path, address, level)?;
        // Only now: a table on the way may be the very page.
        let size = self.size(level, space);
        if level > 1 && self.guards_in(physical & !size.wrapping_sub(1), size) {
            // A table on the way lies in this large page: the next fault takes smaller ones.
            return Ok(Verdict::Repaired(Repair::Spurious));
        }
        let stage = &space.stage;
        let mut attributes = stage.grant(path.rights, page.rights, Some(access));
        if level == 1
            && attributes.is_some_and(|most| stage.protect(most) != Some(most))
            && self.guards(physical & !0xfff)
        {
            if stage.writes(access) {
                return Ok(Verdict::Guarded { physical });
            }
            let host = HostRights {
                write: false,
                ..page.rights
            };
            attributes = stage.grant(path.rights, host, Some(access));
        }
        let Some(attributes) = attributes else {
            return Ok(Verdict::Emulate { physical });
        };
        let repair = match self.slot(link) {
            Entry::Leaf {
                target,
                attributes: old,
            } if target == page.host => {
                self.change_leaf(link, target, old, attributes);
                if old == attributes {
                    Repair::Spurious
                } else {
                    Repair::Changed
                }
            }
            slot => {
                self.put_leaf(link, page.host, attributes)?;
                if matches!(slot, Entry::Empty) {
                    Repair::Mapped
                } else {
                    Repair::Changed
                }
            }
        };
        if level == 1 && repair == Repair::Mapped {
            let near = Near::from(machine.map, *backing);
            self.prefetch(machine.memory, &near, link);
        }
        Ok(Verdict::Repaired(repair))
    }

    fn size(&self, level: u8, space: &Space<S>) -> u64 {
        space.stage.shadow().shape().size(level)
    }

    /// The level of the largest leaf for `path`, and the host's page for it.
    fn leaf_size(&self, stage: &S, path: &Path, backing: &Backing) -> (u8, Option<HostPage>) {
        let format = stage.shadow();
        let shape = format.shape();
        if path.shift < shape.shift(2) {
            return (1, backing.page(path.target, 4096));
        }
        let larger = (2..=self.tuning.largest.min(shape.levels()))
            .rev()
            .filter(|&level| shape.leaf_at(level) && shape.shift(level) <= path.shift)
            .find_map(|level| {
                let size = shape.size(level);
                let page = backing.page(path.target, size)?;
                let free = !self.guards_in(path.target & !shape.below(level), size);
                (free && fits(stage, level, page.host)).then_some((level, page))
            });
        match larger {
            Some((level, page)) => (level, Some(page)),
            None => (1, backing.page(path.target, 4096)),
        }
    }

    /// A guarded table is to be written: whether it may be, from now on.
    fn let_write(&mut self, path: &Path) -> bool {
        let frame = path.target & !0xfff;
        self.remove_shadows(frame, Self::left_behind);
        let (mut lowest, mut pinned, mut writes) = (true, false, 0);
        let mut seen = 0;
        while let Some(id) = self.pages.shadow_of(frame, seen) {
            seen = seen.saturating_add(1);
            if let Some(page) = self.pages.get_mut(id) {
                lowest &= Self::may_be_unsync(page);
                pinned |= page.roots > 0;
                page.writes = page.writes.saturating_add(1);
                writes = page.writes.max(writes);
            }
        }
        if lowest && self.tuning.unsync == Unsync::Allowed {
            for at in 0..seen {
                if let Some(id) = self.pages.shadow_of(frame, at) {
                    self.watch(id, Sync::Unsync);
                    if let Some(page) = self.pages.get_mut(id) {
                        page.heat.written();
                    }
                }
            }
            return true;
        }
        // On the way to the very write it would be shadowed again at once.
        let on_the_way = path.tables.iter().any(|table| table.frame == frame);
        if writes < self.tuning.flood || pinned || on_the_way {
            return false;
        }
        self.remove_shadows(frame, |_, _| true);
        true
    }

    /// Whether nothing leads to a table that is not a root: mostly, the guest freed it, and its frame becomes something
    /// else.
    fn left_behind(&self, page: &Page) -> bool {
        let stage = self.stages.get(usize::from(page.key.stage));
        let levels = stage.map_or(0, |stage| stage.shadow().shape().levels());
        !page.in_use() && page.key.level < levels
    }

    /// Removes those shadows of the guest's table at `frame`.
    fn remove_shadows(&mut self, frame: u64, which: impl Fn(&Self, &Page) -> bool) {
        let mut kept = 0;
        while let Some(id) = self.pages.shadow_of(frame, kept) {
            if self.pages.get(id).is_some_and(|page| which(self, page)) {
                self.remove_table(id);
            } else {
                kept = kept.saturating_add(1);
            }
        }
    }
}
