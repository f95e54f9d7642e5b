// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attaching devices to domains, and detaching them.
//!
//! A device is blocked, in a domain, or passed through. One with reserved memory (RMRR, whose owner in firmware may
//! use it at any time) is never blocked from that: while it is nowhere else it is in a domain of its own that
//! maps this memory and nothing more, and moving it in and out leaves no moment without.
//!
//! ```text
//!   detached: entry cleared --> context (or PASID) cache --> IOTLB --> device-TLB --> done
//!             one store         the order in which caches are filled from each other
//! ```

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hvkit_page_table::{Frames, OwnEntries, Span};

use super::domain::{Attachment, Domain, Stage, StageKind};
use super::entries::{Entry, Moved};
use super::{Ability, DriverError, Mmio, Mode, Unit};
use crate::spec::context::{ContextEntry, TranslationType};
use crate::spec::invalidation::DeviceTlb;
use crate::spec::pasid::PasidEntry;
use crate::spec::{Pasid, RequesterId};
use crate::tables::SecondStage;

/// What a device's requests without PASID do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Reach {
    /// They are blocked, but for reserved memory.
    #[default]
    Blocked,
    /// They are translated, in the domain with this id.
    Domain(u16),
    /// They reach physical memory.
    PassThrough,
}

/// What a unit knows of a device.
#[derive(Debug)]
pub(super) struct Device<M, P> {
    pub(super) reach: Reach,
    /// Where it is while it is nowhere else, if it has reserved memory.
    pub(super) holding: Option<Domain<SecondStage, M, P>>,
    /// Its reserved memory, declared.
    pub(super) regions: Vec<Span>,
    /// Through what its requests without PASID go, unless they are blocked or held.
    pub(super) plain: Option<Way>,
    /// Through what those of its PASIDs go.
    pub(super) pasids: BTreeMap<Pasid, Way>,
}

/// An entry of a device that is in use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// The id of the domain that it was attached to.
    pub(super) domain: u16,
    /// The domain-id in the entry: under nested translation, that of its first-stage table.
    pub(super) id: u16,
    /// The device-TLB that is filled through it.
    pub(super) tlb: Option<DeviceTlb>,
}

impl<M, P> Device<M, P> {
    /// All that are in use.
    pub(super) fn ways(&self) -> impl Iterator<Item = &Way> {
        self.plain.iter().chain(self.pasids.values())
    }
}

impl<M, P> Default for Device<M, P> {
    fn default() -> Self {
        Self {
            reach: Reach::Blocked,
            holding: None,
            regions: Vec::new(),
            plain: None,
            pasids: BTreeMap::new(),
        }
    }
}

/// What has to be forgotten of an entry that changed: the domain it had, and the kind of its translations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub(super) domain: u16,
    /// The id under which its table was for a moment, if it was not changed in one store.
    pub(super) between: Option<u16>,
    pub(super) kind: Option<StageKind>,
    pub(super) tlb: Option<DeviceTlb>,
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// What requests of `source` without PASID do.
    #[must_use]
    pub fn reach(&self, source: RequesterId) -> Reach {
        self.devices
            .get(&source)
            .map_or(Reach::Blocked, |d| d.reach)
    }

    /// Declares reserved memory of `source` (the RMRRs that name it): from now on, until it is
    /// [removed](Self::remove), its requests there go through, whatever it is attached to.
    ///
    /// # Errors
    ///
    /// The device is attached already, a region cannot be mapped, there are no ids or frames, or the unit does not do as
    /// it is told. Nothing is left of it then; if the unit does not even take the entry back, declare the memory again once
    /// it answers, or [remove](Self::remove) the device.
    pub fn reserve(&mut self, source: RequesterId, regions: &[Span]) -> Result<(), DriverError> {
        let known = self.devices.get(&source);
        // A holding domain without regions is what a failure left.
        if known.is_some_and(|d| d.reach != Reach::Blocked || !d.regions.is_empty()) {
            return Err(DriverError::Attached {
                source_id: source,
                pasid: None,
            });
        }
        if regions.is_empty() {
            return Ok(());
        }
        self.let_go_of_reserved(source)?;
        let mut holding = self.new_domain()?;
        let mapped = self.map_reserved(&mut holding, source, regions);
        let placed = mapped
            .and_then(|_| self.slot(source, Pasid::ZERO, None))
            .and_then(|at| Ok((at, self.entry_of(&holding, None)?)));
        let (at, entry) = match placed {
            Ok(placed) => placed,
            Err(error) => {
                // Nobody has used it: what cannot be freed leaks.
                let _ = self.destroy(holding);
                return Err(error);
            }
        };
        entry.store(&self.memory, at, Moved::In);
        holding.attached.push(Attachment::new(source));
        let domain = holding.id;
        let device = self.devices.entry(source).or_default();
        device.holding = Some(holding);
        let shown = self.show(source, Pasid::ZERO, domain);
        if shown.is_err() {
            let _ = self.let_go_of_reserved(source);
        } else if let Some(device) = self.devices.get_mut(&source) {
            device.regions = regions.to_vec();
        }
        shown
    }

    /// Identity-maps `regions` in `domain`, where that is not so already: all of them, or none. Returns those that
    /// were not there before.
    fn map_reserved<F: Stage>(
        &mut self,
        domain: &mut Domain<F, M, P>,
        source: RequesterId,
        regions: &[Span],
    ) -> Result<Vec<Span>, DriverError> {
        let mut mapped = Vec::new();
        for &span in regions {
            let done = match domain.map(span, span.start, F::READ_WRITE) {
                Ok(fresh) => {
                    mapped.push(span);
                    self.publish(domain, fresh)
                }
                Err(_) if is_identity(domain, span) => Ok(()),
                Err(_) => Err(DriverError::ReservedMemory {
                    source_id: source,
                    start: span.start,
                }),
            };
            if let Err(error) = done {
                self.unmap_reserved(domain, mapped);
                return Err(error);
            }
        }
        Ok(mapped)
    }

    /// Takes back what [`map_reserved`](Self::map_reserved) mapped. If the unit does not do as it is told, what cannot
    /// be freed leaks.
    fn unmap_reserved<F: Stage>(&mut self, domain: &mut Domain<F, M, P>, mapped: Vec<Span>) {
        for span in mapped {
            if let Ok(stale) = domain.unmap(span) {
                let _ = self.settle(domain, stale);
            }
        }
    }

    /// Lets `device` into `domain`. Reserved memory of the device is mapped there first and cannot be unmapped
    /// while the device is attached.
    ///
    /// # Errors
    ///
    /// It is attached already, the domain is of another unit or mode, its reserved memory is in the way, or the unit
    /// does not do as it is told. If the unit does not even take the entry back, the device stays listed as attached:
    /// [detach](Self::detach) it once the unit answers; until then the domain is not destroyed.
    pub fn attach<F: Stage>(
        &mut self,
        domain: &mut Domain<F, M, P>,
        device: Attachment,
    ) -> Result<(), DriverError> {
        if domain.unit != self.root {
            return Err(DriverError::ForeignDomain(domain.id));
        }
        self.admit(device)?;
        let Attachment { source, pasid, tlb } = device;
        let entry = self.entry_of(domain, tlb)?;
        let mut mapped = Vec::new();
        if pasid.is_none() {
            let regions = self.devices.get(&source).map(|d| d.regions.clone());
            let regions = regions.unwrap_or_default();
            mapped = self.map_reserved(domain, source, &regions)?;
            domain
                .reserved
                .extend(regions.iter().map(|&span| (source, span)));
        }
        let id = domain.id;
        let done = self.enter(
            device,
            entry,
            Way {
                domain: id,
                id,
                tlb,
            },
        );
        if self.domain_of_device(source, pasid) == Some(domain.id) {
            domain.attached.push(device);
        } else if pasid.is_none() {
            domain.reserved.retain(|(of, _)| *of != source);
            self.unmap_reserved(domain, mapped);
        }
        done
    }

    /// Lets requests of `source` reach physical memory, untranslated.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach), or the unit does not support it.
    pub fn attach_pass_through(&mut self, source: RequesterId) -> Result<(), DriverError> {
        if !self.ecap.pass_through() {
            return Err(DriverError::Unsupported(Ability::PassThrough));
        }
        let device = Attachment::new(source);
        self.admit(device)?;
        let domain = match self.pass_through {
            Some(id) => id,
            None => {
                let count = self.ids.count();
                let id = self.ids.allocate(1);
                let id = id.ok_or(DriverError::OutOfDomains { count })?;
                *self.pass_through.insert(id)
            }
        };
        let width = self.width(self.second_stage_levels()?)?;
        let entry = match self.mode {
            Mode::Legacy => {
                let kind = TranslationType::PassThrough;
                Entry::context(ContextEntry::new(kind, domain, width, 0))
            }
            Mode::Scalable => Entry::pasid(PasidEntry::pass_through(domain, width)),
        };
        let way = Way {
            domain,
            id: domain,
            tlb: None,
        };
        let done = self.enter(device, entry, way);
        // Also if the unit took the entry neither in nor back: then it can be detached again.
        if let Some(state) = self.devices.get_mut(&source)
            && state.reach == Reach::Domain(domain)
        {
            state.reach = Reach::PassThrough;
        }
        done
    }

    /// Blocks a device that is attached to `domain` (but for its reserved memory), and returns when nothing of
    /// the domain can be reached by it any more.
    ///
    /// Page requests of the PASID that the unit received before are in the page request queue when this returns, if the
    /// unit drains them (ECAP.PDS; a device with a TLB only). The queue is the caller's: have the device stop, detach,
    /// then [poll](Self::poll_page_request) until it is empty and drop what names the PASID, or answer it as invalid.
    /// Only then may the PASID be attached to anything else, or an old request is taken for a new one.
    ///
    /// # Errors
    ///
    /// It is not attached there; or it is blocked, but may still use old translations: detach it again.
    pub fn detach<F: Stage>(
        &mut self,
        domain: &mut Domain<F, M, P>,
        source: RequesterId,
        pasid: Option<Pasid>,
    ) -> Result<(), DriverError> {
        let mut all = domain.attached.iter().enumerate();
        let found = all.find(|(_, at)| at.source == source && at.pasid == pasid);
        let here = self.domain_of_device(source, pasid) == Some(domain.id);
        let (Some((index, attached)), true) = (found, here && domain.unit == self.root) else {
            return Err(DriverError::NotAttached {
                source_id: source,
                pasid,
            });
        };
        let gone = Gone {
            domain: domain.id_of(attached),
            between: None,
            kind: Some(F::KIND),
            tlb: attached.tlb,
        };
        self.leave(source, pasid, gone)?;
        domain.attached.swap_remove(index);
        // Of requests without PASID: those with one never had it.
        if pasid.is_none() {
            domain.reserved.retain(|(of, _)| *of != source);
        }
        if let Some(id) = domain.forget_nested(source, pasid) {
            self.ids.free(id, 1);
        }
        Ok(())
    }

    /// Blocks a device that is passed through.
    ///
    /// # Errors
    ///
    /// As [`detach`](Self::detach).
    pub fn detach_pass_through(&mut self, source: RequesterId) -> Result<(), DriverError> {
        match self.pass_through {
            Some(domain) if self.reach(source) == Reach::PassThrough => {
                let gone = Gone {
                    domain,
                    between: None,
                    kind: None,
                    tlb: None,
                };
                self.leave(source, None, gone)
            }
            _ => Err(DriverError::NotAttached {
                source_id: source,
                pasid: None,
            }),
        }
    }
}

/// Whether every page of `span` is mapped to itself, for reading and writing.
fn is_identity<F: Stage, M: OwnEntries, P: Frames>(domain: &Domain<F, M, P>, span: Span) -> bool {
    let mut at = span.start;
    loop {
        let Ok(there) = domain.translate(at) else {
            return false;
        };
        if there.target != at || there.attributes != F::READ_WRITE {
            return false;
        }
        let size = domain.mapper.format().shape().size(there.level);
        // A size is a power of two.
        match (at | size.wrapping_sub(1)).checked_add(1) {
            Some(next) if next <= span.last() => at = next,
            _ => return true,
        }
    }
}
