// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices with TLBs of their own: translation requests, translated requests, page requests. "Address Translation
//! Services", "Page Request Services".

use hvkit_page_table::Width;

use super::device::{Asker, Fault, Mode, Processing};
use super::faults::Event;
use super::host::Host;
use super::memory::Memory;
use super::request::{Access, Fate, Refused, Request, Translated};
use super::unit::Unit;
use crate::spec::fault::{FaultReason, FaultRecord, RequestKind};
use crate::spec::interrupt::Message;
use crate::spec::page_request::{PAGE_REQUEST_BYTES, PageRequest, ResponseCode};
use crate::spec::registers::{
    GSTS, PQA, PQH, PQT, PRS, PageQueueTail, PageRequestStatus, TranslationTableMode,
};

/// Address type of a translation request, in a fault record.
const TRANSLATION_REQUEST: u8 = 1;
/// Address type of a translated request.
const TRANSLATED: u8 = 2;

/// Whether a device wants to write through the translation that it asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// NW: it will read only. A unit without ECAP.NWFS takes it for the other.
    Reads,
    /// It may write, too: dirty flags are set now.
    ReadsAndWrites,
}

/// What became of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queued {
    /// It is in the queue.
    Waiting,
    /// The queue was full, or overflowed already (PRS.PRO). The last of a group was answered with success, so that the
    /// device tries again.
    Discarded,
}

impl Unit {
    /// Translates for a device's TLB: a *translation request*. What is not mapped, or not allowed, is no fault: the
    /// translation has neither right then.
    ///
    /// # Errors
    ///
    /// The device may not ask, or its tables are wrong.
    pub fn translate_for_device(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        request: &Request,
        wanted: Wanted,
    ) -> Result<Translated, Refused> {
        self.answers_device_tlbs()?;
        let refuse = |unit: &mut Self, host: &mut _, fault| {
            Err(unit.refuse(host, request, TRANSLATION_REQUEST, fault))
        };
        let nothing = Translated {
            address: 0,
            page_bits: 12,
            reads: false,
            writes: false,
            snoops: false,
        };
        let known = match self.bind_as(memory, request, Asker::DeviceTlb) {
            Ok(known) => known,
            Err(fault) if is_absence(fault.reason) => return Ok(nothing),
            Err(fault) => return refuse(self, host, fault),
        };
        // NW is ignored where the unit does not report it.
        let wanted = match wanted {
            Wanted::Reads if self.options.extended.no_write_flag() => Wanted::Reads,
            _ => Wanted::ReadsAndWrites,
        };
        let mut found = nothing;
        let accesses = match wanted {
            Wanted::Reads => &[Access::Read][..],
            Wanted::ReadsAndWrites => &[Access::Write, Access::Read],
        };
        for access in accesses {
            let request = Request {
                access: *access,
                ..*request
            };
            match self.through(memory, known, &request) {
                Ok(to) => {
                    let writes = found.writes || *access == Access::Write;
                    let reads = found.reads || *access == Access::Read;
                    found = Translated {
                        reads,
                        writes,
                        ..to
                    };
                }
                Err(fault) if is_absence(fault.reason) => {}
                Err(fault) => return refuse(self, host, fault),
            }
        }
        Ok(found)
    }

    /// Lets a *translated request* through: the device has the address from its TLB.
    ///
    /// # Errors
    ///
    /// The device may not send such, or the address is not one of the machine's.
    pub fn admit_translated(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        request: &Request,
    ) -> Result<Translated, Refused> {
        self.answers_device_tlbs()?;
        // The unit has no PASIDs in translated requests: unsupported requests, whatever the tables say.
        if request.process.is_some() {
            return Err(Refused {
                reason: FaultReason::SM_TRANSLATED_WITH_PASID,
                fate: Fate::Silent,
            });
        }
        let admitted = self
            .bind_as(memory, request, Asker::DeviceTlb)
            .and_then(|known| {
                let (beyond, interrupts) = match known.binding.mode {
                    Mode::Legacy => (
                        FaultReason::ADDRESS_BEYOND_WIDTH,
                        FaultReason::INTERRUPT_RANGE,
                    ),
                    Mode::Scalable => (
                        FaultReason::SM_ADDRESS_BEYOND_WIDTH,
                        FaultReason::SM_INTERRUPT_RANGE,
                    ),
                };
                let fault = |reason| Err(Fault::new(reason, known.binding.processing));
                if request.address >> self.options.host_bits != 0 {
                    return fault(beyond);
                }
                if Message::is_interrupt(request.address) {
                    return fault(interrupts);
                }
                // Of this page: on others there may be interrupts.
                Ok(Translated {
                    page_bits: 12,
                    ..Translated::identity(request.address)
                })
            });
        admitted.map_err(|fault| self.refuse(host, request, TRANSLATED, fault))
    }

    /// With translation off, requests of other address types than untranslated ones are unsupported requests ("Handling
    /// of ATS Protocol Errors"), as all are in abort-DMA mode. Nothing is recorded.
    fn answers_device_tlbs(&self) -> Result<(), Refused> {
        let reason = if !self.file.get(GSTS).translation() {
            FaultReason::BLOCKED
        } else if self.mode() == TranslationTableMode::AbortDma {
            FaultReason::SM_ROOT_TABLE_INVALID
        } else {
            return Ok(());
        };
        Err(Refused {
            reason,
            fate: Fate::Silent,
        })
    }

    /// Queues a device's request for a page.
    ///
    /// # Errors
    ///
    /// The device may not ask.
    pub fn page_request(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        asked: PageRequest,
    ) -> Result<Queued, Refused> {
        let process = asked.pasid.map(super::request::Process::user);
        let request = Request {
            source: asked.source,
            process,
            address: asked.address,
            access: Access::Read,
        };
        let legacy = self.mode() != TranslationTableMode::Scalable
            || !self.file.get(GSTS).translation()
            || !self.options.extended.page_requests();
        let allowed = if legacy {
            let reason = FaultReason::SM_MODE_PAGE_REQUEST;
            Err(Fault::new(reason, Processing::On))
        } else {
            self.bind(memory, &request).and_then(|known| {
                let reason = FaultReason::SM_PAGE_REQUESTS_DISABLED;
                let disabled = Fault::new(reason, known.binding.processing);
                known.binding.page_requests.then_some(()).ok_or(disabled)
            })
        };
        if let Err(fault) = allowed {
            let record = FaultRecord(0)
                .with_source(asked.source)
                .with_reason(fault.reason)
                .with_kind(RequestKind::Page)
                .with_information(asked.address & !0xfff)
                .with_pasid(asked.pasid);
            return Err(self.log(host, record, fault));
        }
        Ok(self.queue_page_request(memory, host, asked))
    }

    fn queue_page_request(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        asked: PageRequest,
    ) -> Queued {
        let status = self.file.get(PRS);
        let queue = self.file.get(PQA);
        let size = u64::from(queue.bytes());
        // A power of two.
        let within = size.wrapping_sub(1);
        let tail = self.file.get(PQT).offset() & within;
        let next = tail.wrapping_add(PAGE_REQUEST_BYTES.into()) & within;
        let full = next == self.file.get(PQH).offset() & within;
        let mut at = queue.queue().wrapping_add(tail);
        let mut store = |word| {
            let stored = memory.write(at, Width::Eight, word).is_ok();
            at = at.wrapping_add(8);
            stored
        };
        let stored = !status.overflow() && !full && asked.encode().into_iter().all(&mut store);
        let became = if stored {
            self.file.set(PQT, PageQueueTail(0).with_offset(next));
            status.with_pending(true)
        } else {
            status.with_overflow(true)
        };
        self.file.set(PRS, became);
        if status == PageRequestStatus(0) {
            Event::PAGE_REQUEST.raise(&mut self.file, host);
        }
        if stored {
            return Queued::Waiting;
        }
        if asked.last {
            host.respond(asked.response(ResponseCode::SUCCESS));
        }
        Queued::Discarded
    }
}

/// Whether a translation request is answered, with neither right, where any other request would be refused for this
/// reason: "Fault Conditions and Remapping Hardware Behavior for Various Requests", *Success with R=W=U=S=0* or *with
/// effective permission*.
const fn is_absence(reason: FaultReason) -> bool {
    matches!(
        reason,
        FaultReason::ADDRESS_BEYOND_WIDTH
            | FaultReason::NO_READ
            | FaultReason::NO_WRITE
            | FaultReason::SM_PASID_DIRECTORY_NOT_PRESENT
            | FaultReason::SM_PASID_NOT_PRESENT
            | FaultReason::SM_EXECUTE_DISABLED
            | FaultReason::SM_SUPERVISOR_DISABLED
            | FaultReason::SM_FIRST_STAGE_ACCESS
            | FaultReason::SM_FIRST_STAGE_NOT_PRESENT
            | FaultReason::SM_FIRST_STAGE_RESERVED
            | FaultReason::SM_FIRST_STAGE_TOP_ACCESS
            | FaultReason::SM_FIRST_STAGE_BEYOND_WIDTH
            | FaultReason::SM_FIRST_STAGE_TOP_NO_READ
            | FaultReason::SM_FIRST_STAGE_NO_READ
            | FaultReason::SM_FIRST_STAGE_NO_WRITE
            | FaultReason::SM_FIRST_STAGE_NO_SNOOP_UPDATE
            | FaultReason::SM_SECOND_STAGE_NO_PERMISSION
            | FaultReason::SM_NOT_CANONICAL
            | FaultReason::SM_NO_USER
            | FaultReason::SM_NO_EXECUTE
            | FaultReason::SM_ADDRESS_BEYOND_WIDTH
            | FaultReason::SM_OUTPUT_BEYOND_WIDTH
            | FaultReason::SM_NO_WRITE
            | FaultReason::SM_NO_READ
    )
}
