// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Shadows: what a watched requester reaches, told to the host as maps and unmaps.
//!
//! A device of the host's that a guest drives itself (VFIO) does DMA through the host's own tables, which must follow
//! the guest's. In caching mode (CAP.CM) a guest's driver invalidates after each change, mapping included: each
//! invalidation is looked up in the guest's tables, and the difference to what was told before is told.
//!
//! ```text
//!   guest: unmap, invalidate, wait --> unit: unmap at the host ... then the wait is done --> guest: page is free
//! ```
//!
//! Unmaps come first, and before anything that tells the guest of completion: there is no moment at which a page
//! that the guest may use again is still mapped. A mapping is told page by page, in the sizes of the guest's tables, and
//! taken back as it was told.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::mem;
use core::ops::RangeInclusive;

use hvkit_page_table as page_table;
use hvkit_page_table::{Format, ReadEntry, Root, Width};

use super::device::{Asker, Binding, Lookup, Stage};
use super::host::Host;
use super::memory::Memory;
use super::request::Access;
use super::stages;
use super::unit::Unit;
use crate::spec::invalidation::{IotlbScope, PasidIotlbScope};
use crate::spec::registers::GSTS;
use crate::spec::{Pasid, RequesterId};

/// Entries that are read for each mapping that a watch may have, before the rest counts as unmapped.
const READS_PER_MAPPING: u64 = 64;

/// Addresses that a requester reaches, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mapping {
    /// The first address.
    pub first: u64,
    /// The last address.
    pub last: u64,
    /// The physical address of the first.
    pub target: u64,
    /// Whether reads are allowed.
    pub reads: bool,
    /// Whether writes are allowed.
    pub writes: bool,
}

impl Mapping {
    /// Everything, as it is: what a requester reaches where nothing is translated.
    pub const IDENTITY: Self = Self {
        first: 0,
        last: u64::MAX,
        target: 0,
        reads: true,
        writes: true,
    };
}

/// How well a watch could be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coverage {
    /// Everything that the requester reaches is mapped.
    Whole,
    /// There was more than the watch's limit: what lies above is not mapped.
    Limited,
}

/// A watched requester.
#[derive(Clone, Debug)]
struct Watch {
    source: RequesterId,
    limit: usize,
    mapped: BTreeMap<u64, Mapping>,
    coverage: Coverage,
    /// What it was bound to when it was last looked at. `None`: nothing, or nothing is translated.
    binding: Option<Binding>,
}

/// The watched requesters.
#[derive(Clone, Debug, Default)]
pub(super) struct Watches {
    list: Vec<Watch>,
}

impl Watches {
    #[inline]
    pub(super) fn none(&self) -> bool {
        self.list.is_empty()
    }
}

impl Unit {
    /// Watches `source`: tells `host` now what it reaches without PASID, and from now on each change, with at most
    /// `limit` mappings at a time (VFIO has such a limit itself). Only in caching mode are changes complete.
    ///
    /// Watching it again is a replay: it is told anew, as if nothing had been mapped.
    pub fn watch(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        source: RequesterId,
        limit: usize,
    ) -> Coverage {
        self.watches.list.retain(|watch| watch.source != source);
        self.watches.list.push(Watch {
            source,
            limit,
            mapped: BTreeMap::new(),
            coverage: Coverage::Whole,
            binding: None,
        });
        self.follow(memory, host, |watch| {
            (watch.source == source).then_some(0..=u64::MAX)
        });
        self.coverage(source).unwrap_or(Coverage::Limited)
    }

    /// Watches `source` no longer. Its mappings are told as unmapped.
    pub fn unwatch(&mut self, host: &mut impl Host, source: RequesterId) {
        for watch in self
            .watches
            .list
            .extract_if(.., |watch| watch.source == source)
        {
            for mapping in watch.mapped.into_values() {
                host.unmap(source, mapping);
            }
        }
    }

    /// How well `source` is followed; `None` if it is not watched.
    #[must_use]
    pub fn coverage(&self, source: RequesterId) -> Option<Coverage> {
        let mut list = self.watches.list.iter();
        list.find(|watch| watch.source == source)
            .map(|watch| watch.coverage)
    }

    /// Tables of any requester may be others now.
    pub(super) fn follow_everything(&mut self, memory: &impl Memory, host: &mut impl Host) {
        self.follow(memory, host, |_| Some(0..=u64::MAX));
    }

    /// Translations of domains were invalidated.
    pub(super) fn follow_translations(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        scope: IotlbScope,
    ) {
        self.follow(memory, host, |watch| {
            let binding = watch.binding.as_ref()?;
            let of = |domain| binding.domain == domain;
            match scope {
                IotlbScope::Global => Some(0..=u64::MAX),
                IotlbScope::Domain { domain } => of(domain).then_some(0..=u64::MAX),
                IotlbScope::Pages { domain, pages } if of(domain) => match binding.stage {
                    Stage::Second(_) | Stage::PassThrough => Some(pages.first()..=pages.last()),
                    // These are pages of the stage below.
                    Stage::First(_) | Stage::Nested(..) => Some(0..=u64::MAX),
                },
                IotlbScope::Pages { .. } => None,
            }
        });
    }

    /// First-stage translations of a PASID were invalidated.
    pub(super) fn follow_pasid(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        domain: u16,
        pasid: Pasid,
        scope: PasidIotlbScope,
    ) {
        self.follow(memory, host, |watch| {
            let binding = watch.binding.as_ref()?;
            let same = binding.domain == domain && binding.pasid == pasid;
            same.then_some(match scope {
                PasidIotlbScope::All => 0..=u64::MAX,
                PasidIotlbScope::Pages(pages) => pages.first()..=pages.last(),
            })
        });
    }

    /// Looks at the tables of each watch that `affected` gives a range for.
    fn follow(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        affected: impl Fn(&Watch) -> Option<RangeInclusive<u64>>,
    ) {
        if self.watches.none() {
            return;
        }
        let mut list = mem::take(&mut self.watches.list);
        for watch in &mut list {
            if let Some(range) = affected(watch) {
                self.follow_one(memory, host, watch, range);
            }
        }
        self.watches.list = list;
    }

    fn follow_one(
        &self,
        memory: &impl Memory,
        host: &mut impl Host,
        watch: &mut Watch,
        range: RangeInclusive<u64>,
    ) {
        let translating = self.file.get(GSTS).translation();
        let lookup = Lookup {
            options: &self.options,
            memory,
            root: self.root,
            mode: self.mode(),
        };
        let binding = if translating {
            lookup.find(watch.source, None, Asker::Anyone).ok()
        } else {
            None
        };
        // Other tables: every mapping is in question.
        let range = if binding == watch.binding {
            range
        } else {
            0..=u64::MAX
        };
        watch.binding = binding;
        let (mut first, mut last) = range.into_inner();
        // Mappings are taken back whole.
        if let Some((_, below)) = watch.mapped.range(..first).next_back()
            && below.last >= first
        {
            first = below.first;
        }
        if let Some((_, across)) = watch.mapped.range(..=last).next_back() {
            last = last.max(across.last);
        }
        let room = watch
            .limit
            .saturating_add(watch.mapped.range(first..=last).count())
            .saturating_sub(watch.mapped.len());
        let (wanted, coverage) = match (translating, &watch.binding) {
            (false, _) => (Vec::from([Mapping::IDENTITY]), Coverage::Whole),
            (true, None) => (Vec::new(), Coverage::Whole),
            (true, Some(binding)) => self.reached(memory, binding, first, last, room),
        };
        if coverage == Coverage::Limited || (first, last) == (0, u64::MAX) {
            watch.coverage = coverage;
        }
        // A page may be larger now than those that were there.
        if let (Some(lowest), Some(highest)) = (wanted.first(), wanted.last()) {
            first = first.min(lowest.first);
            last = last.max(highest.last);
        }
        let old: Vec<Mapping> = watch.mapped.range(first..=last).map(|(_, m)| *m).collect();
        let mut wanted_at = wanted.iter().peekable();
        for mapping in old {
            while wanted_at.next_if(|w| w.first < mapping.first).is_some() {}
            if wanted_at.peek().is_none_or(|w| **w != mapping) {
                watch.mapped.remove(&mapping.first);
                host.unmap(watch.source, mapping);
            }
        }
        for mapping in wanted {
            if watch.mapped.insert(mapping.first, mapping).is_none() {
                host.map(watch.source, mapping);
            }
        }
    }

    /// What `binding` reaches from `first` to `last`, page by page; at most `room` of them.
    fn reached(
        &self,
        memory: &impl Memory,
        binding: &Binding,
        first: u64,
        last: u64,
        room: usize,
    ) -> (Vec<Mapping>, Coverage) {
        match binding.stage {
            Stage::PassThrough => (Vec::from([Mapping::IDENTITY]), Coverage::Whole),
            Stage::Second(root) => {
                let format = self.formats.second(root);
                let root = Root::Table(root.table);
                pages(&format, memory, root, first, last, room, |target, a| {
                    Some(Leads::whole(target, a.reads(), a.writes()))
                })
            }
            Stage::First(root) => {
                let format = self.formats.first(root);
                let root = Root::Table(root.table);
                pages(&format, memory, root, first, last, room, |target, a| {
                    a.user().then_some(Leads::whole(target, true, a.writes()))
                })
            }
            Stage::Nested(above, below) => {
                let below_format = self.formats.second(below);
                let entries = Through(|at| {
                    let found = stages::second(memory, &below_format, below, at, Access::Read);
                    memory.read(found.ok()?.target, Width::Eight).ok()
                });
                let format = self.formats.first(above);
                let root = Root::Table(above.table);
                pages(&format, &entries, root, first, last, room, |target, a| {
                    let found =
                        stages::second(memory, &below_format, below, target, Access::Read).ok()?;
                    a.user().then_some(Leads {
                        target: found.target,
                        bits: found.page_bits,
                        reads: true,
                        writes: a.writes() && found.attributes.writes(),
                    })
                })
            }
        }
    }
}

/// Entries that are read in a way of one's own.
struct Through<F>(F);

/// An entry that could not be read.
struct Unreadable;

impl<F: Fn(u64) -> Option<u64>> ReadEntry for Through<F> {
    type Error = Unreadable;

    fn read(&self, at: u64, _: Width) -> Result<u64, Unreadable> {
        (self.0)(at).ok_or(Unreadable)
    }
}

/// Where a byte of a page leads in the end.
struct Leads {
    target: u64,
    /// log2 of the bytes around it that lead there alike; 64: the page's.
    bits: u8,
    reads: bool,
    writes: bool,
}

impl Leads {
    const fn whole(target: u64, reads: bool, writes: bool) -> Self {
        Self {
            target,
            bits: 64,
            reads,
            writes,
        }
    }
}

/// The pages that a table maps from `first` to `last`, in order; `below` says where each leads.
fn pages<F: Format, M: ReadEntry>(
    format: &F,
    memory: &M,
    root: Root<'_, F::Attributes>,
    first: u64,
    last: u64,
    room: usize,
    below: impl Fn(u64, F::Attributes) -> Option<Leads>,
) -> (Vec<Mapping>, Coverage) {
    let shape = format.shape();
    let mut found = Vec::new();
    let mut patience = READS_PER_MAPPING.saturating_mul(room as u64).max(1 << 16);
    let end = 1u64 << shape.address_bits();
    // Of canonical addresses the upper half comes last, in the order of their bits.
    let mut at = shape.strip(first).unwrap_or(first.min(end));
    let last_bits = shape.strip(last).unwrap_or(end.wrapping_sub(1));
    while at <= last_bits {
        let Some(left) = patience.checked_sub(1) else {
            return (found, Coverage::Limited);
        };
        patience = left;
        let step = match page_table::translate(format, memory, root, shape.extend(at)) {
            Ok(page) => match below(page.target, page.attributes) {
                Some(leads) => {
                    if found.len() == room {
                        return (found, Coverage::Limited);
                    }
                    let size = shape.size(page.level);
                    let piece = 1u64
                        .checked_shl(leads.bits.into())
                        .unwrap_or(size)
                        .min(size);
                    // Below the piece's size, which is a power of two.
                    let within = piece.wrapping_sub(1);
                    let first = shape.extend(at & !within);
                    found.push(Mapping {
                        first,
                        last: first | within,
                        target: leads.target & !within,
                        reads: leads.reads,
                        writes: leads.writes,
                    });
                    piece
                }
                None => shape.size(1),
            },
            Err(fault) => shape.size(fault.level().unwrap_or(1)),
        };
        at = (at | step.wrapping_sub(1)).saturating_add(1);
    }
    (found, Coverage::Whole)
}
