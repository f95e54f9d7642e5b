// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A domain: one translation table, and the devices that use it.
//!
//! ```text
//!   map    ---> Fresh --- Unit::publish  (does something only where units cache absence, or buffer writes)
//!   unmap  ---> Stale --- Unit::settle   (one wait), Unit::settle_all (one wait for many), Deferred
//! ```
//!
//! Changes are made here, with no unit at hand; what they owe the unit is a token.

use alloc::vec::Vec;

use hvkit_page_table::{
    Encode, Format, Frames, MapError, Mapper, Outcome, OwnEntries, Span, Stale,
};

use super::nested::FirstTable;
use crate::spec::Pasid;
use crate::spec::RequesterId;
use crate::spec::invalidation::DeviceTlb;
use crate::tables::{FirstStage, FirstStageAttributes, SecondStage, SecondStageAttributes};

/// The addresses that mean interrupts: no table is asked for them.
const INTERRUPTS: Span = Span::new(0xfee0_0000, 0x10_0000);

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::tables::FirstStage {}
    impl Sealed for crate::tables::SecondStage {}
}

/// Which translations an invalidation of a table's format is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageKind {
    /// Of a domain.
    Second,
    /// Of a PASID in a domain.
    First,
}

/// A table format that a domain can have: [`FirstStage`] or [`SecondStage`].
pub trait Stage: Encode + Copy + sealed::Sealed {
    /// Which of the two.
    const KIND: StageKind;
    /// Reads and writes: what reserved memory is mapped with.
    const READ_WRITE: Self::Attributes;
}

impl Stage for FirstStage {
    const KIND: StageKind = StageKind::First;
    const READ_WRITE: FirstStageAttributes = FirstStageAttributes::READ_WRITE;
}

impl Stage for SecondStage {
    const KIND: StageKind = StageKind::Second;
    const READ_WRITE: SecondStageAttributes = SecondStageAttributes::READ_WRITE;
}

/// Why a change of a domain was refused. Nothing was changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError<A, R> {
    /// The table refused.
    #[error(transparent)]
    Table(#[from] MapError<A, R>),
    /// Part of the range is reserved memory of an attached device, which stays as it is.
    #[error("{length:#x} bytes at {start:#x} are reserved memory of an attached device")]
    Reserved {
        /// First address of the reserved region.
        start: u64,
        /// Its bytes.
        length: u64,
    },
    /// Part of the range is where interrupts go.
    #[error("{length:#x} bytes at {start:#x} reach into the interrupt address range")]
    Interrupts {
        /// First address asked for.
        start: u64,
        /// Bytes.
        length: u64,
    },
    /// The range is beyond the unit's guest address width, narrower than the table's.
    #[error("{length:#x} bytes at {start:#x} are beyond the unit's {bits} address bits")]
    BeyondWidth {
        /// First address asked for.
        start: u64,
        /// Bytes.
        length: u64,
        /// CAP.MGAW + 1.
        bits: u32,
    },
}

/// [`DomainError`] for tables of the format `F`.
pub type Refused<F> = DomainError<<F as Format>::Attributes, <F as Format>::Rule>;

/// Addresses that were mapped where nothing was: owed to units that cache absent entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a unit in caching mode may go on refusing: publish it"]
pub struct Fresh {
    pub(super) domain: u16,
    pub(super) span: Span,
}

impl Fresh {
    /// The addresses.
    #[must_use]
    pub const fn span(&self) -> Span {
        self.span
    }
}

/// A device's way into a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The device.
    pub source: RequesterId,
    /// The PASID that its requests have; `None` for those without.
    pub pasid: Option<Pasid>,
    /// Its device-TLB, if it has one that is on. In scalable mode a device's translation requests are let through all together
    /// (DTE): while any of its attachments names one, it is told to forget of every one.
    pub tlb: Option<DeviceTlb>,
}

impl Attachment {
    /// Requests of `source` without PASID, no device-TLB.
    #[must_use]
    pub const fn new(source: RequesterId) -> Self {
        Self {
            source,
            pasid: None,
            tlb: None,
        }
    }

    /// The same, requests with `pasid`.
    #[must_use]
    pub const fn with_pasid(mut self, pasid: Pasid) -> Self {
        self.pasid = Some(pasid);
        self
    }

    /// The same, with a device-TLB. Turn it on in the device (ATS) after attaching, off before detaching.
    #[must_use]
    pub const fn with_tlb(mut self, tlb: DeviceTlb) -> Self {
        self.tlb = Some(tlb);
        self
    }
}

/// An attachment that comes through a first-stage table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nested {
    pub(super) source: RequesterId,
    pub(super) pasid: Option<Pasid>,
    pub(super) first: FirstTable,
    /// The domain-id in its entry, which this first-stage table has to itself.
    pub(super) id: u16,
}

/// One translation table of one unit, with a domain-id.
///
/// Dropping it leaks its table and id: hardware may be using them. [`Unit::destroy`](super::Unit::destroy) frees
/// them.
#[derive(Debug)]
pub struct Domain<F, M, P> {
    pub(super) id: u16,
    /// The root table of the unit that made it.
    pub(super) unit: u64,
    pub(super) mapper: Mapper<F, M, P>,
    pub(super) guest_bits: u32,
    pub(super) attached: Vec<Attachment>,
    /// Those of them that come through a first-stage table of somebody else's.
    pub(super) nested: Vec<Nested>,
    /// Identity-mapped for as long as its device is attached.
    pub(super) reserved: Vec<(RequesterId, Span)>,
}

impl<F: Stage, M: OwnEntries, P: Frames> Domain<F, M, P> {
    /// The domain-id.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// The table.
    #[must_use]
    pub const fn table(&self) -> &Mapper<F, M, P> {
        &self.mapper
    }

    /// The devices that use it.
    #[must_use]
    pub fn attached(&self) -> &[Attachment] {
        &self.attached
    }

    /// Where `address` leads.
    ///
    /// # Errors
    ///
    /// The fault that the unit would report, rights apart.
    pub fn translate(&self, address: u64) -> Outcome<F, M> {
        self.mapper.translate(address)
    }

    /// How `at` is nested, if it is.
    pub(super) fn nesting(&self, at: &Attachment) -> Option<&Nested> {
        let mut all = self.nested.iter();
        all.find(|nested| nested.source == at.source && nested.pasid == at.pasid)
    }

    /// The domain-id in the entry of `at`.
    pub(super) fn id_of(&self, at: &Attachment) -> u16 {
        self.nesting(at).map_or(self.id, |nested| nested.id)
    }

    /// The domain-ids of first-stage tables, each once.
    pub(super) fn nested_ids(&self) -> impl Iterator<Item = u16> {
        let earlier = |count, id| self.nested.iter().take(count).any(|nested| nested.id == id);
        let all = self.nested.iter().enumerate();
        all.filter(move |(count, nested)| !earlier(*count, nested.id))
            .map(|(_, nested)| nested.id)
    }

    /// Takes a nested attachment out; its domain-id, if no other has it.
    pub(super) fn forget_nested(
        &mut self,
        source: RequesterId,
        pasid: Option<Pasid>,
    ) -> Option<u16> {
        let mut all = self.nested.iter();
        let index = all.position(|nested| nested.source == source && nested.pasid == pasid)?;
        let gone = self.nested.swap_remove(index);
        let shared = self.nested.iter().any(|nested| nested.id == gone.id);
        (!shared).then_some(gone.id)
    }

    fn admit(&self, span: Span) -> Result<(), Refused<F>> {
        let Span { start, length } = span;
        if length > 0 && start <= INTERRUPTS.last() && span.last() >= INTERRUPTS.start {
            return Err(DomainError::Interrupts { start, length });
        }
        let bits = self.guest_bits;
        if F::KIND == StageKind::Second && bits < 64 && span.last() >> bits != 0 {
            return Err(DomainError::BeyondWidth {
                start,
                length,
                bits,
            });
        }
        Ok(())
    }

    fn spare_reserved(&self, span: Span) -> Result<(), Refused<F>> {
        let hit = self.reserved.iter().find(|(_, reserved)| {
            span.length > 0 && reserved.start <= span.last() && span.start <= reserved.last()
        });
        match hit {
            Some((_, Span { start, length })) => Err(DomainError::Reserved {
                start: *start,
                length: *length,
            }),
            None => Ok(()),
        }
    }

    /// Maps `span`, where nothing is mapped, to the physical addresses from `target`, with the largest pages
    /// that fit.
    ///
    /// # Errors
    ///
    /// [`DomainError`] names what is refused.
    #[inline]
    pub fn map(
        &mut self,
        span: impl Into<Span>,
        target: u64,
        attributes: F::Attributes,
    ) -> Result<Fresh, Refused<F>> {
        let span = span.into();
        self.admit(span)?;
        self.mapper.map(span, target, attributes)?;
        Ok(Fresh {
            domain: self.id,
            span,
        })
    }

    /// Unmaps `span`; holes in it are fine. Devices may reach the pages until the token is settled.
    ///
    /// # Errors
    ///
    /// [`DomainError`] names what is refused, reserved memory of an attached device above all.
    #[inline]
    pub fn unmap(&mut self, span: impl Into<Span>) -> Result<Stale, Refused<F>> {
        let span = span.into();
        self.spare_reserved(span)?;
        Ok(self.mapper.unmap(span)?)
    }

    /// Gives every page in `span` the attributes that `to` makes of its own.
    ///
    /// # Errors
    ///
    /// As [`unmap`](Self::unmap).
    pub fn protect(
        &mut self,
        span: impl Into<Span>,
        to: impl Fn(F::Attributes) -> F::Attributes,
    ) -> Result<Stale, Refused<F>> {
        let span = span.into();
        self.spare_reserved(span)?;
        Ok(self.mapper.protect(span, to)?)
    }

    /// Makes larger pages, or smaller ones: the table itself, for operations that keep every translation
    /// ([`split`](Mapper::split), [`merge`](Mapper::merge)).
    pub const fn table_mut(&mut self) -> &mut Mapper<F, M, P> {
        &mut self.mapper
    }
}
