// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests of devices: what is kept, or the tables; or a fault.

use hvkit_page_table::{Entry, Format, Width};

use super::caches::{Hit, Known, rights};
use super::device::{Asker, Binding, Fault, Lookup, Mode, Processing, Stage, refuses};
use super::host::Host;
use super::memory::Memory;
use super::options::Caching;
use super::request::{Access, Fate, Fetch, Privilege, Refused, Request, Translated};
use super::stages::{self, Actor, SecondFault};
use super::unit::Unit;
use crate::spec::fault::{FaultReason, FaultRecord};
use crate::spec::interrupt::Message;
use crate::spec::registers::{GSTS, TranslationTableMode};
use crate::tables::SecondStageAttributes;

/// Address bits that a kept translation is found by.
const TRANSLATED_BITS: u64 = (1 << 57) - 1;

/// Address type of an untranslated request, in a fault record.
const UNTRANSLATED: u8 = 0;

/// The page number that a kept translation has.
#[inline(always)]
const fn page_of(address: u64) -> u64 {
    (address & TRANSLATED_BITS) >> 12
}

impl Hit {
    #[inline(always)]
    const fn translate(self, address: u64) -> Translated {
        let offset = below(self.page_bits);
        Translated {
            address: self.entry & rights::ADDRESS & !offset | address & offset,
            page_bits: self.page_bits,
            reads: self.entry & rights::READ != 0,
            writes: self.entry & rights::WRITE != 0,
            snoops: self.entry & rights::SNOOP != 0,
        }
    }
}

impl Unit {
    /// Translates a request for memory: an *untranslated request*.
    ///
    /// Writes to 0xfee0_0000 to 0xfeef_ffff without PASID are interrupt requests and belong to
    /// [`remap`](Self::remap); here they are refused without a record.
    ///
    /// # Errors
    ///
    /// It is refused, and the fault recorded unless FPD says otherwise. The device must see an error, and nothing of
    /// memory.
    #[inline(always)]
    pub fn translate(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        request: &Request,
    ) -> Result<Translated, Refused> {
        // A space is known only while translation is on, and nothing is kept of the interrupt addresses.
        if let Some((space, _)) =
            self.caches
                .space(request.source, request.pasid(), request.address)
            && let Some(entry) = self.caches.quick_page(space, page_of(request.address))
            && satisfies(entry, needed(request))
        {
            let page_bits = 12;
            return Ok(Hit { entry, page_bits }.translate(request.address));
        }
        // A copy: nothing but this needs the request in memory.
        let request = Request {
            source: request.source,
            process: request.process,
            address: request.address,
            access: request.access,
        };
        self.translate_further(memory, host, &request)
    }

    /// [`translate`](Self::translate) where what is kept is not quickly found, or not kept.
    #[cold]
    #[inline(never)]
    fn translate_further(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        request: &Request,
    ) -> Result<Translated, Refused> {
        match self.refill(memory, request) {
            Some(translated) => Ok(translated),
            None => self.translate_anew(memory, host, request),
        }
    }

    /// [`translate`](Self::translate) where nothing kept will do.
    #[inline(never)]
    fn translate_anew(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        request: &Request,
    ) -> Result<Translated, Refused> {
        if !self.file.get(GSTS).translation() {
            return Ok(Translated::identity(request.address));
        }
        if request.process.is_none() && Message::is_interrupt(request.address) {
            return Err(Refused {
                reason: FaultReason::INTERRUPT_RANGE,
                fate: Fate::Silent,
            });
        }
        if self.mode() == TranslationTableMode::AbortDma {
            return Err(Refused {
                reason: FaultReason::SM_ROOT_TABLE_INVALID,
                fate: Fate::Silent,
            });
        }
        let walked = self
            .bind(memory, request)
            .and_then(|known| self.through(memory, known, request));
        walked.map_err(|fault| self.refuse(host, request, UNTRANSLATED, fault))
    }

    /// Translates by a page that is kept, or else through a leaf table that is, and keeps the page: what an
    /// invalidation of leaves leaves to be done. `None` where there is more to it.
    #[inline(always)]
    fn refill(&mut self, memory: &impl Memory, request: &Request) -> Option<Translated> {
        let needed = needed(request);
        let (space, adds) = self
            .caches
            .space(request.source, request.pasid(), request.address)?;
        let page = page_of(request.address);
        if self.caches.maybe_page(space, page)
            && let Some(hit) = self.caches.page(space, page)
            && satisfies(hit.entry, needed)
        {
            return Some(hit.translate(request.address));
        }
        let table = self.caches.quick_table(space, page)?;
        let hit = self.leaf(memory, table, page)?;
        let hit = Hit {
            entry: hit.entry | adds,
            ..hit
        };
        if !satisfies(hit.entry, needed) {
            return None;
        }
        let translated = hit.translate(request.address);
        if Message::is_interrupt(translated.address) || Message::is_interrupt(request.address) {
            return None;
        }
        self.caches.keep_small(space, page, hit.entry);
        Some(translated)
    }

    /// What entry `page` of a kept leaf table says, if it is present and well-formed.
    #[inline(always)]
    fn leaf(&self, memory: &impl Memory, table: u64, page: u64) -> Option<Hit> {
        let at = table & rights::ADDRESS | (page & 0x1ff) << 3;
        let entry = memory.read(at, Width::Eight).ok()?;
        let attributes = match self.formats.leaf().decode(entry, 1) {
            Entry::Leaf { attributes, .. } => attributes,
            _ => return None,
        };
        let above = table & (rights::READ | rights::WRITE) | !(rights::READ | rights::WRITE);
        Some(Hit {
            entry: entry_of(entry, 12) | bits_of(attributes) & above,
            page_bits: 12,
        })
    }

    /// The tables of a requester, kept or looked up.
    pub(super) fn bind(&mut self, memory: &impl Memory, request: &Request) -> Result<Known, Fault> {
        self.bind_as(memory, request, Asker::Anyone)
    }

    /// The same, if `asker` may ask.
    pub(super) fn bind_as(
        &mut self,
        memory: &impl Memory,
        request: &Request,
        asker: Asker,
    ) -> Result<Known, Fault> {
        let (source, pasid) = (request.source, request.pasid());
        if let Some(known) = self.caches.known(source, pasid) {
            known.binding.admit(asker)?;
            return Ok(known);
        }
        let lookup = Lookup {
            options: &self.options,
            memory,
            root: self.root,
            mode: self.mode(),
        };
        let binding = lookup.find(source, pasid, asker)?;
        Ok(match self.options.caching {
            Caching::Never => Known { binding, space: 0 },
            Caching::UntilInvalidated => self.caches.remember(source, pasid, binding),
        })
    }

    /// Through the tables of `known`.
    pub(super) fn through(
        &mut self,
        memory: &impl Memory,
        known: Known,
        request: &Request,
    ) -> Result<Translated, Fault> {
        let Known { binding, space } = known;
        let fault = |reason| Fault::new(reason, binding.processing);
        if let Some(reason) = refuses(&binding, request) {
            return Err(fault(reason));
        }
        if let Some(hit) = self.caches.page(space, page_of(request.address))
            && satisfies(hit.entry, needed(request))
            && binding.reaches(request.address)
        {
            return Ok(hit.translate(request.address));
        }
        let hit = match binding.stage {
            Stage::PassThrough => {
                // Addresses that the machine does not have are not passed on.
                if request.address >> self.options.host_bits != 0 {
                    return Err(fault(match binding.mode {
                        Mode::Legacy => FaultReason::ADDRESS_BEYOND_WIDTH,
                        Mode::Scalable => FaultReason::SM_ADDRESS_BEYOND_WIDTH,
                    }));
                }
                return Ok(Translated {
                    snoops: binding.snoops,
                    ..Translated::identity(request.address)
                });
            }
            Stage::Second(_) => self.second_stage(memory, known, request)?,
            Stage::First(root) => {
                let format = self.formats.first(root);
                let actor = actor(&binding, request);
                let (address, access) = (request.address, request.access);
                let found =
                    stages::first(memory, &format, root, address, access, actor).map_err(fault)?;
                let writes = found.attributes.writes();
                Hit {
                    entry: entry_of(found.target, found.page_bits)
                        | rights::READ
                        | bit(writes && found.dirty, rights::WRITE)
                        | bit(found.attributes.user(), rights::USER),
                    page_bits: found.page_bits,
                }
            }
            Stage::Nested(first, second) => {
                let formats = (&self.formats.first(first), &self.formats.second(second));
                let actor = actor(&binding, request);
                let roots = (first, second);
                let (address, access) = (request.address, request.access);
                let (above, below) = stages::nested(memory, formats, roots, address, access, actor)
                    .map_err(fault)?;
                let page_bits = above.page_bits.min(below.page_bits);
                let writes = above.attributes.writes() && below.attributes.writes();
                let dirty = above.dirty && below.dirty;
                Hit {
                    entry: entry_of(below.target, page_bits)
                        | bit(below.attributes.reads(), rights::READ)
                        | bit(writes && dirty, rights::WRITE)
                        | bit(above.attributes.user(), rights::USER)
                        | bit(below.attributes.snoops(), rights::SNOOP),
                    page_bits,
                }
            }
        };
        let hit = Hit {
            entry: hit.entry | bit(binding.snoops, rights::SNOOP),
            ..hit
        };
        let translated = hit.translate(request.address);
        if Message::is_interrupt(translated.address) {
            return Err(fault(match binding.mode {
                Mode::Legacy => FaultReason::INTERRUPT_RANGE,
                Mode::Scalable => FaultReason::SM_INTERRUPT_RANGE,
            }));
        }
        // A page in which, or in whose target, interrupt addresses lie is not kept: hits do not look.
        let apart = |address: u64| address >> hit.page_bits != 0xfee0_0000 >> hit.page_bits;
        let apart = apart(request.address)
            && apart(translated.address)
            && !Message::is_interrupt(request.address);
        if self.options.caching == Caching::UntilInvalidated && apart {
            self.caches.keep(space, page_of(request.address), hit);
        }
        Ok(translated)
    }

    /// Through second stage alone, by way of a kept leaf table where there is one.
    fn second_stage(
        &mut self,
        memory: &impl Memory,
        known: Known,
        request: &Request,
    ) -> Result<Hit, Fault> {
        let Known { binding, space } = known;
        let Stage::Second(root) = binding.stage else {
            return Err(Fault::new(FaultReason::CONTEXT_INVALID, binding.processing));
        };
        let name = |fault: SecondFault| {
            let reason = match binding.mode {
                Mode::Legacy => fault.legacy(request.access),
                Mode::Scalable => fault.scalable(),
            };
            Fault::new(reason, binding.processing)
        };
        let mgaw = self.options.capability.guest_address_bits();
        if mgaw < 64 && request.address >> mgaw != 0 {
            return Err(name(SecondFault::Beyond));
        }
        let format = self.formats.second(root);
        let access = request.access;
        let page = page_of(request.address);
        // A fault is named by the tables as they are.
        if let Some(table) = self.caches.table(space, page)
            && binding.reaches(request.address)
            && let Some(hit) = self.leaf(memory, table, page)
            && satisfies(hit.entry, needed(request))
        {
            return Ok(hit);
        }
        let found = stages::second(memory, &format, root, request.address, access)
            .map_err(name)
            .and_then(|found| {
                // Zero-length reads of pages that can only be written are a capability.
                let zero = access == Access::ZeroLengthRead && !found.attributes.reads();
                if zero && !self.options.capability.zero_length_read() {
                    return Err(name(SecondFault::NoRead));
                }
                Ok(found)
            })?;
        if let Some((table, above)) = found.table
            && self.options.caching == Caching::UntilInvalidated
        {
            let above = above.0 & (rights::READ | rights::WRITE);
            self.caches
                .keep_table(space, page, table & rights::ADDRESS | above);
        }
        let bits = bits_of(found.attributes);
        let bits = if found.dirty {
            bits
        } else {
            bits & !rights::WRITE
        };
        Ok(Hit {
            entry: entry_of(found.target, found.page_bits) | bits,
            page_bits: found.page_bits,
        })
    }

    /// Records the fault of a request of `address_type` (AT).
    pub(super) fn refuse(
        &mut self,
        host: &mut impl Host,
        request: &Request,
        address_type: u8,
        fault: Fault,
    ) -> Refused {
        let mut record = FaultRecord(0)
            .with_source(request.source)
            .with_reason(fault.reason)
            .with_kind(request.access.kind())
            .with_address_type(address_type)
            .with_information(request.address & !0xfff);
        if let Some(process) = request.process {
            record = record
                .with_pasid(Some(process.pasid))
                .with_supervisor(process.privilege == Privilege::Supervisor)
                .with_execute(process.fetch == Fetch::Code);
        }
        self.log(host, record, fault)
    }

    /// Records a fault, unless it is not to be recorded.
    pub(super) fn log(
        &mut self,
        host: &mut impl Host,
        record: FaultRecord,
        fault: Fault,
    ) -> Refused {
        let disabled = fault.processing == Processing::Disabled && fault.reason.is_qualified();
        let fate = if disabled {
            Fate::Disabled
        } else {
            self.faults.record(record, &mut self.file, host)
        };
        Refused {
            reason: fault.reason,
            fate,
        }
    }
}

impl Binding {
    /// Address bits that must be 0 for a kept translation to be good: a superset of what the tables demand.
    #[inline(always)]
    pub(super) const fn upper(&self) -> u64 {
        match &self.stage {
            Stage::PassThrough => u64::MAX,
            Stage::Second(root) => !below(address_bits(root.levels)),
            // The lower half of the canonical addresses.
            Stage::First(root) | Stage::Nested(root, _) => !(below(address_bits(root.levels)) >> 1),
        }
    }

    /// Whether the tables translate `address` at all.
    const fn reaches(&self, address: u64) -> bool {
        match &self.stage {
            Stage::PassThrough => false,
            Stage::Second(_) => address & self.upper() == 0,
            Stage::First(_) | Stage::Nested(..) => {
                let upper = self.upper();
                address & upper == 0 || address & upper == upper
            }
        }
    }
}

/// The rights that a kept translation must have for `request`. One that must be walked for needs what none has.
#[inline(always)]
fn needed(request: &Request) -> u64 {
    let plain = match request.process {
        None => true,
        Some(process) => process.privilege == Privilege::User && process.fetch == Fetch::Data,
    };
    let rights = match request.access {
        Access::Read => rights::READ | rights::USER,
        Access::Write => rights::WRITE | rights::USER,
        Access::Atomic => rights::READ | rights::WRITE | rights::USER,
        Access::ZeroLengthRead => rights::NOBODYS,
    };
    if plain { rights } else { rights::NOBODYS }
}

/// Whether an entry has the rights that are `needed`.
#[inline(always)]
const fn satisfies(entry: u64, needed: u64) -> bool {
    !entry & needed == 0
}

fn actor(binding: &Binding, request: &Request) -> Actor {
    match request.process {
        Some(process) => Actor {
            supervisor: process.privilege == Privilege::Supervisor,
            fetches: process.fetch == Fetch::Code,
        },
        None => Actor {
            supervisor: binding.privileged,
            fetches: false,
        },
    }
}

const fn bit(set: bool, bit: u64) -> u64 {
    if set { bit } else { 0 }
}

/// The bits below bit `bits`.
#[inline(always)]
const fn below(bits: u8) -> u64 {
    1u64.wrapping_shl(bits as u32).wrapping_sub(1)
}

/// How wide the addresses are that a table of so many levels translates.
#[inline(always)]
const fn address_bits(levels: u8) -> u8 {
    levels.wrapping_mul(9).wrapping_add(12)
}

const fn entry_of(target: u64, page_bits: u8) -> u64 {
    target & rights::ADDRESS & !below(page_bits)
}

/// A second-stage leaf alone has no say in privilege.
const fn bits_of(attributes: SecondStageAttributes) -> u64 {
    bit(attributes.reads(), rights::READ)
        | bit(attributes.writes(), rights::WRITE)
        | bit(attributes.snoops(), rights::SNOOP)
        | rights::USER
}
