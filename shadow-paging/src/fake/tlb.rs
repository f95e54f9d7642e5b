// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Caches of one processor, or of one I/O unit, that forget nothing they are not told to forget.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hvkit_page_table::{Format, Root, Span, walk};

use super::memory::FakeHost;
use crate::mmu::Flush;

/// A translation, cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cached<A> {
    root: u64,
    address: u64,
    size: u64,
    target: u64,
    pub(super) attributes: A,
}

/// Caches of translations and of upper entries, tagged by root, over tables of format `F`: the worst that
/// hardware may be. SDM 3A, "Caching Translation Information"; 3C, "Caching Translation Information" of VMX;
/// VT-d, "Caching Translation Information".
#[derive(Debug)]
pub struct FakeTlb<F: Format> {
    tlb: Vec<Cached<F::Attributes>>,
    /// By root, level and the address bits above it: the table that is there, and what is granted above.
    tables: BTreeMap<(u64, u8, u64), (u64, F::Attributes)>,
}

impl<F: Format> Default for FakeTlb<F> {
    fn default() -> Self {
        Self {
            tlb: Vec::new(),
            tables: BTreeMap::new(),
        }
    }
}

impl<A> Cached<A> {
    fn covers(&self, address: u64) -> bool {
        address.wrapping_sub(self.address) < self.size
    }

    /// Where `address`, which is on the page, leads.
    pub(super) const fn target(&self, address: u64) -> u64 {
        self.target + (address - self.address)
    }
}

impl<F: Format> FakeTlb<F> {
    /// Where `address` leads from `root`, and with what attributes: from the cache if it is there, by the tables
    /// otherwise, begun at the lowest one that is cached.
    ///
    /// # Panics
    ///
    /// If a table on the way was freed.
    pub fn translate(
        &mut self,
        memory: &FakeHost,
        format: &F,
        root: u64,
        address: u64,
    ) -> Option<(u64, F::Attributes)> {
        let there = self.look(memory, format, root, address)?;
        Some((there.target(address), there.attributes))
    }

    pub(super) fn look(
        &mut self,
        memory: &FakeHost,
        format: &F,
        root: u64,
        address: u64,
    ) -> Option<Cached<F::Attributes>> {
        self.cached(root, address)
            .or_else(|| self.walk(memory, format, root, address))
    }

    fn cached(&self, root: u64, address: u64) -> Option<Cached<F::Attributes>> {
        self.tlb
            .iter()
            .find(|one| one.root == root && one.covers(address))
            .copied()
    }

    fn walk(
        &mut self,
        memory: &FakeHost,
        format: &F,
        root: u64,
        address: u64,
    ) -> Option<Cached<F::Attributes>> {
        let shape = *format.shape();
        let cached = (1..shape.levels()).find_map(|level| {
            let prefix = address >> shape.shift(level + 1);
            Some((level, *self.tables.get(&(root, level + 1, prefix))?))
        });
        let begin = match cached {
            Some((level, (table, attributes))) => Root::Inner {
                table,
                level,
                attributes,
            },
            None => Root::Table(root),
        };
        // Panics if a table on the way is not one any more.
        let walk = walk(format, memory, begin, address);
        let mut above = cached.map(|(_, (_, attributes))| attributes);
        for pair in walk.steps().windows(2) {
            let (step, Some(at)) = (&pair[0], pair[1].at) else {
                continue;
            };
            // Of a step are kept the attributes folded with those above it.
            above = step.attributes.or(above);
            let Some(attributes) = above else { continue };
            let prefix = address >> shape.shift(step.level);
            self.tables
                .insert((root, step.level, prefix), (at & !0xfff, attributes));
        }
        let found = walk.outcome.ok()?;
        let size = shape.size(found.level);
        let there = Cached {
            root,
            address: address & !(size - 1),
            size,
            target: found.target & !(size - 1),
            attributes: found.attributes,
        };
        self.tlb.push(there);
        Some(there)
    }

    /// Fills the cache for `address`, as speculation and prefetch may at any time.
    pub fn speculate(&mut self, memory: &FakeHost, format: &F, root: u64, address: u64) {
        self.look(memory, format, root, address);
    }

    /// Forgets what is cached of `address`, as a fault there makes a processor do.
    pub fn forget(&mut self, format: &F, root: u64, address: u64) {
        self.tlb
            .retain(|one| one.root != root || !one.covers(address));
        let shape = *format.shape();
        self.tables.retain(|&(of, level, prefix), _| {
            of != root || address >> shape.shift(level) != prefix
        });
    }

    /// Forgets what `flush` names, and nothing else.
    pub fn flush(&mut self, flush: Flush) {
        match flush {
            Flush::Nothing => (),
            Flush::Span(span) => {
                self.tlb.retain(|one| {
                    let last = one.address + (one.size - 1);
                    last < span.start || one.address > span.last()
                });
                // INVLPG forgets all upper entries; INVVPID of an address need not.
            }
            Flush::Everything => {
                self.tlb.clear();
                self.tables.clear();
            }
        }
    }

    /// Panics if anything cached leads to the page at host-physical `host` and `admits` what must be no more.
    pub fn assert_forgot(&self, host: u64, admits: impl Fn(F::Attributes) -> bool) {
        for one in &self.tlb {
            let there = (one.target..one.target + one.size).contains(&host);
            assert!(
                !there || !admits(one.attributes),
                "{host:#x} is still in the TLB: {one:x?}"
            );
        }
    }

    /// What is cached: root, addresses, where the first leads, attributes.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Span, u64, F::Attributes)> {
        self.tlb.iter().map(|one| {
            (
                one.root,
                Span::new(one.address, one.size),
                one.target,
                one.attributes,
            )
        })
    }

    /// How many translations are cached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tlb.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tlb.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use hvkit_page_table::{Frames, Width};

    use super::*;
    use crate::x86::{ShadowFormat, ShadowLayout};

    /// Speculation keeps what it finds, and nothing makes the cache forget but a flush.
    #[test]
    fn what_was_read_ahead_is_used_when_the_tables_say_something_else() {
        let host = FakeHost::new(0x1_0000);
        let format = ShadowFormat::new(ShadowLayout::Pae, 40, 2).unwrap();
        let [root, directory, table] = [(); 3].map(|()| host.allocate().unwrap());
        let entry = |at, value| host.store(at, Width::Eight, value);
        entry(root, directory | 1);
        entry(directory, table | 7);
        entry(table + 8, 0x55_5007);
        let mut tlb = FakeTlb::default();
        assert!(tlb.is_empty());
        // Not present: nothing to keep.
        tlb.speculate(&host, &format, root, 0x2000);
        assert!(tlb.is_empty());
        tlb.speculate(&host, &format, root, 0x1000);
        assert_eq!((tlb.len(), tlb.is_empty()), (1, false));
        entry(table + 8, 0);
        let leads = |tlb: &mut FakeTlb<_>| {
            let found = tlb.translate(&host, &format, root, 0x1234);
            found.map(|(target, _)| target)
        };
        assert_eq!(leads(&mut tlb), Some(0x55_5234));
        tlb.flush(Flush::Span(Span::new(0x1000, 0x1000)));
        assert_eq!(leads(&mut tlb), None);
    }
}
