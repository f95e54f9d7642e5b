// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One address through one or two stages: walks, rights, accessed and dirty flags, and what to call a failure.

use core::cell::Cell;

use hvkit_page_table as page_table;
use hvkit_page_table::{Format, Marks, ReadEntry, Root, Step, UpdateEntry, Width};

use super::device::{FirstRoot, SecondRoot};
use super::memory::Memory;
use super::request::Access;
use crate::spec::fault::FaultReason;
use crate::spec::first_stage::FirstStageEntry as First;
use crate::spec::second_stage::SecondStageEntry as Second;
use crate::tables::{FirstStage, FirstStageAttributes, SecondStage, SecondStageAttributes};

/// How often an entry that changes under a walk is tried again.
const PATIENCE: u32 = 8;

/// Where an address leads in one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<A> {
    pub(super) target: u64,
    pub(super) page_bits: u8,
    pub(super) attributes: A,
    /// Whether the leaf's dirty flag is set, or there is none: a write through a kept entry sets no flag.
    pub(super) dirty: bool,
    /// The leaf table on the way and what was folded above it, if the leaf was at level 1.
    pub(super) table: Option<(u64, A)>,
}

/// Why the second stage leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecondFault {
    /// The address is wider than the table's reach.
    Beyond,
    /// An entry with neither right.
    NotPresent,
    NoRead,
    NoWrite,
    Reserved,
    /// The root table is not in memory.
    TopAccess,
    /// Another table is not in memory, or an entry could not be updated.
    Access,
}

impl SecondFault {
    /// Its name in legacy mode.
    pub(super) const fn legacy(self, access: Access) -> FaultReason {
        match self {
            Self::Beyond => FaultReason::ADDRESS_BEYOND_WIDTH,
            Self::NotPresent => match access {
                Access::Write => FaultReason::NO_WRITE,
                Access::Read | Access::ZeroLengthRead | Access::Atomic => FaultReason::NO_READ,
            },
            Self::NoRead => FaultReason::NO_READ,
            Self::NoWrite => FaultReason::NO_WRITE,
            Self::Reserved => FaultReason::TABLE_RESERVED,
            Self::TopAccess => FaultReason::CONTEXT_INVALID,
            Self::Access => FaultReason::TABLE_ACCESS,
        }
    }

    /// Its name in scalable mode, for the address that was asked for.
    pub(super) const fn scalable(self) -> FaultReason {
        match self {
            Self::Beyond => FaultReason::SM_ADDRESS_BEYOND_WIDTH,
            Self::NotPresent => FaultReason::SM_SECOND_STAGE_NO_PERMISSION,
            Self::NoRead => FaultReason::SM_NO_READ,
            Self::NoWrite => FaultReason::SM_NO_WRITE,
            Self::Reserved => FaultReason::SM_SECOND_STAGE_RESERVED,
            Self::TopAccess => FaultReason::SM_SECOND_STAGE_TOP_ACCESS,
            Self::Access => FaultReason::SM_SECOND_STAGE_ACCESS,
        }
    }

    /// Its name for the output of the first stage.
    const fn of_output(self) -> FaultReason {
        match self {
            Self::Beyond => FaultReason::SM_OUTPUT_BEYOND_WIDTH,
            other => other.scalable(),
        }
    }

    /// Its name for reading a first-stage entry, the top one or another.
    const fn of_read(self, top: bool) -> FaultReason {
        match self {
            Self::Beyond => FaultReason::SM_FIRST_STAGE_BEYOND_WIDTH,
            Self::NotPresent | Self::NoRead | Self::NoWrite if top => {
                FaultReason::SM_FIRST_STAGE_TOP_NO_READ
            }
            Self::NotPresent | Self::NoRead | Self::NoWrite => FaultReason::SM_FIRST_STAGE_NO_READ,
            other => other.scalable(),
        }
    }

    /// Its name for setting a flag in a first-stage entry.
    const fn of_update(self) -> FaultReason {
        match self {
            Self::NotPresent | Self::NoRead | Self::NoWrite => FaultReason::SM_FIRST_STAGE_NO_WRITE,
            Self::Beyond => FaultReason::SM_FIRST_STAGE_BEYOND_WIDTH,
            other => other.scalable(),
        }
    }
}

/// Address bits below a page that is mapped at `level`.
const fn page_bits(level: u8) -> u8 {
    level.wrapping_mul(9).wrapping_add(3)
}

/// Sets flags along a path. `Ok(false)`: an entry changed meanwhile, walk again. `Err`: it could not be stored.
fn mark<M: UpdateEntry, A>(
    memory: &M,
    marks: Marks,
    steps: &[Step<A>],
    writes: bool,
) -> Result<bool, M::Error> {
    for (i, step) in steps.iter().enumerate() {
        let leaf = i.wrapping_add(1) == steps.len();
        let dirty = if leaf && writes { marks.dirty } else { 0 };
        let wanted = step.entry | marks.accessed | dirty;
        let Some(at) = step.at else { continue };
        if wanted == step.entry {
            continue;
        }
        if memory.compare_exchange(at, Width::Eight, step.entry, wanted)? != step.entry {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The table that the last of `steps` was read from, if it was a leaf table.
fn leaf_table<A: Copy>(format: &impl Format, steps: &[Step<A>], address: u64) -> Option<(u64, A)> {
    let [.., above, leaf] = steps else {
        return None;
    };
    if leaf.level != 1 {
        return None;
    }
    let shape = format.shape();
    let index = shape.index(shape.strip(address)?, 1);
    Some((
        leaf.at?.wrapping_sub(shape.slot_at(0, index)),
        above.attributes?,
    ))
}

/// Whether `rights` are enough for `access`; if not, what is missing.
const fn permits(reads: bool, writes: bool, access: Access) -> Result<(), SecondFault> {
    match access {
        Access::Read | Access::Atomic if !reads => Err(SecondFault::NoRead),
        Access::Write | Access::Atomic if !writes => Err(SecondFault::NoWrite),
        Access::ZeroLengthRead if !reads && !writes => Err(SecondFault::NoRead),
        _ => Ok(()),
    }
}

/// Walks a second-stage table.
pub(super) fn second<M: Memory>(
    memory: &M,
    format: &SecondStage,
    root: SecondRoot,
    address: u64,
    access: Access,
) -> Result<Found<SecondStageAttributes>, SecondFault> {
    for _ in 0..PATIENCE {
        let walk = page_table::walk(format, memory, Root::Table(root.table), address);
        let steps = walk.steps();
        // Each entry is judged as it is read, from the root down: rights before reserved bits.
        for step in steps {
            let entry = Second(step.entry);
            if !entry.present() {
                return Err(SecondFault::NotPresent);
            }
            permits(
                entry.0 & Second::READ != 0,
                entry.0 & Second::WRITE != 0,
                access,
            )?;
        }
        let found = match walk.outcome {
            Ok(found) => found,
            Err(page_table::Fault::Address { .. }) => return Err(SecondFault::Beyond),
            Err(page_table::Fault::NotPresent { .. }) => return Err(SecondFault::NotPresent),
            Err(page_table::Fault::Malformed { .. }) => return Err(SecondFault::Reserved),
            Err(page_table::Fault::Unreadable { level, .. }) if level == root.levels => {
                return Err(SecondFault::TopAccess);
            }
            Err(_) => return Err(SecondFault::Access),
        };
        let marks = format.marks();
        let writes = matches!(access, Access::Write | Access::Atomic);
        if marks != Marks::NONE {
            match mark(memory, marks, steps, writes) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => return Err(SecondFault::Access),
            }
        }
        let dirty = writes
            || marks.dirty == 0
            || steps
                .last()
                .is_some_and(|leaf| leaf.entry & marks.dirty != 0);
        return Ok(Found {
            target: found.target,
            page_bits: page_bits(found.level),
            attributes: found.attributes,
            dirty,
            // Flags above a kept leaf table would not be set: keep none where there are flags.
            table: if marks == Marks::NONE {
                leaf_table(format, steps, address)
            } else {
                None
            },
        });
    }
    Err(SecondFault::Access)
}

/// Whose access to a first stage it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Actor {
    pub(super) supervisor: bool,
    pub(super) fetches: bool,
}

/// Entries of a first stage: in memory, or in what the second stage makes of it.
trait Entries: UpdateEntry {
    /// Why the last read (of the top entry or another) failed.
    fn read_failure(&self, top: bool) -> FaultReason;
    /// Why the last update failed.
    fn update_failure(&self) -> FaultReason;
}

/// First-stage entries in physical memory.
struct Physical<'a, M>(&'a M);

impl<M: Memory> ReadEntry for Physical<'_, M> {
    type Error = M::Error;

    fn read(&self, at: u64, width: Width) -> Result<u64, M::Error> {
        self.0.read(at, width)
    }
}

impl<M: Memory> UpdateEntry for Physical<'_, M> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, M::Error> {
        self.0.compare_exchange(at, width, current, new)
    }
}

impl<M: Memory> Entries for Physical<'_, M> {
    fn read_failure(&self, top: bool) -> FaultReason {
        if top {
            FaultReason::SM_FIRST_STAGE_TOP_ACCESS
        } else {
            FaultReason::SM_FIRST_STAGE_ACCESS
        }
    }

    fn update_failure(&self) -> FaultReason {
        FaultReason::SM_FIRST_STAGE_UPDATE_FAILED
    }
}

/// First-stage entries at guest-physical addresses, which the second stage translates.
struct GuestPhysical<'a, M> {
    memory: &'a M,
    format: &'a SecondStage,
    root: SecondRoot,
    /// What the second stage refused last; `None`: memory itself failed.
    refused: Cell<Option<SecondFault>>,
}

/// A guest-physical address could not be accessed; `refused` says why.
struct NotAccessible;

impl<M: Memory> GuestPhysical<'_, M> {
    fn at(&self, address: u64, access: Access) -> Result<u64, NotAccessible> {
        match second(self.memory, self.format, self.root, address, access) {
            Ok(found) => {
                self.refused.set(None);
                Ok(found.target)
            }
            Err(fault) => {
                self.refused.set(Some(fault));
                Err(NotAccessible)
            }
        }
    }
}

impl<M: Memory> ReadEntry for GuestPhysical<'_, M> {
    type Error = NotAccessible;

    fn read(&self, at: u64, width: Width) -> Result<u64, NotAccessible> {
        let at = self.at(at, Access::Read)?;
        self.memory.read(at, width).map_err(|_| NotAccessible)
    }
}

impl<M: Memory> UpdateEntry for GuestPhysical<'_, M> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, NotAccessible> {
        let at = self.at(at, Access::Atomic)?;
        self.memory
            .compare_exchange(at, width, current, new)
            .map_err(|_| NotAccessible)
    }
}

impl<M: Memory> Entries for GuestPhysical<'_, M> {
    fn read_failure(&self, top: bool) -> FaultReason {
        match self.refused.get() {
            Some(fault) => fault.of_read(top),
            None => Physical(self.memory).read_failure(top),
        }
    }

    fn update_failure(&self) -> FaultReason {
        match self.refused.get() {
            Some(fault) => fault.of_update(),
            None => Physical(self.memory).update_failure(),
        }
    }
}

/// Walks a first-stage table in physical memory.
pub(super) fn first<M: Memory>(
    memory: &M,
    format: &FirstStage,
    root: FirstRoot,
    address: u64,
    access: Access,
    actor: Actor,
) -> Result<Found<FirstStageAttributes>, FaultReason> {
    first_in(&Physical(memory), format, root, address, access, actor)
}

/// Walks a first-stage table over a second stage, and the second stage for what it yields.
pub(super) fn nested<M: Memory>(
    memory: &M,
    formats: (&FirstStage, &SecondStage),
    roots: (FirstRoot, SecondRoot),
    address: u64,
    access: Access,
    actor: Actor,
) -> Result<(Found<FirstStageAttributes>, Found<SecondStageAttributes>), FaultReason> {
    let entries = GuestPhysical {
        memory,
        format: formats.1,
        root: roots.1,
        refused: Cell::new(None),
    };
    let above = first_in(&entries, formats.0, roots.0, address, access, actor)?;
    let below = second(memory, formats.1, roots.1, above.target, access);
    Ok((above, below.map_err(SecondFault::of_output)?))
}

fn first_in<E: Entries>(
    entries: &E,
    format: &FirstStage,
    root: FirstRoot,
    address: u64,
    access: Access,
    actor: Actor,
) -> Result<Found<FirstStageAttributes>, FaultReason> {
    let writes = matches!(access, Access::Write | Access::Atomic);
    for _ in 0..PATIENCE {
        let walk = page_table::walk(format, entries, Root::Table(root.table), address);
        let steps = walk.steps();
        for step in steps {
            let entry = First(step.entry);
            if !entry.present() {
                return Err(FaultReason::SM_FIRST_STAGE_NOT_PRESENT);
            }
            if !actor.supervisor && entry.0 & First::USER == 0 {
                return Err(FaultReason::SM_NO_USER);
            }
            let needs_write = writes && (!actor.supervisor || root.entry.write_protect);
            if needs_write && entry.0 & First::WRITE == 0 {
                return Err(FaultReason::SM_NO_WRITE);
            }
        }
        let found = match walk.outcome {
            Ok(found) => found,
            Err(page_table::Fault::Address { .. }) => return Err(FaultReason::SM_NOT_CANONICAL),
            Err(page_table::Fault::Malformed { .. }) => {
                return Err(FaultReason::SM_FIRST_STAGE_RESERVED);
            }
            Err(page_table::Fault::Unreadable { level, .. }) => {
                return Err(entries.read_failure(level == root.levels));
            }
            Err(_) => return Err(FaultReason::SM_FIRST_STAGE_NOT_PRESENT),
        };
        let smep = root.entry.smep && actor.supervisor && found.attributes.user();
        if actor.fetches && (!found.attributes.executes() || smep) {
            return Err(FaultReason::SM_NO_EXECUTE);
        }
        match mark(entries, format.marks(), steps, writes) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(_) => return Err(entries.update_failure()),
        }
        let marked = |leaf: &Step<_>| leaf.entry & First::DIRTY != 0;
        return Ok(Found {
            target: found.target,
            page_bits: page_bits(found.level),
            attributes: found.attributes,
            dirty: writes || steps.last().is_some_and(marked),
            table: None,
        });
    }
    Err(FaultReason::SM_FIRST_STAGE_UPDATE_FAILED)
}
