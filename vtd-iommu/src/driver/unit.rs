// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit: taken over from whoever had it, tables set, translation turned on; and told to forget.
//!
//! ```text
//!   probe -> take -----------------------------> enable -> ... -> release
//!            off, faults cleared, queue on,       TE
//!            root table of nothing: every
//!            request is blocked
//! ```

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use hvkit_page_table::{Frames, OwnEntries, Stale};

use super::attach::Device;
use super::command::{self, Switch};
use super::domain::{Domain, Stage};
use super::ids::Ids;
use super::invalidation::Invalidation;
use super::memory::zeroed;
use super::queue::{DescriptorWidth, InvalidationQueue, RingMemory};
use super::{Ability, DriverError, Mmio, Registers, Waiting};
use crate::spec::RequesterId;
use crate::spec::context::AddressWidth;
use crate::spec::invalidation::{
    ContextScope, Descriptor, DeviceTlb, Drain, IotlbScope, PasidCacheScope,
};
use crate::spec::registers::{
    CAP, Capability, ECAP, ExtendedCapability, GSTS, PMEN, ProtectedMemoryEnable, RootTableAddress,
    TranslationTableMode, VER, Version,
};
use crate::tables::{FirstStage, LargePages, SecondStage};

/// Which tables a unit is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Root and context entries of legacy mode: one domain for each device.
    Legacy,
    /// Scalable mode: a domain for each PASID of each device, first and second stage.
    Scalable,
}

/// How a unit is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Options {
    /// Which tables.
    pub mode: Mode,
    /// Width of physical addresses in bits, 30 to 52: the host address width of the DMAR table.
    pub host_bits: u32,
    /// Memory of the invalidation queue; `None` takes one frame (255 descriptors at a time, 127 in scalable
    /// mode).
    pub ring: Option<RingMemory>,
}

impl Options {
    /// Legacy mode, on a host with addresses of `host_bits`.
    #[must_use]
    pub const fn legacy(host_bits: u32) -> Self {
        Self {
            mode: Mode::Legacy,
            host_bits,
            ring: None,
        }
    }

    /// Scalable mode, on a host with addresses of `host_bits`.
    #[must_use]
    pub const fn scalable(host_bits: u32) -> Self {
        Self {
            mode: Mode::Scalable,
            host_bits,
            ring: None,
        }
    }
}

/// What a unit says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Version.
    pub version: Version,
    /// Capabilities.
    pub cap: Capability,
    /// Extended capabilities.
    pub ecap: ExtendedCapability,
}

/// Asks what is at these registers. Changes nothing.
///
/// # Errors
///
/// [`DriverError::Absent`] if it cannot be a unit.
pub fn probe(registers: &impl Mmio) -> Result<Probe, DriverError> {
    let (version, cap) = (registers.get(VER), registers.get(CAP));
    // What a bus answers for nobody, and what nobody leaves.
    if version.major() == 0 || version.0 == !0 || cap.0 == !0 || cap.sagaw() & 0b1110 == 0 {
        return Err(DriverError::Absent {
            version: version.0,
            capability: cap.0,
        });
    }
    Ok(Probe {
        version,
        cap,
        ecap: registers.get(ECAP),
    })
}

/// A unit in our hands.
///
/// `R` are its registers, `M` the memory that its tables are in (clones are the same memory), `P` a pool of
/// frames for them. For a unit that does not snoop (see [`probe`]), `M` is to be a [`Flushed`](super::Flushed).
#[derive(Debug)]
pub struct Unit<R, M, P> {
    pub(super) registers: R,
    pub(super) memory: M,
    pub(super) frames: P,
    pub(super) cap: Capability,
    pub(super) ecap: ExtendedCapability,
    pub(super) mode: Mode,
    pub(super) host_bits: u32,
    pub(super) root: u64,
    pub(super) invalidation: Invalidation<M>,
    pub(super) ids: Ids,
    pub(super) devices: BTreeMap<RequesterId, Device<M, P>>,
    /// Device-TLBs that may be filled, by any attachment of their device: from before its translation requests are let
    /// through until after they are not.
    pub(super) tlbs: BTreeMap<RequesterId, DeviceTlb>,
    pub(super) pass_through: Option<u16>,
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Takes a unit over from firmware or an earlier owner: everything off, pending faults cleared, queued
    /// invalidation on where there is any, and a root table in which every request is blocked. Translation is
    /// off until [`enable`](Self::enable).
    ///
    /// # Errors
    ///
    /// No unit, no frames, a mode that it does not have, or a unit that does not do as it is told.
    pub fn take(registers: R, memory: M, frames: P, options: Options) -> Result<Self, DriverError> {
        let Probe { cap, ecap, .. } = probe(&registers)?;
        if options.mode == Mode::Scalable {
            for (has, ability) in [
                (ecap.scalable_mode(), Ability::ScalableMode),
                (ecap.queued_invalidation(), Ability::QueuedInvalidation),
            ] {
                if !has {
                    return Err(DriverError::Unsupported(ability));
                }
            }
        }
        let status = registers.get(GSTS);
        if status.translation() {
            command::translation(&registers, Switch::Off)?;
        }
        if status.interrupt_remapping() {
            command::interrupt_remapping(&registers, Switch::Off)?;
        }
        if status.queued_invalidation() {
            command::queued_invalidation(&registers, Switch::Off)?;
        }
        super::faults::clear(&registers, cap);
        let root = zeroed(&memory, &frames)?;
        let queue = if ecap.queued_invalidation() {
            let width = match options.mode {
                Mode::Legacy => DescriptorWidth::Narrow,
                Mode::Scalable => DescriptorWidth::Wide,
            };
            match InvalidationQueue::enable(
                &registers,
                memory.clone(),
                &frames,
                width,
                options.ring,
            ) {
                Ok(queue) => Some(queue),
                Err(error) => {
                    frames.free(root);
                    return Err(error);
                }
            }
        } else {
            None
        };
        let mut ids = Ids::new(cap.domains());
        // In caching mode, absent entries are cached under 0.
        ids.take(0);
        let mut unit = Self {
            registers,
            memory,
            frames,
            cap,
            ecap,
            mode: options.mode,
            host_bits: options.host_bits,
            root,
            invalidation: Invalidation::new(queue),
            ids,
            devices: BTreeMap::new(),
            tlbs: BTreeMap::new(),
            pass_through: None,
        };
        match unit.set_root() {
            Ok(()) => Ok(unit),
            Err(error) => {
                // The unit was told of the root table: the frame stays allocated.
                Err(error)
            }
        }
    }

    fn set_root(&mut self) -> Result<(), DriverError> {
        let mode = match self.mode {
            Mode::Legacy => TranslationTableMode::Legacy,
            Mode::Scalable => TranslationTableMode::Scalable,
        };
        let address = RootTableAddress(0)
            .with_table(self.root)
            .with_ttm(mode.bits());
        command::set_root_table(&self.registers, address)?;
        self.forget_everything()
    }

    /// Has the unit forget every context, PASID and translation.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn forget_everything(&mut self) -> Result<(), DriverError> {
        self.ask(Descriptor::Context(ContextScope::Global))?;
        if self.mode == Mode::Scalable {
            self.ask(Descriptor::PasidCache(PasidCacheScope::Global))?;
        }
        let drain = self.drain();
        self.ask(Descriptor::Iotlb {
            scope: IotlbScope::Global,
            drain,
        })?;
        self.wait()
    }

    /// Capabilities.
    #[must_use]
    pub const fn capability(&self) -> Capability {
        self.cap
    }

    /// Extended capabilities.
    #[must_use]
    pub const fn extended_capability(&self) -> ExtendedCapability {
        self.ecap
    }

    /// The registers, for what has no method here.
    #[must_use]
    pub const fn registers(&self) -> &R {
        &self.registers
    }

    /// The invalidation queue, if the unit has one.
    #[must_use]
    pub const fn queue(&mut self) -> Option<&mut InvalidationQueue<M>> {
        self.invalidation.queue.as_mut()
    }

    /// Turns DMA remapping on: from now on what is not attached is blocked. Protected memory regions of
    /// firmware are released, their work is done.
    ///
    /// # Errors
    ///
    /// The unit does not.
    pub fn enable(&mut self) -> Result<(), DriverError> {
        command::translation(&self.registers, Switch::On)?;
        if self.cap.protected_low() || self.cap.protected_high() {
            self.registers.put(PMEN, ProtectedMemoryEnable(0));
            self.registers
                .wait_for(PMEN, Waiting::ProtectedMemory, |p| !p.protected())?;
        }
        Ok(())
    }

    /// Turns DMA remapping off: every device reaches all memory.
    ///
    /// # Errors
    ///
    /// The unit does not.
    pub fn disable(&mut self) -> Result<(), DriverError> {
        command::translation(&self.registers, Switch::Off)
    }

    /// Whether DMA remapping is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.registers.get(GSTS).translation()
    }

    pub(super) fn ask(&mut self, descriptor: Descriptor) -> Result<(), DriverError> {
        self.invalidation
            .ask(&self.registers, self.ecap, descriptor)
    }

    pub(super) fn wait(&mut self) -> Result<(), DriverError> {
        self.invalidation.wait(&self.registers)
    }

    pub(super) fn drain(&self) -> Drain {
        let mut drain = Drain::empty();
        drain.set(Drain::READS, self.cap.drain_reads());
        drain.set(Drain::WRITES, self.cap.drain_writes());
        drain
    }

    /// The number of second-stage levels that domains have: the fewest that reach all of MGAW.
    ///
    /// # Errors
    ///
    /// The unit supports none.
    pub fn second_stage_levels(&self) -> Result<u8, DriverError> {
        let has = |levels: &u8| self.cap.second_stage_levels(*levels);
        let bits = |levels: &u8| AddressWidth::of_levels(*levels)?.bits();
        let reaches = |levels: &u8| bits(levels) >= Some(self.cap.guest_address_bits());
        (3..=5)
            .find(|levels| has(levels) && reaches(levels))
            .or_else(|| (3..=5).rev().find(has))
            .ok_or(DriverError::Unsupported(Ability::SecondStageLevels(0)))
    }

    /// A domain with a second-stage table: addresses of a guest or of a driver, to physical ones.
    ///
    /// # Errors
    ///
    /// No second stage, no domain-ids, no frames.
    pub fn new_domain(&mut self) -> Result<Domain<SecondStage, M, P>, DriverError> {
        if self.mode == Mode::Scalable && !self.ecap.second_stage() {
            return Err(DriverError::Unsupported(Ability::SecondStage));
        }
        let levels = self.second_stage_levels()?;
        let unsupported = DriverError::Unsupported(Ability::SecondStageLevels(levels));
        let mut format = SecondStage::new(levels, self.host_bits).map_err(|_| unsupported)?;
        let large = LargePages::from_bits_truncate(self.cap.second_stage_large_pages());
        format = format.with_large_pages(large);
        if self.ecap.snoop_control() {
            format = format.with_snoop_control();
        }
        self.domain_of(format)
    }

    /// A domain with a first-stage table of `levels` levels (4 or 5): addresses of a process, canonical.
    ///
    /// # Errors
    ///
    /// Legacy mode, no first stage, no domain-ids, no frames.
    pub fn new_first_stage_domain(
        &mut self,
        levels: u8,
    ) -> Result<Domain<FirstStage, M, P>, DriverError> {
        if self.mode == Mode::Legacy || !self.ecap.first_stage() {
            return Err(DriverError::Unsupported(Ability::FirstStage));
        }
        let unsupported = DriverError::Unsupported(Ability::FirstStageLevels(levels));
        if levels == 5 && !self.cap.first_stage_5_levels() {
            return Err(unsupported);
        }
        let mut format = FirstStage::new(levels, self.host_bits).map_err(|_| unsupported)?;
        if self.cap.first_stage_1g() {
            format = format.with_one_gib();
        }
        self.domain_of(format)
    }

    fn domain_of<F: Stage>(&mut self, format: F) -> Result<Domain<F, M, P>, DriverError> {
        let count = self.ids.count();
        let id = self
            .ids
            .allocate(1)
            .ok_or(DriverError::OutOfDomains { count })?;
        let table = hvkit_page_table::Mapper::new(format, self.memory.clone(), self.frames.clone());
        match table {
            Ok(mapper) => Ok(Domain {
                id,
                unit: self.root,
                mapper,
                guest_bits: self.cap.guest_address_bits(),
                attached: Vec::new(),
                nested: Vec::new(),
                reserved: Vec::new(),
            }),
            Err(_) => {
                self.ids.free(id, 1);
                Err(DriverError::OutOfFrames)
            }
        }
    }

    /// Frees a domain that nobody is attached to: its table and its id.
    ///
    /// # Errors
    ///
    /// The domain is given back: it is in use, another unit's, or could not be invalidated.
    #[expect(
        clippy::result_large_err,
        reason = "once in a domain's life, and without an allocation"
    )]
    pub fn destroy<F: Stage>(
        &mut self,
        domain: Domain<F, M, P>,
    ) -> Result<(), (Domain<F, M, P>, DriverError)> {
        let id = domain.id;
        if domain.unit != self.root {
            return Err((domain, DriverError::ForeignDomain(id)));
        }
        if !domain.attached.is_empty() {
            return Err((domain, DriverError::DomainInUse(id)));
        }
        let Domain {
            unit,
            mapper,
            guest_bits,
            attached,
            nested,
            reserved,
            ..
        } = domain;
        let drain = self.drain();
        let mut all = |_: &Stale| {
            self.ask(Descriptor::Iotlb {
                scope: IotlbScope::Domain { domain: id },
                drain,
            })?;
            self.wait()
        };
        match mapper.destroy(&mut all) {
            Ok(()) => {
                self.ids.free(id, 1);
                Ok(())
            }
            Err((mapper, error)) => {
                let domain = Domain {
                    id,
                    unit,
                    mapper,
                    guest_bits,
                    attached,
                    nested,
                    reserved,
                };
                Err((domain, error))
            }
        }
    }
}
