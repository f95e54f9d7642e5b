// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The invalidation queue. "Queued Invalidation Interface".

use hvkit_page_table::Width;

use super::faults::Event;
use super::host::Host;
use super::memory::Memory;
use super::unit::Unit;
use crate::spec::invalidation::{
    Descriptor, IotlbScope, Pages, PasidIotlbScope, RawDescriptor, Wait, kind,
};
use crate::spec::registers::{
    FSTS, FaultStatus, GSTS, ICS, IQA, IQERCD, IQH, IQT, QueueAddress, QueueError, QueueHead,
    TranslationTableMode,
};

/// Words that are read ahead: a guest's queue costs one look-up in memory for so many.
const AHEAD: usize = 64;

impl Unit {
    /// Whether descriptors wait that nothing keeps from being processed: what [`write_some`](Self::write_some) left.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        let status: FaultStatus = self.file.get(FSTS);
        self.file.get(GSTS).queued_invalidation()
            && !status.queue_error()
            && !status.time_out_error()
            && self.file.get(IQH).offset() != self.file.get(IQT).offset()
    }

    /// Goes on with the queue, up to the next descriptor that may take long.
    pub fn go_on(&mut self, memory: &impl Memory, host: &mut impl Host) {
        self.doorbell(memory, host);
    }

    /// How many descriptors the queue holds: as often can [`go_on`](Self::go_on) find something to do, unless software adds more.
    #[must_use]
    pub fn queue_entries(&self) -> u32 {
        let address: QueueAddress = self.file.get(IQA);
        let bytes = address.bytes();
        bytes.checked_div(address.descriptor_bytes()).unwrap_or(0)
    }

    /// Software moved the tail, turned the queue on, or cleared its error: processes what is there, at most one
    /// round of the queue, and no further than the next descriptor for which tables are read or others are asked.
    pub(super) fn doorbell(&mut self, memory: &impl Memory, host: &mut impl Host) {
        let status: FaultStatus = self.file.get(FSTS);
        if !self.file.get(GSTS).queued_invalidation()
            || status.queue_error()
            || status.time_out_error()
        {
            return;
        }
        let address: QueueAddress = self.file.get(IQA);
        let tail = self.file.get(IQT).offset();
        let size = u64::from(address.bytes());
        let step = u64::from(address.descriptor_bytes());
        if self.file.get(IQH).offset() != tail
            && let Some(error) = self.no_descriptors(address)
        {
            return self.queue_error(error, host);
        }
        if !tail.is_multiple_of(step) {
            return self.queue_error(QueueError::TAIL_ALIGNMENT, host);
        }
        if tail >= size {
            return self.queue_error(QueueError::INVALID_TAIL, host);
        }
        let mut head = self.file.get(IQH).offset();
        // A head from a queue of other descriptors may lie anywhere.
        if head >= size || !head.is_multiple_of(step) {
            head = 0;
        }
        let mut words = [0; AHEAD];
        let mut left = size.checked_div(step).unwrap_or(0);
        let mut silent = None;
        while head != tail && left != 0 {
            let end = if tail > head { tail } else { size };
            let count = (end.saturating_sub(head) / 8).min(AHEAD as u64) as usize;
            let (ahead, _) = words.split_at_mut(count);
            let at = address.queue().wrapping_add(head);
            if memory.read_words(at, ahead).is_err() {
                // One of them is not in memory: those before it are.
                let one = (step / 8) as usize;
                let (first, _) = words.split_at_mut(one);
                if memory.read_words(at, first).is_err() {
                    return self.stopped(Stop::Error(QueueError::FETCH), head, silent, host);
                }
                let done = self.descriptors(memory, host, first, address, &mut head, &mut silent);
                if let Err(stop) = done {
                    return self.stopped(stop, if head == size { 0 } else { head }, silent, host);
                }
                left = left.saturating_sub(1);
            } else {
                let bytes = (count as u64).saturating_mul(8);
                left = left.saturating_sub(bytes.checked_div(step).unwrap_or(0));
                let (ahead, _) = words.split_at_mut(count);
                let done = self.descriptors(memory, host, ahead, address, &mut head, &mut silent);
                if let Err(stop) = done {
                    return self.stopped(stop, if head == size { 0 } else { head }, silent, host);
                }
            }
            if head == size {
                head = 0;
            }
        }
        if silent.is_some() {
            return self.stopped(Stop::TimeOut, head, silent, host);
        }
        self.file.set(IQH, QueueHead(0).with_offset(head));
    }

    /// Why no descriptor of the queue's width is valid, if none is: "List of Valid Descriptor Types for Each Mode".
    fn no_descriptors(&self, address: QueueAddress) -> Option<QueueError> {
        let extended = self.options.extended;
        match self.mode() {
            TranslationTableMode::Reserved => Some(QueueError::INVALID_MODE),
            TranslationTableMode::Scalable | TranslationTableMode::AbortDma if !address.wide() => {
                Some(QueueError::INVALID_WIDTH)
            }
            _ if address.wide() && !extended.scalable_mode() && !extended.abort_dma_mode() => {
                Some(QueueError::INVALID_WIDTH)
            }
            _ => None,
        }
    }

    /// Carries out the descriptors in `words`, and moves `head` past each that is done. `silent` is the device that did
    /// not answer an invalidation, if one did not: the wait behind it stops the queue.
    fn descriptors(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        words: &[u64],
        address: QueueAddress,
        head: &mut u64,
        silent: &mut Option<u16>,
    ) -> Result<(), Stop> {
        if address.wide() {
            for words in words.as_chunks().0 {
                let raw = RawDescriptor::from_wide(*words);
                self.fetched(memory, host, raw, (head, 32), silent)?;
            }
        } else {
            // What drivers send most is told apart first.
            let most = self.options.capability.max_address_mask();
            let unwatched = self.watches.none();
            for words in words.as_chunks().0 {
                match plain_pages(*words) {
                    Some((domain, pages)) if unwatched && pages.order <= most => {
                        self.caches.forget_domain_pages(domain, pages);
                        *head = head.wrapping_add(16);
                    }
                    _ => {
                        let raw = RawDescriptor::from_narrow(*words);
                        self.fetched(memory, host, raw, (head, 16), silent)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Carries out a descriptor of so many bytes, and moves the head past it.
    ///
    /// "Invalidation Time-out Error": waits that are pending behind a device that does not answer are aborted, and
    /// nothing is fetched until software has cleared ITE. A unit hears of the silence while it waits, so the first
    /// wait behind such an invalidation is the one that is fetched, aborted and passed. Neither is done again:
    /// software asks again.
    fn fetched(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        raw: RawDescriptor,
        (head, bytes): (&mut u64, u64),
        silent: &mut Option<u16>,
    ) -> Result<(), Stop> {
        if silent.is_some() && raw.kind() == kind::WAIT {
            *head = head.wrapping_add(bytes);
            return Err(Stop::TimeOut);
        }
        if let Some(source) = self.descriptor(memory, host, raw)? {
            silent.get_or_insert(source);
        }
        *head = head.wrapping_add(bytes);
        // A silent device is remembered up to the wait behind it, and not across slices.
        if raw.kind() == kind::WAIT || silent.is_some() {
            Ok(())
        } else {
            Err(Stop::Slice)
        }
    }

    /// Carries out a descriptor. The device that did not answer, if it was told and did not.
    fn descriptor(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        raw: RawDescriptor,
    ) -> Result<Option<u16>, Stop> {
        let (capability, extended) = (self.options.capability, self.options.extended);
        // In legacy mode there are the types 1 to 5 only.
        let more = self.mode() != TranslationTableMode::Legacy;
        let known = match raw.kind() {
            kind::CONTEXT | kind::IOTLB | kind::WAIT => true,
            kind::DEVICE_TLB => extended.device_tlb(),
            kind::INTERRUPT => extended.interrupt_remapping(),
            kind::PASID_IOTLB | kind::PASID_CACHE => more && extended.scalable_mode(),
            kind::PASID_DEVICE_TLB => more && extended.device_tlb() && extended.pasid(),
            kind::PAGE_GROUP_RESPONSE => more && extended.page_requests(),
            _ => false,
        };
        if !known {
            return Err(Stop::Error(QueueError::INVALID_TYPE));
        }
        let reserved = Stop::Error(QueueError::RESERVED_FIELD);
        let within = |order: u8, most: u8| if order <= most { Ok(()) } else { Err(reserved) };
        let descriptor =
            Descriptor::decode(raw).map_err(|error| Stop::Error(error.queue_error()))?;
        match descriptor {
            Descriptor::Context(scope) => self.forget_contexts(memory, host, scope),
            Descriptor::Iotlb { scope, .. } => {
                if let IotlbScope::Pages { pages, .. } = scope {
                    within(pages.order, capability.max_address_mask())?;
                }
                self.forget_translations(memory, host, scope);
            }
            Descriptor::PasidIotlb {
                domain,
                pasid,
                scope,
            } => {
                if let PasidIotlbScope::Pages(pages) = scope {
                    within(pages.order, capability.max_address_mask())?;
                }
                self.caches.forget_pasid_translations(domain, pasid, scope);
                self.follow_pasid(memory, host, domain, pasid, scope);
            }
            Descriptor::PasidCache(scope) => {
                self.caches.forget_pasids(scope);
                self.follow_everything(memory, host);
            }
            Descriptor::Interrupt(scope) => {
                if let crate::spec::invalidation::InterruptScope::Index { order, .. } = scope {
                    within(order, extended.max_handle_mask())?;
                }
                self.interrupts.forget(scope);
                self.tell_interrupts(memory, host);
            }
            Descriptor::DeviceTlb { device, range } => {
                let told = host.invalidate_device(device, None, range);
                return Ok(told.err().map(|_| device.source.0));
            }
            Descriptor::PasidDeviceTlb {
                device,
                pasid,
                range,
            } => {
                let told = host.invalidate_device(device, pasid, range);
                return Ok(told.err().map(|_| device.source.0));
            }
            Descriptor::PageGroupResponse(response) => host.respond(response),
            Descriptor::Wait(wait) => {
                if wait.page_drain && !extended.page_request_drain() {
                    return Err(reserved);
                }
                self.wait(memory, host, wait);
            }
        }
        Ok(None)
    }

    /// All that came before is done already: only the sign of it is left.
    fn wait(&mut self, memory: &impl Memory, host: &mut impl Host, wait: Wait) {
        if let Some(status) = wait.status {
            // A status that cannot be written is lost, like any posted write to nowhere.
            let _ = memory.write(status.address, Width::Four, status.data.into());
        }
        if wait.interrupt {
            let before = self.file.get(ICS);
            self.file.set(ICS, before.with_wait_complete(true));
            if !before.wait_complete() {
                Event::INVALIDATION.raise(&mut self.file, host);
            }
        }
    }

    /// The queue stops at `head`, or behind a wait that was aborted.
    fn stopped(&mut self, stop: Stop, head: u64, silent: Option<u16>, host: &mut impl Host) {
        self.file.set(IQH, QueueHead(0).with_offset(head));
        if let Some(source) = silent {
            let before = self.file.get(FSTS);
            self.file.set(FSTS, before.with_time_out_error(true));
            let record = self.file.get(IQERCD).with_time_out_source(source);
            self.file.set(IQERCD, record);
            self.faults.event(before, &mut self.file, host);
        }
        if let Stop::Error(error) = stop {
            self.queue_error(error, host);
        }
    }

    fn queue_error(&mut self, error: QueueError, host: &mut impl Host) {
        let before = self.file.get(FSTS);
        self.file.set(FSTS, before.with_queue_error(true));
        let record = self.file.get(IQERCD).with_iqei(error.0);
        self.file.set(IQERCD, record);
        self.faults.event(before, &mut self.file, host);
    }
}

/// The domain and the pages of a page-selective IOTLB invalidation in which no reserved bit is set.
#[inline(always)]
fn plain_pages([low, high]: [u64; 2]) -> Option<(u16, Pages)> {
    let plain = low & 0xffff_ffff_0000_ff3f == 0x32 && high & 0xf80 == 0;
    let pages = Pages {
        address: high & !0xfff,
        order: (high & 0x3f) as u8,
        leaves_only: high & 0x40 != 0,
    };
    plain.then_some(((low >> 16) as u16, pages))
}

/// Why the queue stops at a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Error(QueueError),
    /// A device did not answer.
    TimeOut,
    /// It does not: others may use the unit, and then it goes on.
    Slice,
}
