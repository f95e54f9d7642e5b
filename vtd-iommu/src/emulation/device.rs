// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From a requester to its tables: root, context, PASID directory, PASID table.
//!
//! ```text
//!   legacy     root[bus] -> context[devfn] ------------------------------------> second stage
//!   scalable   root[bus] -> context[devfn] -> directory -> PASID table[PASID] -> either stage, or both
//! ```

use hvkit_page_table::Width;

use super::memory::Memory;
use super::options::Options;
use super::request::Request;
use crate::spec::context::{AddressWidth, ContextEntry, ScalableContextEntry, TranslationType};
use crate::spec::fault::FaultReason;
use crate::spec::pasid::{PasidDirectoryEntry, PasidEntry, TranslationKind};
use crate::spec::registers::{RootTableAddress, TranslationTableMode};
use crate::spec::root::RootEntry;
use crate::spec::{Pasid, RequesterId};

/// Whether an entry on the way said that faults are not to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Processing {
    /// Faults are recorded.
    On,
    /// FPD: qualified faults are not.
    Disabled,
}

impl Processing {
    const fn of(disabled: bool) -> Self {
        if disabled { Self::Disabled } else { Self::On }
    }

    const fn or(self, disabled: bool) -> Self {
        match self {
            Self::Disabled => Self::Disabled,
            Self::On => Self::of(disabled),
        }
    }
}

/// A fault, before it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: FaultReason,
    pub(super) processing: Processing,
}

impl Fault {
    pub(super) const fn new(reason: FaultReason, processing: Processing) -> Self {
        Self { reason, processing }
    }
}

/// Which context mode the tables are of: it decides the names of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Legacy,
    Scalable,
}

/// A second-stage table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SecondRoot {
    pub(super) table: u64,
    pub(super) levels: u8,
    /// SSADE.
    pub(super) marks: bool,
}

/// A first-stage table, and what the PASID entry says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstRoot {
    pub(super) table: u64,
    pub(super) levels: u8,
    pub(super) entry: FirstControls,
}

/// Controls of a PASID entry for its first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstControls {
    /// NXE.
    pub(super) no_execute: bool,
    /// WPE.
    pub(super) write_protect: bool,
    /// SMEP.
    pub(super) smep: bool,
    /// EAFE.
    pub(super) extended_accessed: bool,
}

/// How addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    PassThrough,
    Second(SecondRoot),
    First(FirstRoot),
    Nested(FirstRoot, SecondRoot),
}

/// What a requester, with or without PASID, is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Binding {
    pub(super) source: RequesterId,
    pub(super) mode: Mode,
    pub(super) domain: u16,
    /// The PASID that counts: the request's, or RID_PASID. 0 in legacy mode.
    pub(super) pasid: Pasid,
    pub(super) stage: Stage,
    pub(super) processing: Processing,
    /// TT 01 or DTE: translation requests and translated requests are let through.
    pub(super) device_tlb: bool,
    /// PRE.
    pub(super) page_requests: bool,
    /// SRE.
    pub(super) supervisor: bool,
    /// ERE.
    pub(super) execute: bool,
    /// RID_PRIV, of requests without PASID.
    pub(super) privileged: bool,
    /// Page-snoop: PGSNP.
    pub(super) snoops: bool,
}

/// Who asks for the tables of a requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// Untranslated requests, page requests.
    Anyone,
    /// Translation requests and translated requests, which TT or DTE must let through.
    DeviceTlb,
}

impl Binding {
    /// Refuses `asker` what TT or DTE does not let through.
    pub(super) fn admit(self, asker: Asker) -> Result<Self, Fault> {
        if asker == Asker::Anyone || self.device_tlb {
            return Ok(self);
        }
        let reason = match self.mode {
            Mode::Legacy => FaultReason::BLOCKED,
            Mode::Scalable => FaultReason::SM_DEVICE_TLB_DISABLED,
        };
        Err(Fault::new(reason, self.processing))
    }
}

/// Reads the tables of a requester.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lookup<'a, M> {
    pub(super) options: &'a Options,
    pub(super) memory: &'a M,
    pub(super) root: RootTableAddress,
    pub(super) mode: TranslationTableMode,
}

impl<M: Memory> Lookup<'_, M> {
    /// What `source`, with `pasid` or without, is bound to.
    pub(super) fn find(
        &self,
        source: RequesterId,
        pasid: Option<Pasid>,
        asker: Asker,
    ) -> Result<Binding, Fault> {
        match self.mode {
            TranslationTableMode::Legacy if pasid.is_some() => Err(Fault::new(
                FaultReason::SM_MODE_REQUEST_WITH_PASID,
                Processing::On,
            )),
            TranslationTableMode::Legacy => self.legacy(source)?.admit(asker),
            TranslationTableMode::Scalable => self.scalable(source, pasid, asker),
            TranslationTableMode::Reserved | TranslationTableMode::AbortDma => Err(Fault::new(
                FaultReason::SM_ROOT_TABLE_INVALID,
                Processing::On,
            )),
        }
    }

    fn words<const N: usize>(&self, at: u64, fault: Fault) -> Result<[u64; N], Fault> {
        let mut words = [0; N];
        for (i, word) in words.iter_mut().enumerate() {
            *word = self
                .memory
                .read(at.wrapping_add((i as u64).wrapping_mul(8)), Width::Eight)
                .map_err(|_| fault)?;
        }
        Ok(words)
    }

    fn legacy(&self, source: RequesterId) -> Result<Binding, Fault> {
        let bits = self.options.host_bits;
        let plain = |reason| Fault::new(reason, Processing::On);
        let at = RootEntry::address(self.root.table(), source);
        let root = RootEntry(self.words(at, plain(FaultReason::ROOT_ACCESS))?);
        if !root.present() {
            return Err(plain(FaultReason::ROOT_NOT_PRESENT));
        }
        if root.reserved(bits) != [0; 2] {
            return Err(plain(FaultReason::ROOT_RESERVED));
        }
        let at = ContextEntry::address(root.context_table(), source);
        let context = ContextEntry(self.words(at, plain(FaultReason::CONTEXT_ACCESS))?);
        let processing = Processing::of(context.fault_processing_disabled());
        let fault = |reason| Fault::new(reason, processing);
        if !context.present() {
            return Err(fault(FaultReason::CONTEXT_NOT_PRESENT));
        }
        if context.reserved(bits) != [0; 2] {
            return Err(fault(FaultReason::CONTEXT_RESERVED));
        }
        let invalid = fault(FaultReason::CONTEXT_INVALID);
        let levels = self.levels(context.address_width()).ok_or(invalid)?;
        let kind = context.translation_type();
        let extended = self.options.extended;
        let second = Stage::Second(SecondRoot {
            table: context.table(),
            levels,
            marks: false,
        });
        let stage = match kind {
            TranslationType::Untranslated => second,
            TranslationType::DeviceTlb if extended.device_tlb() => second,
            TranslationType::PassThrough if extended.pass_through() => Stage::PassThrough,
            _ => return Err(invalid),
        };
        Ok(Binding {
            source,
            mode: Mode::Legacy,
            domain: context.domain() as u16,
            pasid: Pasid::ZERO,
            stage,
            processing,
            device_tlb: kind == TranslationType::DeviceTlb,
            page_requests: false,
            supervisor: false,
            execute: false,
            privileged: false,
            snoops: false,
        })
    }

    /// The levels of a second-stage table of `width`, if the unit supports it.
    fn levels(&self, width: AddressWidth) -> Option<u8> {
        width
            .levels()
            .filter(|levels| self.options.capability.second_stage_levels(*levels))
    }

    fn scalable(
        &self,
        source: RequesterId,
        pasid: Option<Pasid>,
        asker: Asker,
    ) -> Result<Binding, Fault> {
        let bits = self.options.host_bits;
        let plain = |reason| Fault::new(reason, Processing::On);
        let at = RootEntry::address(self.root.table(), source);
        let root = RootEntry(self.words(at, plain(FaultReason::SM_ROOT_ACCESS))?).half(source);
        if !root.present() {
            return Err(plain(FaultReason::SM_ROOT_NOT_PRESENT));
        }
        if root.reserved(bits) != 0 {
            return Err(plain(FaultReason::SM_ROOT_RESERVED));
        }
        let at = ScalableContextEntry::address(root.context_table(), source);
        let context = ScalableContextEntry(self.words(at, plain(FaultReason::SM_CONTEXT_ACCESS))?);
        let processing = Processing::of(context.fault_processing_disabled());
        let fault = |reason| Fault::new(reason, processing);
        if !context.present() {
            return Err(fault(FaultReason::SM_CONTEXT_NOT_PRESENT));
        }
        if context.reserved(bits) != [0; 4] {
            return Err(fault(FaultReason::SM_CONTEXT_RESERVED));
        }
        let extended = self.options.extended;
        let unsupported = context.device_tlb() && !extended.device_tlb()
            || context.pasid_enabled() && !extended.pasid()
            || context.page_requests() && !extended.page_requests()
            || context.request_privileged() && !extended.rid_priv()
            || context.request_pasid() != 0 && !extended.rid_pasid();
        if unsupported {
            return Err(fault(FaultReason::SM_CONTEXT_INVALID));
        }
        if asker == Asker::DeviceTlb && !context.device_tlb() {
            return Err(fault(FaultReason::SM_DEVICE_TLB_DISABLED));
        }
        let counts = match pasid {
            Some(_) if !context.pasid_enabled() => {
                return Err(fault(FaultReason::SM_PASID_DISABLED));
            }
            Some(pasid) if pasid.get() >= context.pasids() => {
                return Err(fault(FaultReason::SM_PASID_TOO_LARGE));
            }
            Some(pasid) => pasid,
            None if context.request_pasid() as u32 >= context.pasids() => {
                return Err(fault(FaultReason::SM_RID_PASID));
            }
            None => Pasid::from_field(context.request_pasid() as u32),
        };
        let (entry, processing) = self.pasid_entry(context, counts, processing)?;
        Ok(Binding {
            source,
            mode: Mode::Scalable,
            domain: entry.domain() as u16,
            pasid: counts,
            stage: self.stage(entry, processing)?,
            processing,
            device_tlb: context.device_tlb(),
            page_requests: context.page_requests(),
            supervisor: entry.supervisor_requests(),
            execute: entry.execute_requests(),
            privileged: context.request_privileged(),
            snoops: entry.page_snoop(),
        })
    }

    fn pasid_entry(
        &self,
        context: ScalableContextEntry,
        pasid: Pasid,
        processing: Processing,
    ) -> Result<(PasidEntry, Processing), Fault> {
        let bits = self.options.host_bits;
        let fault = |reason| Fault::new(reason, processing);
        let at = PasidDirectoryEntry::address(context.directory(), pasid);
        let [word] = self.words(at, fault(FaultReason::SM_PASID_DIRECTORY_ACCESS))?;
        let directory = PasidDirectoryEntry(word);
        let processing = processing.or(directory.fault_processing_disabled());
        let fault = |reason| Fault::new(reason, processing);
        if !directory.present() {
            return Err(fault(FaultReason::SM_PASID_DIRECTORY_NOT_PRESENT));
        }
        if directory.reserved(bits) != 0 {
            return Err(fault(FaultReason::SM_PASID_DIRECTORY_RESERVED));
        }
        let at = PasidEntry::address(directory.table(), pasid);
        let entry = PasidEntry(self.words(at, fault(FaultReason::SM_PASID_TABLE_ACCESS))?);
        let processing = processing.or(entry.fault_processing_disabled());
        let fault = |reason| Fault::new(reason, processing);
        if !entry.present() {
            return Err(fault(FaultReason::SM_PASID_NOT_PRESENT));
        }
        if entry.reserved(bits) != [0; 8] {
            return Err(fault(FaultReason::SM_PASID_RESERVED));
        }
        Ok((entry, processing))
    }

    /// How a PASID entry has addresses translated.
    fn stage(&self, entry: PasidEntry, processing: Processing) -> Result<Stage, Fault> {
        let invalid = Fault::new(FaultReason::SM_PASID_INVALID, processing);
        let (capability, extended) = (self.options.capability, self.options.extended);
        let supported = |supported: bool| if supported { Ok(()) } else { Err(invalid) };
        let second = || -> Result<SecondRoot, Fault> {
            let marks = entry.second_stage_marks();
            supported(!marks || extended.second_stage_accessed_dirty())?;
            Ok(SecondRoot {
                table: entry.second_stage_table(),
                levels: self.levels(entry.address_width()).ok_or(invalid)?,
                marks,
            })
        };
        let first = || -> Result<FirstRoot, Fault> {
            let levels = entry.first_stage_levels().ok_or(invalid)?;
            supported(levels == 4 || capability.first_stage_5_levels())?;
            supported(!entry.extended_accessed() || extended.extended_accessed())?;
            supported(!entry.supervisor_requests() || extended.supervisor_requests())?;
            supported(!entry.execute_requests() || extended.execute_requests())?;
            Ok(FirstRoot {
                table: entry.first_stage_table(),
                levels,
                entry: FirstControls {
                    no_execute: entry.no_execute(),
                    write_protect: entry.write_protect(),
                    smep: entry.smep(),
                    extended_accessed: entry.extended_accessed(),
                },
            })
        };
        supported(!entry.page_snoop() || extended.snoop_control())?;
        Ok(match entry.kind() {
            TranslationKind::FirstStage if extended.first_stage() => Stage::First(first()?),
            TranslationKind::SecondStage if extended.second_stage() => Stage::Second(second()?),
            TranslationKind::Nested if extended.nested() => Stage::Nested(first()?, second()?),
            TranslationKind::PassThrough if extended.pass_through() => Stage::PassThrough,
            _ => return Err(invalid),
        })
    }
}

/// Privilege and code fetches that the binding does not let through.
pub(super) fn refuses(binding: &Binding, request: &Request) -> Option<FaultReason> {
    use super::request::{Fetch, Privilege};
    let process = request.process?;
    match &binding.stage {
        Stage::First(_) | Stage::Nested(..) => {}
        Stage::PassThrough | Stage::Second(_) => return None,
    }
    if process.fetch == Fetch::Code && !binding.execute {
        return Some(FaultReason::SM_EXECUTE_DISABLED);
    }
    if process.privilege == Privilege::Supervisor && !binding.supervisor {
        return Some(FaultReason::SM_SUPERVISOR_DISABLED);
    }
    None
}
