// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit that caches the entry of one device at every moment that there is, fills its other caches from that at once,
//! and drops no more than a descriptor names: by domain-id, as "the domain-ID that was programmed in the context-entry".

use std::collections::BTreeSet;

use hvkit_page_table::fake::{FakeTables, Words};
use hvkit_page_table::{ReadEntry, Width};
use hvkit_vtd_iommu::spec::invalidation::{ContextScope, Descriptor, IotlbScope, PasidCacheScope};

use crate::puppet::DEVICE;

/// What decides over requests of the device without PASID: the words of an entry that say where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A context entry at this address.
    Context(u64),
    /// A PASID table entry at this address.
    Pasid(u64),
}

/// A translation as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Tagged {
    /// TT or PGTT.
    pub(crate) kind: u64,
    /// The root of the table of that kind.
    pub(crate) table: u64,
    /// The domain-id.
    pub(crate) id: u16,
}

/// PGTT of a first-stage table.
const FIRST_STAGE: u64 = 1;

impl Place {
    /// The entry there, by the figures alone; `None` if it is absent.
    pub(crate) fn read(self, memory: &Words) -> Option<Tagged> {
        let word = |at| {
            let Ok(word) = memory.read(at, Width::Eight);
            word
        };
        let (kind, table, id) = match self {
            Self::Context(at) => (word(at) >> 2 & 3, word(at), word(at + 8) >> 8),
            Self::Pasid(at) => match word(at) >> 6 & 7 {
                FIRST_STAGE => (FIRST_STAGE, word(at + 16), word(at + 8)),
                kind => (kind, word(at), word(at + 8)),
            },
        };
        let (Self::Context(at) | Self::Pasid(at)) = self;
        (word(at) & 1 != 0).then_some(Tagged {
            kind,
            table: table & !0xfff,
            id: id as u16,
        })
    }
}

/// The caches.
#[derive(Debug)]
pub(crate) struct Caches {
    place: Place,
    /// The context cache, or the PASID cache.
    pub(crate) entries: BTreeSet<Tagged>,
    pub(crate) iotlb: BTreeSet<Tagged>,
    /// What the device keeps.
    pub(crate) device_tlb: BTreeSet<Tagged>,
}

impl Caches {
    /// Empty ones, from now on.
    pub(crate) fn new(place: Place, memory: &FakeTables) -> Self {
        memory.checkpoint();
        Self {
            place,
            entries: BTreeSet::new(),
            iotlb: BTreeSet::new(),
            device_tlb: BTreeSet::new(),
        }
    }

    /// Caches all that could be seen since this was last called.
    pub(crate) fn fill(&mut self, memory: &FakeTables) {
        memory.each_moment(|_, words| self.entries.extend(self.place.read(words)));
        memory.checkpoint();
        self.iotlb.extend(&self.entries);
        self.device_tlb.extend(&self.iotlb);
    }

    /// Drops what `descriptor` names.
    pub(crate) fn drop_named(&mut self, descriptor: &Descriptor) {
        let scalable = matches!(self.place, Place::Pasid(_));
        match *descriptor {
            Descriptor::Context(ContextScope::Device { domain, source, .. }) => {
                let named = source == DEVICE && !scalable;
                self.entries.retain(|e| !(named && e.id == domain));
            }
            Descriptor::PasidCache(PasidCacheScope::Pasid { domain, pasid }) => {
                let named = pasid.get() == 0;
                self.entries.retain(|e| !(named && e.id == domain));
            }
            Descriptor::PasidCache(PasidCacheScope::Domain { domain }) => {
                self.entries.retain(|e| e.id != domain);
            }
            Descriptor::Iotlb {
                scope: IotlbScope::Domain { domain },
                ..
            } => {
                let first = |e: &Tagged| scalable && e.kind == FIRST_STAGE;
                self.iotlb.retain(|e| e.id != domain || first(e));
            }
            Descriptor::PasidIotlb { domain, pasid, .. } => {
                let first = |e: &Tagged| pasid.get() == 0 && e.kind == FIRST_STAGE;
                self.iotlb.retain(|e| e.id != domain || !first(e));
            }
            Descriptor::DeviceTlb { device, .. } if device.source == DEVICE => {
                self.device_tlb.clear();
            }
            _ => {}
        }
    }
}
