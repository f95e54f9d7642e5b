// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What attaching and detaching are made of: an entry that is written or cleared, and all that must be forgotten of
//! the one before.

use hvkit_page_table::{Frames, OwnEntries, Width};

use super::attach::{Gone, Reach, Way};
use super::domain::{Attachment, Domain, Stage, StageKind};
use super::entries::{Entry, Moved};
use super::{Ability, DriverError, Mmio, Mode, Unit, command};
use crate::spec::context::{AddressWidth, ContextEntry, TranslationType};
use crate::spec::invalidation::{AtsRange, ContextScope, Descriptor, DeviceTlb, PasidCacheScope};
use crate::spec::pasid::PasidEntry;
use crate::spec::{Pasid, RequesterId};

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    pub(super) fn domain_of_device(
        &self,
        source: RequesterId,
        pasid: Option<Pasid>,
    ) -> Option<u16> {
        let device = self.devices.get(&source)?;
        match (pasid, device.reach) {
            (Some(pasid), _) => device.pasids.get(&pasid).map(|way| way.domain),
            (None, Reach::Domain(id)) => Some(id),
            (None, _) => None,
        }
    }

    /// Whether `device` may be attached to anything.
    pub(super) fn admit(&self, device: Attachment) -> Result<(), DriverError> {
        let Attachment { source, pasid, tlb } = device;
        if tlb.is_some() && !self.ecap.device_tlb() {
            return Err(DriverError::Unsupported(Ability::DeviceTlb));
        }
        if let Some(pasid) = pasid {
            let limit = 1u32 << self.ecap.pasid_bits().min(super::entries::PASID_BITS);
            if self.mode == Mode::Legacy || pasid == Pasid::ZERO || pasid.get() >= limit {
                return Err(DriverError::BadPasid(pasid));
            }
        }
        let taken = match (self.devices.get(&source), pasid) {
            (None, _) => false,
            (Some(device), None) => device.reach != Reach::Blocked,
            (Some(device), Some(pasid)) => device.pasids.contains_key(&pasid),
        };
        if taken {
            return Err(DriverError::Attached {
                source_id: source,
                pasid,
            });
        }
        Ok(())
    }

    pub(super) fn width(&self, levels: u8) -> Result<AddressWidth, DriverError> {
        AddressWidth::of_levels(levels)
            .ok_or(DriverError::Unsupported(Ability::SecondStageLevels(levels)))
    }

    /// The same, with walks that snoop caches where the unit can.
    pub(super) fn snooping(&self, entry: PasidEntry) -> PasidEntry {
        if self.ecap.scalable_walk_coherent() {
            entry.with_walk_snoop()
        } else {
            entry
        }
    }

    /// The entry that leads to `domain`.
    pub(super) fn entry_of<F: Stage>(
        &self,
        domain: &Domain<F, M, P>,
        tlb: Option<DeviceTlb>,
    ) -> Result<Entry, DriverError> {
        let (table, levels) = (
            domain.mapper.root(),
            domain.mapper.format().shape().levels(),
        );
        match (self.mode, F::KIND) {
            (Mode::Legacy, StageKind::Second) => {
                let kind = match tlb {
                    Some(_) => TranslationType::DeviceTlb,
                    None => TranslationType::Untranslated,
                };
                let width = self.width(levels)?;
                Ok(Entry::context(ContextEntry::new(
                    kind, domain.id, width, table,
                )))
            }
            (Mode::Legacy, StageKind::First) => Err(DriverError::ForeignDomain(domain.id)),
            (Mode::Scalable, StageKind::Second) => {
                let entry = PasidEntry::second_stage(domain.id, self.width(levels)?, table);
                Ok(Entry::pasid(self.snooping(entry)))
            }
            (Mode::Scalable, StageKind::First) => {
                let five = u64::from(levels == 5);
                // AW is the second stage's, but there are units that measure first-stage addresses by it.
                let width = self.width(self.second_stage_levels()?)?;
                let entry = PasidEntry::first_stage(domain.id, table)
                    .with_fspm(five)
                    .with_aw(width.0.into());
                Ok(Entry::pasid(self.snooping(entry)))
            }
        }
    }

    /// Stores the entry of a device that is nowhere, or held.
    pub(super) fn enter(
        &mut self,
        device: Attachment,
        entry: Entry,
        way: Way,
    ) -> Result<(), DriverError> {
        let Attachment { source, pasid, tlb } = device;
        let this = Some(device);
        if tlb.is_none() && !self.fills_tlb(source, this) {
            // Nothing, unless opening it failed.
            self.close_tlb(source, this)?;
        }
        let at = self.slot(source, pasid.unwrap_or(Pasid::ZERO), tlb)?;
        if let Some(tlb) = tlb {
            self.tlbs.entry(source).or_insert(tlb);
        }
        entry.store(&self.memory, at, Moved::In);
        let state = self.devices.entry(source).or_default();
        match pasid {
            Some(pasid) => {
                state.pasids.insert(pasid, way);
            }
            None => {
                state.reach = Reach::Domain(way.domain);
                state.plain = Some(way);
            }
        }
        let held = state.holding.as_ref().filter(|_| pasid.is_none());
        let held = held.map(|holding| holding.id);
        let outcome = match held {
            Some(domain) => {
                let kind = Some(StageKind::Second);
                let gone = Gone {
                    domain,
                    between: None,
                    kind,
                    tlb,
                };
                self.forget_entry(source, pasid, gone)
            }
            None => self.show(source, pasid.unwrap_or(Pasid::ZERO), way.id),
        };
        if outcome.is_err() {
            // Back to where it was. If the unit does not answer to that either, the device stays where it may be by
            // now, and can be taken out later.
            let gone = Gone {
                domain: way.id,
                between: None,
                kind: None,
                tlb,
            };
            let _ = self.leave(source, pasid, gone);
        }
        outcome
    }

    /// Takes the entry of a device back: cleared, or held.
    pub(super) fn leave(
        &mut self,
        source: RequesterId,
        pasid: Option<Pasid>,
        gone: Gone,
    ) -> Result<(), DriverError> {
        let at = self.slot(source, pasid.unwrap_or(Pasid::ZERO), None)?;
        // Reserved memory is for requests without PASID: one that goes leaves the holding domain where it is.
        let device = self.devices.get(&source).filter(|_| pasid.is_none());
        let holding = device.and_then(|device| device.holding.as_ref());
        match holding {
            Some(holding) => {
                let entry = self.entry_of(holding, None)?;
                entry.store(&self.memory, at, Moved::Out);
            }
            None => self.memory.write(at, Width::Eight, 0),
        }
        let between = holding.map(|holding| holding.id);
        self.forget_entry(source, pasid, Gone { between, ..gone })?;
        let filled = self.tlb_of(source, gone.tlb).is_some();
        if pasid.is_some() && filled && self.ecap.page_request_drain() {
            self.invalidation.wait_drained(&self.registers)?;
        }
        let this = Some(Attachment {
            source,
            pasid,
            tlb: gone.tlb,
        });
        if !self.fills_tlb(source, this) {
            self.close_tlb(source, this)?;
        }
        let device = self.devices.entry(source).or_default();
        match pasid {
            Some(pasid) => {
                device.pasids.remove(&pasid);
            }
            None => {
                device.reach = Reach::Blocked;
                device.plain = None;
            }
        }
        Ok(())
    }

    /// Has the unit forget an entry, and all that was translated through it.
    pub(super) fn forget_entry(
        &mut self,
        source: RequesterId,
        pasid: Option<Pasid>,
        gone: Gone,
    ) -> Result<(), DriverError> {
        // Caches drop what has the id that they are asked for, and of the old table they may have either.
        let ids = || [Some(gone.domain), gone.between].into_iter().flatten();
        for domain in ids() {
            self.ask(match self.mode {
                Mode::Legacy => Descriptor::Context(ContextScope::Device {
                    domain,
                    source,
                    function_mask: 0,
                }),
                Mode::Scalable => Descriptor::PasidCache(PasidCacheScope::Pasid {
                    domain,
                    pasid: pasid.unwrap_or(Pasid::ZERO),
                }),
            })?;
        }
        for domain in ids() {
            if self.mode == Mode::Scalable {
                // Of a nested translation the first stage's too.
                self.ask_pasid_iotlb(domain, pasid, None)?;
            }
            // The holding domain's own table is a second stage.
            if gone.kind != Some(StageKind::First) || gone.between == Some(domain) {
                self.ask_iotlb(domain, None)?;
            }
        }
        // The unit must have forgotten before the device asks it again.
        self.wait()?;
        if let Some(device) = self.tlb_of(source, gone.tlb) {
            self.ask_device_tlb(device, pasid, AtsRange::ALL)?;
            self.wait()?;
        }
        Ok(())
    }

    /// Makes an entry visible that was absent.
    pub(super) fn show(
        &mut self,
        source: RequesterId,
        pasid: Pasid,
        domain: u16,
    ) -> Result<(), DriverError> {
        if !self.cap.caching_mode() {
            return if self.cap.write_buffer_flush() {
                command::flush_write_buffer(&self.registers)
            } else {
                Ok(())
            };
        }
        // Absence is cached under domain 0.
        self.ask(Descriptor::Context(ContextScope::Device {
            domain: 0,
            source,
            function_mask: 0,
        }))?;
        if self.mode == Mode::Scalable {
            for domain in [0, domain] {
                self.ask(Descriptor::PasidCache(PasidCacheScope::Pasid {
                    domain,
                    pasid,
                }))?;
            }
            self.ask_pasid_iotlb(domain, Some(pasid), None)?;
        }
        self.ask_iotlb(domain, None)?;
        self.wait()
    }
}
