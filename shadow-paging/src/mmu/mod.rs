// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The shadow MMU: tables for the real processor, kept in step with a guest's own.
//!
//! ```text
//!   guest's tables                    shadow tables                       who finds it
//!   root --- table --- page table     root ----- table ----- leaves       Pages: role, guest frame,
//!    |         |           |           ^           ^            |                own frame
//!    '---------'-----------'-----------'---- Key --'            |
//!           guarded: not writable                               v
//!           by any leaf, or unsync                         host frame     ReverseMap: its leaves
//! ```
//!
//! What holds between two steps ([`Mmu::audit`] looks):
//!
//! - Every entry of a *guarded* shadow table is what the guest's tables and the host's map allow at
//!   this moment. Entries of one that is *unsync* may be what they allowed since the guest last
//!   invalidated, as in a TLB.
//! - A frame of the guest's that is shadowed by a guarded table is writable through no leaf.
//! - Each leaf is in the reverse map, each link to a table among that table's parents.
//! - What hardware may hold beyond that was in a token that is not settled yet.
//!
//! In reading order: `key` (roles), `fault` (what a page fault comes to), `build` (the way to a leaf),
//! `entry` (stores, and what they owe), `guard`, `sync` and `compare`, `host`, `reclaim`.

mod audit;
mod build;
mod compare;
mod entry;
mod error;
mod expect;
mod fault;
mod follow;
mod guard;
mod host;
mod host_change;
mod index;
mod key;
mod links;
mod owed;
mod pages;
mod prefetch;
mod reclaim;
mod reverse_map;
mod row;
mod seen;
mod slab;
mod space;
mod stage;
mod sync;

use alloc::vec::Vec;

use hvkit_page_table::{Frames, OwnEntries};

pub use audit::{Audit, Finding};
pub use error::{Cause, Failed, NewError, OutOfMemory};
pub use expect::Wrong;
pub use fault::{Answer, HostReason, Repair, Verdict};
pub use host::{Backed, Backing, HostMap, HostRights, Machine};
pub use owed::{Flush, Owed, Unsettled, UnsettledCause, leaked};
pub use space::{Load, Space};
pub use stage::{Meaning, Path, Rights, Stage, Stopped, Table, Top};

use links::Link;
use pages::{Pages, bytes_of};
use reverse_map::ReverseMap;

/// What a caller may choose. [`Default`] is a good start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// How many neighbours of a faulting page are looked at, a power of two; 1 for none.
    pub prefetch: u8,
    /// Writes to a guarded table, with no use of it in between, after which it is taken for ordinary
    /// memory.
    pub flood: u8,
    /// Whether guests may write their lowest tables unseen until they invalidate.
    pub unsync: Unsync,
    /// Level of the largest leaves.
    pub largest: u8,
    /// Which tables may be given up when frames run out.
    pub reclaim: Reclaim,
}

/// What a write to a guarded page table comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unsync {
    /// The guest writes on; what it wrote is looked at when it invalidates.
    Allowed,
    /// Each write is the caller's to emulate.
    Never,
    /// No table is guarded: the guest writes its tables, of every level, by a way that the MMU does not
    /// control, and only its invalidations tell. A VT-d unit's tables; L1's EPT, where L1's own memory is
    /// not mapped by this MMU.
    ///
    /// An MMU begins so and stays so, or never is: see [`Mmu::set_tuning`].
    Always,
}

/// Which tables an MMU takes back by itself when its budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reclaim {
    /// Those not used for long. Who uses one again faults, and it is made again.
    Any,
    /// Those that no entry leads to: what is mapped stays mapped. For devices, whose DMA cannot be tried
    /// again.
    Unlinked,
}

impl Tuning {
    /// For tables of devices, which are [followed](Mmu::follow): nothing is guarded, and nothing that is
    /// mapped is taken back.
    pub const DEVICES: Self = Self {
        prefetch: 1,
        flood: u8::MAX,
        unsync: Unsync::Always,
        largest: u8::MAX,
        reclaim: Reclaim::Unlinked,
    };
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            prefetch: 8,
            flood: 3,
            unsync: Unsync::Allowed,
            largest: u8::MAX,
            reclaim: Reclaim::Any,
        }
    }
}

/// How much memory an MMU uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Shadow tables in use.
    pub tables: usize,
    /// Frames taken from the pool: those, and what unsettled tokens hold.
    pub frames: usize,
    /// Bytes of the heap.
    pub heap: usize,
}

/// Shadow tables for one guest, whatever its number of processors and address spaces.
///
/// `T` is the memory that the tables are in, `P` the pool their frames come from. Every step takes
/// `&mut self`: one at a time.
#[derive(Debug)]
pub struct Mmu<S: Stage, T: OwnEntries, P: Frames> {
    tables: T,
    pool: P,
    tuning: Tuning,
    budget: usize,
    /// By number: what the tables of each mode mean.
    stages: Vec<S>,
    pages: Pages,
    reverse: ReverseMap,
    /// Tables that are not guarded. Has room for all.
    unsync: Vec<u32>,
    /// What the step under way owes.
    debt: Owed,
    /// Tokens that are not settled yet, and what they owe in all.
    unsettled: usize,
    outstanding: Flush,
    /// Frames taken from the pool.
    held: usize,
    owner: u64,
}

/// The fewest tables that a budget must have room for: a path, with some to spare.
const LEAST_BUDGET: u32 = 16;

impl<S: Stage, T: OwnEntries, P: Frames> Mmu<S, T, P> {
    /// An MMU that uses at most `budget` frames of `pool` at a time.
    ///
    /// # Errors
    ///
    /// An impossible budget.
    pub fn new(tables: T, pool: P, budget: u32, tuning: Tuning) -> Result<Self, NewError> {
        if !(LEAST_BUDGET..Link::MOST_PAGES).contains(&budget) {
            return Err(NewError::Budget { pages: budget });
        }
        let owner = owed::next_owner();
        Ok(Self {
            tables,
            pool,
            tuning,
            budget: budget as usize,
            stages: Vec::new(),
            pages: Pages::new(),
            reverse: ReverseMap::default(),
            unsync: Vec::new(),
            debt: Owed::new(owner),
            unsettled: 0,
            outstanding: Flush::Nothing,
            held: 0,
            owner,
        })
    }

    /// The memory that shadow tables are in.
    pub fn tables(&self) -> &T {
        &self.tables
    }

    /// The pool.
    pub fn pool(&self) -> &P {
        &self.pool
    }

    /// What the caller chose.
    pub fn tuning(&self) -> Tuning {
        self.tuning
    }

    /// Chooses anew. What is shadowed stays as it is, and so does whether tables are guarded at all
    /// ([`Unsync::Always`]).
    pub fn set_tuning(&mut self, tuning: Tuning) {
        let unsync = match (self.tuning.unsync, tuning.unsync) {
            (Unsync::Always, _) => Unsync::Always,
            (kept, Unsync::Always) => kept,
            (_, chosen) => chosen,
        };
        self.tuning = Tuning { unsync, ..tuning };
    }

    /// Whether the guest's tables are written unseen, all of them.
    fn unguarded(&self) -> bool {
        self.tuning.unsync == Unsync::Always
    }

    /// How much memory is in use.
    pub fn usage(&self) -> Usage {
        Usage {
            tables: self.pages.live(),
            frames: self.held,
            heap: [
                self.pages.bytes(),
                self.reverse.bytes(),
                bytes_of(&self.unsync),
                self.remembered().saturating_mul(seen::Seen::BYTES),
                bytes_of(&self.stages),
            ]
            .into_iter()
            .fold(0, usize::saturating_add),
        }
    }

    /// How many tables' guest entries are remembered.
    fn remembered(&self) -> usize {
        let seen = |&&id: &&u32| self.pages.get(id).is_some_and(|page| page.seen.is_some());
        self.unsync.iter().filter(seen).count()
    }

    /// The number of `stage`, which may be a new one.
    fn stage_number(&mut self, stage: &S) -> Result<u8, OutOfMemory> {
        if let Some(number) = self.stages.iter().position(|known| known == stage) {
            return Ok(number as u8);
        }
        if self.stages.len() > usize::from(u8::MAX) {
            return Err(OutOfMemory);
        }
        self.stages.try_reserve(1).map_err(|_| OutOfMemory)?;
        let number = self.stages.len() as u8;
        self.stages.push(*stage);
        Ok(number)
    }

    /// The same for a step after which someone relies on old translations being gone: a processor that
    /// invalidates, the host. What an earlier step dropped may be in a TLB until its token is settled, by
    /// whoever has it.
    fn settle_up_for_good<R, E>(
        &mut self,
        result: Result<R, Cause<E>>,
    ) -> Result<(R, Owed), Failed<E>> {
        self.debt.add(self.outstanding);
        self.settle_up(result)
    }

    /// A step that ended well or not, with what it owes.
    fn settle_up<R, E>(&mut self, result: Result<R, Cause<E>>) -> Result<(R, Owed), Failed<E>> {
        let owed = self.owe();
        match result {
            Ok(value) => Ok((value, owed)),
            Err(cause) => Err(Failed { cause, owed }),
        }
    }
}
