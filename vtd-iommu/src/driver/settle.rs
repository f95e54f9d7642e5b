// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What changes of a domain owe its unit, and how it is paid.

use alloc::vec::Vec;

use hvkit_page_table::{Cause, Frames, OwnEntries, Span, Stale, Unsettled};

use super::domain::{Domain, Fresh, Stage, StageKind};
use super::{DriverError, Mmio, Unit, command};
use crate::spec::invalidation::{
    AtsRange, Descriptor, DeviceTlb, IotlbScope, Pages, PasidIotlbScope,
};
use crate::spec::{Pasid, RequesterId};

/// What changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hint {
    /// Leaves only.
    Leaves,
    /// Tables too.
    Tables,
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Makes what was mapped visible: in caching mode the unit may have cached its absence, and a unit with
    /// a write buffer may not see it yet. On all others nothing happens.
    ///
    /// # Errors
    ///
    /// The unit does not forget. The mapping is there, but devices may be refused.
    pub fn publish<F: Stage>(
        &mut self,
        domain: &Domain<F, M, P>,
        fresh: Fresh,
    ) -> Result<(), DriverError> {
        if domain.unit != self.root || fresh.domain != domain.id {
            return Err(DriverError::ForeignDomain(fresh.domain));
        }
        if self.cap.caching_mode() {
            self.forget_span(domain, fresh.span, Hint::Tables)?;
            self.wait()
        } else if self.cap.write_buffer_flush() {
            command::flush_write_buffer(&self.registers)
        } else {
            Ok(())
        }
    }

    /// Has the unit and the devices forget what `stale` names, then returns its frames to the pool: the strict
    /// policy.
    ///
    /// # Errors
    ///
    /// The token is given back: some device may still use what it names.
    pub fn settle<F: Stage>(
        &mut self,
        domain: &Domain<F, M, P>,
        stale: Stale,
    ) -> Result<(), Unsettled<DriverError>> {
        let mut by = |stale: &Stale| {
            self.forget(domain, stale)?;
            self.wait()
        };
        domain.mapper.settle(stale, &mut by)
    }

    /// [`settle`](Self::settle) for many tokens, with one wait.
    ///
    /// # Errors
    ///
    /// Every token that is not settled is given back; if the unit fails, that is all of them.
    pub fn settle_all<'a, F>(
        &mut self,
        owed: impl IntoIterator<Item = (&'a Domain<F, M, P>, Stale)>,
    ) -> Result<(), Vec<Unsettled<DriverError>>>
    where
        M: 'a,
        P: 'a,
        F: Stage + 'a,
    {
        let owed: Vec<_> = owed.into_iter().collect();
        let mut outcome = Ok(());
        for (domain, stale) in &owed {
            outcome = outcome.and_then(|()| self.forget(domain, stale));
        }
        // What was asked is waited for in any case, so that nothing is left half asked.
        let outcome = outcome.and(self.wait());
        let unsettled: Vec<_> = owed
            .into_iter()
            .filter_map(|(domain, stale)| match outcome {
                Ok(()) => domain
                    .mapper
                    .settle(stale, &mut |_: &Stale| Ok::<(), DriverError>(()))
                    .err(),
                Err(error) => Some(Unsettled {
                    stale,
                    cause: Cause::Failed(error),
                }),
            })
            .collect();
        if unsettled.is_empty() {
            Ok(())
        } else {
            Err(unsettled)
        }
    }

    /// Asks for everything that `stale` names to be forgotten.
    pub(super) fn forget<F: Stage>(
        &mut self,
        domain: &Domain<F, M, P>,
        stale: &Stale,
    ) -> Result<(), DriverError> {
        if domain.unit != self.root {
            return Err(DriverError::ForeignDomain(domain.id));
        }
        let hint = if stale.tables() {
            Hint::Tables
        } else {
            Hint::Leaves
        };
        for &span in stale.spans() {
            self.forget_span(domain, span, hint)?;
        }
        Ok(())
    }

    #[inline]
    fn forget_span<F: Stage>(
        &mut self,
        domain: &Domain<F, M, P>,
        span: Span,
        hint: Hint,
    ) -> Result<(), DriverError> {
        let leaves_only = hint == Hint::Leaves;
        let pages = Pages::covering(span.start, span.last(), leaves_only);
        let limit = self.cap.max_address_mask();
        let selective = self.cap.page_selective() && pages.order <= limit;
        let pages = selective.then_some(pages);
        match F::KIND {
            // Nobody to whom a translation could belong: detaching has had them forgotten.
            _ if domain.attached.is_empty() => return Ok(()),
            StageKind::Second => {
                if domain.nested.len() < domain.attached.len() {
                    self.ask_iotlb(domain.id, pages)?;
                }
                for id in domain.nested_ids() {
                    self.ask_iotlb(id, pages)?;
                }
            }
            StageKind::First => {
                for at in &domain.attached {
                    self.ask_pasid_iotlb(domain.id, at.pasid, pages)?;
                }
            }
        }
        let range = match Pages::covering(span.start, span.last(), false) {
            pages if pages.order >= 52 => AtsRange::ALL,
            Pages { address, order, .. } => AtsRange { address, order },
        };
        if self.tlbs.is_empty() {
            return Ok(());
        }
        for at in &domain.attached {
            let Some(device) = self.tlb_of(at.source, at.tlb) else {
                continue;
            };
            // Under nested translation the device knows addresses of the first stage, and these are the second's.
            let range = match domain.nesting(at) {
                Some(_) => AtsRange::ALL,
                None => range,
            };
            self.ask_device_tlb(device, at.pasid, range)?;
        }
        Ok(())
    }

    /// The device-TLB that is filled through an attachment of `source` which named `tlb`. DTE is of all the requests of
    /// a device: it is filled through those that named none, too.
    pub(super) fn tlb_of(&self, source: RequesterId, tlb: Option<DeviceTlb>) -> Option<DeviceTlb> {
        tlb.or_else(|| self.tlbs.get(&source).copied())
    }

    /// What a device keeps of its requests with `pasid`, or of those without.
    pub(super) fn ask_device_tlb(
        &mut self,
        device: DeviceTlb,
        pasid: Option<Pasid>,
        range: AtsRange,
    ) -> Result<(), DriverError> {
        self.ask(match pasid {
            None => Descriptor::DeviceTlb { device, range },
            pasid => Descriptor::PasidDeviceTlb {
                device,
                pasid,
                range,
            },
        })
    }

    /// Second-stage translations of a domain: some pages, or all.
    pub(super) fn ask_iotlb(
        &mut self,
        domain: u16,
        pages: Option<Pages>,
    ) -> Result<(), DriverError> {
        let scope = match pages {
            Some(pages) => IotlbScope::Pages { domain, pages },
            None => IotlbScope::Domain { domain },
        };
        let drain = self.drain();
        self.ask(Descriptor::Iotlb { scope, drain })
    }

    /// First-stage translations of a PASID in a domain: some pages, or all.
    pub(super) fn ask_pasid_iotlb(
        &mut self,
        domain: u16,
        pasid: Option<Pasid>,
        pages: Option<Pages>,
    ) -> Result<(), DriverError> {
        self.ask(Descriptor::PasidIotlb {
            domain,
            pasid: pasid.unwrap_or(Pasid::ZERO),
            scope: pages.map_or(PasidIotlbScope::All, PasidIotlbScope::Pages),
        })
    }
}
