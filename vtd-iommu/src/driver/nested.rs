// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Nested translation: a guest's first-stage table above a domain's second stage.
//!
//! ```text
//!   address of a process --- first-stage table (the guest's) ---> guest-physical --- Domain ---> physical
//!                            a domain-id of its own
//! ```
//!
//! Caches are tagged with the domain-id and the PASID, and entries of one PASID that have the same domain-id must
//! lead through the same tables ("Scalable-Mode PASID-Table Entry Programming Considerations"). Two devices of a guest
//! may use one PASID for different tables, so each first-stage table has its own id; what changes in the second stage
//! is invalidated under all of them.

use hvkit_page_table::{Format, Frames, OwnEntries};

use super::attach::Way;
use super::domain::{Attachment, Domain, Nested, Stage};
use super::entries::Entry;
use super::{Ability, DriverError, Mmio, Mode, Unit};
use crate::spec::Pasid;
use crate::spec::invalidation::{AtsRange, Pages};
use crate::spec::pasid::PasidEntry;
use crate::tables::SecondStage;

/// A first-stage table that somebody else owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FirstTable {
    /// Its root's address, in the second stage.
    pub address: u64,
    /// 4 or 5.
    pub levels: u8,
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Translates requests of a PASID through a first-stage table that somebody else owns (a guest, for a device
    /// of its own) and then through `second`. Addresses in that table, and its own, are `second`'s.
    ///
    /// Changes of that table are reported with [`forget_pasid`](Self::forget_pasid).
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach), or the unit does not nest, no table can be where `first` says, or `device` is about
    /// requests without PASID and has reserved memory, which a guest's table may not map.
    pub fn attach_nested(
        &mut self,
        second: &mut Domain<SecondStage, M, P>,
        device: Attachment,
        first: FirstTable,
    ) -> Result<(), DriverError> {
        if self.mode == Mode::Legacy || !self.ecap.nested() || !self.ecap.first_stage() {
            return Err(DriverError::Unsupported(Ability::Nested));
        }
        let five = match first.levels {
            4 => 0,
            5 if self.cap.first_stage_5_levels() => 1,
            levels => return Err(DriverError::Unsupported(Ability::FirstStageLevels(levels))),
        };
        if second.unit != self.root {
            return Err(DriverError::ForeignDomain(second.id));
        }
        self.admit_first_table(second, first)?;
        self.admit(device)?;
        let Attachment { source, pasid, tlb } = device;
        let regions = self.devices.get(&source).map(|known| &known.regions);
        if let Some(region) = regions.and_then(|regions| regions.first())
            && pasid.is_none()
        {
            return Err(DriverError::ReservedMemory {
                source_id: source,
                start: region.start,
            });
        }
        let width = self.width(second.mapper.format().shape().levels())?;
        let table = second.mapper.root();
        let known = second.nested.iter().find(|nested| nested.first == first);
        let known = known.map(|nested| nested.id);
        let count = self.ids.count();
        let id = known.or_else(|| self.ids.allocate(1));
        let id = id.ok_or(DriverError::OutOfDomains { count })?;
        let entry = PasidEntry::nested(id, first.address, width, table).with_fspm(five);
        let way = Way {
            domain: second.id,
            id,
            tlb,
        };
        let done = self.enter(device, Entry::pasid(self.snooping(entry)), way);
        if self.domain_of_device(source, pasid) == Some(second.id) {
            second.attached.push(device);
            second.nested.push(Nested {
                source,
                pasid,
                first,
                id,
            });
        } else if known.is_none() {
            self.ids.free(id, 1);
        }
        done
    }

    /// "Host software must check all first-stage table related fields": FSPTPTR on a page that the second stage can
    /// map, and FSPM the same wherever FSPTPTR is.
    fn admit_first_table(
        &self,
        second: &Domain<SecondStage, M, P>,
        first: FirstTable,
    ) -> Result<(), DriverError> {
        let FirstTable { address, levels } = first;
        let width = self.width(second.mapper.format().shape().levels())?;
        let widths = [
            self.cap.guest_address_bits(),
            self.host_bits,
            width.bits().unwrap_or(0),
        ];
        let beyond = |bits: &u32| address.checked_shr(*bits).is_some_and(|rest| rest != 0);
        let differs = |nested: &Nested| nested.first.address == address && nested.first != first;
        let bad =
            address & 0xfff != 0 || widths.iter().any(beyond) || second.nested.iter().any(differs);
        if bad {
            return Err(DriverError::BadFirstTable { address, levels });
        }
        Ok(())
    }

    /// Has the unit, and the devices that are attached to `domain` with `pasid`, forget translations of its first
    /// stage: some pages, or all.
    ///
    /// # Errors
    ///
    /// The domain is another unit's, or they do not.
    pub fn forget_pasid<F: Stage>(
        &mut self,
        domain: &Domain<F, M, P>,
        pasid: Option<Pasid>,
        pages: Option<Pages>,
    ) -> Result<(), DriverError> {
        if domain.unit != self.root {
            return Err(DriverError::ForeignDomain(domain.id));
        }
        let limit = self.cap.max_address_mask();
        let selective = self.cap.page_selective();
        let some = pages.filter(|pages| selective && pages.order <= limit);
        let range = match pages {
            Some(Pages { address, order, .. }) if order < AtsRange::ALL.order => {
                AtsRange { address, order }
            }
            _ => AtsRange::ALL,
        };
        let using = |at: &&Attachment| at.pasid == pasid;
        let mut asked = alloc::collections::BTreeSet::new();
        for at in domain.attached.iter().filter(using) {
            let id = domain.id_of(at);
            if asked.insert(id) {
                self.ask_pasid_iotlb(id, pasid, some)?;
            }
        }
        for at in domain.attached.iter().filter(using) {
            if let Some(device) = self.tlb_of(at.source, at.tlb) {
                self.ask_device_tlb(device, pasid, range)?;
            }
        }
        self.wait()
    }
}
