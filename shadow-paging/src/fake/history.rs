// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! All that a guest's tables have been: what a processor that follows the manual may translate by.
//!
//! SDM 3A, "Caching Translation Information": a processor may use any value that an entry has had since the linear
//! address was last invalidated for it, but only values with the accessed flag set, and, to write, a last one with the dirty
//! flag.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};

use hvkit_page_table::{ReadEntry, UpdateEntry, Width};

use super::memory::{FakeHost, GuestView, NoMemory};
use crate::guest::{Access, GuestFault, PagingMode, probe};

const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// How many ways through the history are tried before it is left undecided.
const PATIENCE: u32 = 20_000;

/// Whether the manual permits an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permitted {
    Yes,
    No,
    /// There are too many ways to look at them all.
    Undecided,
}

/// The values of each word of guest memory that was written.
#[derive(Debug, Default)]
pub(super) struct History {
    now: Cell<u64>,
    /// By address of eight bytes: values, each with the time from which it was there.
    words: RefCell<BTreeMap<u64, Vec<(u64, u64)>>>,
}

impl History {
    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    /// The eight bytes at `at` became `value`, from `before`.
    pub(super) fn write(&self, at: u64, before: u64, value: u64) {
        if before == value {
            return;
        }
        self.now.set(self.now.get() + 1);
        let mut words = self.words.borrow_mut();
        let values = words.entry(at).or_insert_with(|| alloc::vec![(0, before)]);
        values.push((self.now.get(), value));
    }

    /// Each value that the entry at `at` has had since.
    fn values(&self, host: &FakeHost, at: u64, width: Width, since: u64) -> BTreeSet<u64> {
        let words = self.words.borrow();
        let word = at & !7;
        let Some(values) = words.get(&word) else {
            let there = host.host(at).map(|there| host.load(there, width));
            return there.into_iter().collect();
        };
        let first = values.iter().rposition(|&(from, _)| from <= since);
        let part = |value: u64| match width {
            Width::Eight => value,
            Width::Four => value >> (8 * (at & 4)) & 0xffff_ffff,
        };
        let since = values.iter().skip(first.unwrap_or(0));
        since.map(|&(_, value)| part(value)).collect()
    }

    /// Whether a processor in `mode` whose translation of `linear` was last invalidated at `since` may come to
    /// guest-physical `physical` with `access`.
    pub(super) fn permits(
        &self,
        host: &FakeHost,
        mode: &PagingMode,
        (linear, since): (u64, u64),
        access: Access,
        physical: u64,
    ) -> Permitted {
        let search = Search {
            history: self,
            host,
            mode,
            linear,
            since,
            access,
            left: Cell::new(PATIENCE),
        };
        let found = search.leads_to(physical, &mut Vec::new());
        match (found, search.left.get()) {
            (true, _) => Permitted::Yes,
            (false, 0) => Permitted::Undecided,
            (false, _) => Permitted::No,
        }
    }
}

/// Guest memory whose changes are remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorder<'a> {
    pub(super) host: &'a FakeHost,
    pub(super) view: GuestView<'a>,
    pub(super) history: &'a History,
}

impl Recorder<'_> {
    /// Stores at guest-physical `at`, if there is memory. What was there.
    pub(super) fn store(&self, at: u64, width: Width, value: u64) -> Option<u64> {
        let there = self.host.host(at)?;
        let word = there & !7;
        let before = self.host.load(word, Width::Eight);
        let old = self.host.load(there, width);
        self.host.store(there, width, value);
        let after = self.host.load(word, Width::Eight);
        self.history.write(at & !7, before, after);
        Some(old)
    }
}

impl ReadEntry for Recorder<'_> {
    type Error = NoMemory;

    fn read(&self, at: u64, width: Width) -> Result<u64, NoMemory> {
        self.view.read(at, width)
    }
}

impl UpdateEntry for Recorder<'_> {
    fn compare_exchange(
        &self,
        at: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, NoMemory> {
        let found = self.view.read(at, width)?;
        if found == current {
            self.store(at, width, new);
        }
        Ok(found)
    }
}

/// A walk in which each entry may be any of its values.
struct Search<'a> {
    history: &'a History,
    host: &'a FakeHost,
    mode: &'a PagingMode,
    linear: u64,
    since: u64,
    access: Access,
    left: Cell<u32>,
}

/// The entries chosen so far, from the root down; the next is asked for as an error.
struct Chosen<'a> {
    entries: &'a [(u64, u64)],
    read: Cell<usize>,
}

struct Unknown {
    at: u64,
    width: Width,
}

impl ReadEntry for Chosen<'_> {
    type Error = Unknown;

    fn read(&self, at: u64, width: Width) -> Result<u64, Unknown> {
        let n = self.read.replace(self.read.get() + 1);
        let known = self.entries.get(n);
        known.map_or(Err(Unknown { at, width }), |&(_, value)| Ok(value))
    }
}

impl Search<'_> {
    fn leads_to(&self, physical: u64, chosen: &mut Vec<(u64, u64)>) -> bool {
        let Some(left) = self.left.get().checked_sub(1) else {
            return false;
        };
        self.left.set(left);
        if left == 0 {
            return false;
        }
        let entries = Chosen {
            entries: chosen,
            read: Cell::new(0),
        };
        match probe(self.mode, &entries, self.linear, self.access) {
            Ok(there) => {
                let accessed = chosen.iter().all(|&(_, entry)| entry & ACCESSED != 0);
                let last = chosen.last().map_or(u64::MAX, |&(_, entry)| entry);
                let dirty = !self.access.kind.writes() || last & DIRTY != 0;
                there.physical == physical && accessed && dirty
            }
            Err(GuestFault::Memory { error, .. }) => {
                let Unknown { at, width } = error;
                let values = self.history.values(self.host, at, width, self.since);
                values.into_iter().any(|value| {
                    chosen.push((at, value));
                    let found = self.leads_to(physical, chosen);
                    chosen.pop();
                    found
                })
            }
            Err(_) => false,
        }
    }
}
