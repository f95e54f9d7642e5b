// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a unit keeps: bindings of requesters to tables, translations, tables on the way to them.
//!
//! ```text
//!  requester, PASID --> Slot { Binding, space } ---.
//!                                                  v
//!  domain --------> space number --.        Tag { space, page } --> IOTLB, by page size
//!  domain, PASID -> space number --'                            --> tables of 2-MiB regions
//! ```
//!
//! A *space* is what one tag stands for: a domain's second stage, or one PASID's first stage (over the domain's
//! second). To forget a space is to give it another number; to forget a page is to look in the one set where it can
//! be. Neither depends on how many entries there are. Numbers run out after some 2^19 forgettings; then all is cleared.

mod changes;
mod requester;
mod sets;
mod spaces;

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use self::changes::Changes;
use self::requester::{KEY_BITS, NOBODY, Quick, SLOTS, Slot, key, slot_of};
use self::sets::{Sets, Tag};
use self::spaces::Spaces;
use super::device::{Binding, Stage};
use crate::spec::invalidation::{
    ContextScope, IotlbScope, Pages, PasidCacheScope, PasidIotlbScope,
};
use crate::spec::{Pasid, RequesterId};

/// Large pages, and leaf tables, that are kept at a time.
const FEW: u32 = 256;
/// A page-selective invalidation of more pages than this forgets the whole space.
const MANY: u32 = 64;

/// Lower bits of an IOTLB entry; the address is in bits 51:12.
pub(super) mod rights {
    /// Reads are allowed.
    pub(in super::super) const READ: u64 = 1;
    /// Writes are allowed.
    pub(in super::super) const WRITE: u64 = 2;
    /// User requests are allowed.
    pub(in super::super) const USER: u64 = 4;
    /// Accesses snoop.
    pub(in super::super) const SNOOP: u64 = 8;
    /// What no entry grants.
    pub(in super::super) const NOBODYS: u64 = 1 << 63;
    /// The address.
    pub(in super::super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Everything a unit keeps.
#[derive(Clone, Debug)]
pub(super) struct Caches {
    slots: Vec<Option<Slot>>,
    /// One for each of `slots`.
    quick: Box<[Quick; SLOTS]>,
    /// Moves whenever a space gets another number. A multiple of 1 << `KEY_BITS`.
    epoch: u64,
    spaces: Spaces,
    small: Sets,
    two_mib: Sets,
    one_gib: Sets,
    tables: Sets,
    /// Whether anything was put into `two_mib` or `one_gib` since they were empty.
    large: bool,
    /// Moves with everything that is forgotten.
    pub(super) changes: Changes,
}

/// A requester's tables, found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) binding: Binding,
    pub(super) space: u32,
}

/// A translation, found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    /// Address of the page and rights.
    pub(super) entry: u64,
    /// log2 of the page's size.
    pub(super) page_bits: u8,
}

impl Caches {
    /// Nothing kept, with room for about `pages` pages.
    pub(super) fn new(pages: u32, domains: u32) -> Self {
        Self {
            slots: vec![None; SLOTS],
            quick: Box::new([NOBODY; SLOTS]),
            epoch: 0,
            spaces: Spaces::new(domains),
            small: Sets::new(pages.clamp(64, 1 << 20)),
            two_mib: Sets::new(FEW),
            one_gib: Sets::new(FEW / 4),
            tables: Sets::new(FEW),
            large: false,
            changes: Changes::new(),
        }
    }

    /// The space of a requester, if its tables are known and may translate `address`, and what its binding adds to
    /// rights.
    #[inline(always)]
    pub(super) fn space(
        &self,
        source: RequesterId,
        pasid: Option<Pasid>,
        address: u64,
    ) -> Option<(u32, u64)> {
        let key = key(source, pasid);
        let quick = self.quick.get(slot_of(key))?;
        if quick.key == key | self.epoch && address & quick.upper == 0 {
            Some((quick.space, u64::from(quick.adds)))
        } else {
            None
        }
    }

    /// Voids every space that a requester is known to have; what they keep is still there.
    pub(super) fn renew_epoch(&mut self) {
        self.changes.add();
        self.epoch = self.epoch.wrapping_add(1 << KEY_BITS);
        if self.epoch == 0 {
            // Nobody may come into an epoch a second time.
            self.slots.fill(None);
            self.quick.fill(NOBODY);
        }
    }

    /// What is known of a requester.
    #[inline(always)]
    pub(super) fn known(&mut self, source: RequesterId, pasid: Option<Pasid>) -> Option<Known> {
        let key = key(source, pasid);
        match self.slots.get(slot_of(key)) {
            Some(Some(slot)) if slot.key == key && slot.epoch == self.epoch => Some(Known {
                binding: slot.binding,
                space: slot.space,
            }),
            Some(Some(slot)) if slot.key == key => {
                let binding = slot.binding;
                Some(self.remember(source, pasid, binding))
            }
            _ => None,
        }
    }

    /// Keeps a requester's tables.
    #[cold]
    pub(super) fn remember(
        &mut self,
        source: RequesterId,
        pasid: Option<Pasid>,
        binding: Binding,
    ) -> Known {
        let space = match self.spaces.of(&binding) {
            Some(space) => space,
            None => {
                // No number is left: everything anew.
                self.forget_all();
                self.spaces.of(&binding).unwrap_or(0)
            }
        };
        if self.spaces.displaced() {
            // A slot may still have the number that nobody could find any more.
            self.renew_epoch();
        }
        let key = key(source, pasid);
        if let Some(slot) = self.slots.get_mut(slot_of(key)) {
            *slot = Some(Slot {
                key,
                epoch: self.epoch,
                space,
                binding,
            });
        }
        if let Some(quick) = self.quick.get_mut(slot_of(key)) {
            *quick = Quick {
                key: key | self.epoch,
                upper: binding.upper(),
                space,
                adds: if binding.snoops {
                    rights::SNOOP as u32
                } else {
                    0
                },
            };
        }
        Known { binding, space }
    }

    /// What is kept of the 4-KiB page `page` (the address without its lowest 12 bits, as far as it is translated) of
    /// `space`, where that is quickly found. Bit 11 may be set.
    #[inline(always)]
    pub(super) fn quick_page(&self, space: u32, page: u64) -> Option<u64> {
        self.small.get_own(Tag::new(space, page))
    }

    /// Whether what [`quick_page`](Self::quick_page) does not find may be kept nevertheless.
    #[inline(always)]
    pub(super) fn maybe_page(&self, space: u32, page: u64) -> bool {
        self.large || self.small.maybe_elsewhere(Tag::new(space, page))
    }

    /// Keeps a translation of the 4-KiB page `page` of a space that is known.
    #[inline(always)]
    pub(super) fn keep_small(&mut self, space: u32, page: u64, entry: u64) {
        self.small.insert(Tag::new(space, page), entry);
    }

    /// The leaf table that translates `page`, if it is quickly found, with what was folded above it in bits 11:0, of
    /// which bit 11 may be set.
    #[inline(always)]
    pub(super) fn quick_table(&self, space: u32, page: u64) -> Option<u64> {
        self.tables.get_own(Tag::new(space, page >> 9))
    }

    /// What is kept of `page` of `space`.
    #[inline(never)]
    pub(super) fn page(&self, space: u32, page: u64) -> Option<Hit> {
        if let Some(entry) = self.small.get(Tag::new(space, page)) {
            return Some(Hit {
                entry,
                page_bits: 12,
            });
        }
        if !self.large {
            return None;
        }
        let of = |sets: &Sets, page_bits: u8| {
            let shift = u32::from(page_bits).saturating_sub(12);
            let entry = sets.get(Tag::new(space, page >> shift))?;
            Some(Hit { entry, page_bits })
        };
        of(&self.two_mib, 21).or_else(|| of(&self.one_gib, 30))
    }

    /// Keeps a translation of `page`.
    #[inline]
    pub(super) fn keep(&mut self, space: u32, page: u64, hit: Hit) {
        if space == 0 {
            return;
        }
        match hit.page_bits {
            12 => self.small.insert(Tag::new(space, page), hit.entry),
            21 => {
                self.large = true;
                self.two_mib.insert(Tag::new(space, page >> 9), hit.entry);
            }
            30 => {
                self.large = true;
                self.one_gib.insert(Tag::new(space, page >> 18), hit.entry);
            }
            _ => (),
        }
    }

    /// The leaf table that translates `page`, with what was folded above it in bits 11:0.
    #[inline]
    pub(super) fn table(&self, space: u32, page: u64) -> Option<u64> {
        self.tables.get(Tag::new(space, page >> 9))
    }

    /// Keeps a leaf table.
    #[inline]
    pub(super) fn keep_table(&mut self, space: u32, page: u64, table: u64) {
        if space != 0 {
            self.tables.insert(Tag::new(space, page >> 9), table);
        }
    }

    /// Forgets everything.
    pub(super) fn forget_all(&mut self) {
        self.slots.fill(None);
        self.quick.fill(NOBODY);
        self.small.clear();
        self.two_mib.clear();
        self.one_gib.clear();
        self.tables.clear();
        self.large = false;
        self.spaces.clear();
        self.renew_epoch();
    }

    /// Forgets context entries, and with them PASID entries found through them.
    pub(super) fn forget_contexts(&mut self, scope: ContextScope) {
        let hit = |slot: &Slot| match scope {
            ContextScope::Global => true,
            ContextScope::Domain { domain } => slot.binding.domain == domain,
            ContextScope::Device {
                source,
                function_mask,
                ..
            } => {
                // FM masks function bits from the highest down: 1 bit 2, 2 bits 2:1, 3 all.
                let ignored = match function_mask & 3 {
                    0 => 0,
                    1 => 4,
                    2 => 6,
                    _ => 7,
                };
                (slot.binding.source.0 ^ source.0) & !ignored == 0
            }
        };
        self.forget_slots(hit);
    }

    /// Forgets PASID table entries.
    pub(super) fn forget_pasids(&mut self, scope: PasidCacheScope) {
        self.forget_slots(|slot| match scope {
            PasidCacheScope::Global => true,
            PasidCacheScope::Domain { domain } => slot.binding.domain == domain,
            PasidCacheScope::Pasid { domain, pasid } => {
                slot.binding.domain == domain && slot.binding.pasid == pasid
            }
        });
    }

    fn forget_slots(&mut self, hit: impl Fn(&Slot) -> bool) {
        self.changes.add();
        for (slot, quick) in self.slots.iter_mut().zip(self.quick.iter_mut()) {
            if slot.as_ref().is_some_and(&hit) {
                *slot = None;
                *quick = NOBODY;
            }
        }
    }

    /// Forgets translations of domains.
    #[inline]
    pub(super) fn forget_translations(&mut self, scope: IotlbScope) {
        match scope {
            IotlbScope::Global => {
                self.spaces.renew_all();
                self.renew_epoch();
            }
            IotlbScope::Domain { domain } => self.forget_domain(domain),
            IotlbScope::Pages { domain, pages } => self.forget_domain_pages(domain, pages),
        }
    }

    /// Forgets pages of a domain.
    #[inline(always)]
    pub(super) fn forget_domain_pages(&mut self, domain: u16, pages: Pages) {
        self.changes.add();
        let numbers = self.spaces.of_domain(domain);
        // What PASIDs of the domain reach through these pages is not known page by page.
        if numbers.pasids && self.spaces.renew_pasids(domain) {
            self.renew_epoch();
        }
        if numbers.space != 0 && !self.forget_pages(numbers.space, pages) {
            self.forget_domain(domain);
        }
    }

    fn forget_domain(&mut self, domain: u16) {
        self.spaces.renew_domain(domain);
        self.renew_epoch();
    }

    /// Forgets first-stage and nested translations of one PASID.
    pub(super) fn forget_pasid_translations(
        &mut self,
        domain: u16,
        pasid: Pasid,
        scope: PasidIotlbScope,
    ) {
        self.changes.add();
        let Some(space) = self.spaces.of_pasid(domain, pasid) else {
            return;
        };
        let done = match scope {
            PasidIotlbScope::All => false,
            PasidIotlbScope::Pages(pages) => self.forget_pages(space, pages),
        };
        if !done {
            self.spaces.renew_pasid(domain, pasid);
            self.renew_epoch();
        }
    }

    /// Forgets pages; says whether it did. If not, the whole space is to be forgotten.
    #[inline(always)]
    fn forget_pages(&mut self, space: u32, pages: Pages) -> bool {
        let first = pages.first() << 7 >> 19;
        self.small.remove(Tag::new(space, first));
        if pages.order == 0 && pages.leaves_only && !self.large {
            return true;
        }
        self.forget_more_pages(space, first, pages)
    }

    /// What [`forget_pages`](Self::forget_pages) has to do beyond the first 4-KiB page.
    fn forget_more_pages(&mut self, space: u32, first: u64, pages: Pages) -> bool {
        // 2^order, if that is not beyond counting.
        let Some(count) = 1u32
            .checked_shl(pages.order.into())
            .filter(|count| *count <= MANY)
        else {
            return false;
        };
        for page in 1..u64::from(count) {
            self.small.remove(Tag::new(space, first.wrapping_add(page)));
        }
        if self.large {
            self.two_mib.remove(Tag::new(space, first >> 9));
            self.one_gib.remove(Tag::new(space, first >> 18));
        }
        if !pages.leaves_only {
            self.tables.remove(Tag::new(space, first >> 9));
        }
        true
    }
}

impl Spaces {
    /// The number of the space that `binding` translates in; `None` if no number is left. 0 where nothing is
    /// translated.
    fn of(&mut self, binding: &Binding) -> Option<u32> {
        match binding.stage {
            Stage::PassThrough => Some(0),
            Stage::Second(_) => self.domain(binding.domain),
            Stage::First(_) | Stage::Nested(..) => self.pasid(binding.domain, binding.pasid),
        }
    }
}
