// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's tables with all that they have been, and what hardware that follows the specification may make of them.
//!
//! VT-d, "Caching Translation Information", and SDM 3C, "Caching Translation Information": any value that an entry has
//! had since the address was last invalidated (for the domain) may be used.

use std::collections::{BTreeMap, BTreeSet};

use hvkit_page_table::Entry;
use hvkit_shadow_paging::nested::{Grants, SecondStage};

/// Where an access may go: guest-physical address and rights, or nowhere.
pub(crate) type Reach = Option<(u64, Grants)>;

pub(crate) struct History<F> {
    format: F,
    now: u64,
    /// When everything was last invalidated.
    since: u64,
    /// By address: each value, with the time from which it was there.
    entries: BTreeMap<u64, Vec<(u64, u64)>>,
    /// By domain and page: when it was last invalidated.
    known: BTreeMap<(usize, u64), u64>,
}

impl<F: SecondStage> History<F> {
    pub(crate) fn new(format: F) -> Self {
        Self {
            format,
            now: 0,
            since: 0,
            entries: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    pub(crate) fn write(&mut self, at: u64, value: u64) {
        self.now += 1;
        self.entries.entry(at).or_default().push((self.now, value));
    }

    /// The guest invalidated the page, and was told that it is done.
    pub(crate) fn invalidated(&mut self, domain: usize, page: u64) {
        self.known.insert((domain, page), self.now);
    }

    /// Everything was invalidated.
    pub(crate) fn invalidated_all(&mut self) {
        self.since = self.now;
    }

    /// Everywhere that a DMA of `domain` to `page` may go.
    pub(crate) fn reaches(
        &self,
        domain: usize,
        root: u64,
        page: u64,
    ) -> BTreeSet<Option<(u64, u8)>> {
        let since = self.known.get(&(domain, page)).copied().unwrap_or(0);
        let since = since.max(self.since);
        let mut all = BTreeSet::new();
        let levels = self.format.shape().levels();
        self.descend(root, page, levels, since, Grants::ALL, &mut all);
        all
    }

    /// Each value that the entry at `at` has had since.
    fn values(&self, at: u64, since: u64) -> Vec<u64> {
        let values = self.entries.get(&at).map_or(&[][..], Vec::as_slice);
        let first = values.iter().rposition(|&(from, _)| from <= since);
        let before = if first.is_none() { vec![0] } else { vec![] };
        let rest = values[first.unwrap_or(0)..].iter().map(|&(_, value)| value);
        before.into_iter().chain(rest).collect()
    }

    fn descend(
        &self,
        table: u64,
        page: u64,
        level: u8,
        since: u64,
        above: Grants,
        all: &mut BTreeSet<Option<(u64, u8)>>,
    ) {
        let shape = self.format.shape();
        for entry in self.values(shape.entry_at(table, page, level), since) {
            match self.format.decode(entry, level) {
                Entry::Table { frame, attributes } => {
                    let rights = above & self.format.grants(attributes);
                    self.descend(frame, page, level - 1, since, rights, all);
                }
                Entry::Leaf { target, attributes } => {
                    let rights = above & self.format.grants(attributes);
                    let inside = page & (shape.size(level) - 1);
                    all.insert(said(Some((target + inside, rights))));
                }
                _ => {
                    all.insert(None);
                }
            }
        }
    }
}

/// The same in numbers that have an order. Rights to nothing are no translation.
pub(crate) fn said(reach: Reach) -> Option<(u64, u8)> {
    let (target, rights) = reach?;
    let bit = |grant, bit: u8| u8::from(rights.contains(grant)) << bit;
    let bits = bit(Grants::READ, 0) | bit(Grants::WRITE, 1) | bit(Grants::EXECUTE, 2);
    (bits != 0).then_some((target, bits))
}
