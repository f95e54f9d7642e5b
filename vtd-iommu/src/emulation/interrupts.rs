// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Interrupt remapping and posting. "Interrupt Remapping", "Interrupt Posting".

use alloc::vec;
use alloc::vec::Vec;

use hvkit_page_table::Width;

use super::device::{Fault, Processing};
use super::host::Host;
use super::memory::Memory;
use super::request::Refused;
use super::unit::Unit;
use crate::spec::RequesterId;
use crate::spec::fault::{FaultReason, FaultRecord};
use crate::spec::interrupt::{Delivery, Irte, Message, PostedDescriptor};
use crate::spec::invalidation::InterruptScope;
use crate::spec::registers::GSTS;

use super::options::Caching;

/// Entries that are kept at a time.
const KEPT: usize = 256;
/// How often a posted-interrupt descriptor that changes under the unit is tried again.
const PATIENCE: u32 = 64;

/// An interrupt for a local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interrupt {
    /// The vector.
    pub vector: u8,
    /// How it is delivered.
    pub delivery: Delivery,
    /// The destination: an x2APIC id (or logical id) in extended interrupt mode, else an xAPIC one in bits 7:0.
    pub destination: u32,
    /// Whether the destination is logical.
    pub logical: bool,
    /// The redirection hint.
    pub redirection_hint: bool,
    /// Whether it is level-triggered.
    pub level_triggered: bool,
}

impl From<Interrupt> for Message {
    /// The write that has a local APIC take the interrupt: in the compatibility format, with destination bits
    /// 31:8 in address bits 63:40.
    fn from(interrupt: Interrupt) -> Self {
        let Interrupt {
            vector,
            delivery,
            destination,
            logical,
            redirection_hint,
            level_triggered,
        } = interrupt;
        let Self { address, data } = Self::compatible(destination as u8, vector);
        let hints = u64::from(redirection_hint) << 3 | u64::from(logical) << 2;
        // Level-triggered messages assert.
        let level = if level_triggered { 3 << 14 } else { 0 };
        Self {
            address: u64::from(destination >> 8) << 40 | address | hints,
            data: data | u32::from(delivery.0) << 8 | level,
        }
    }
}

/// What becomes of an interrupt request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivered {
    /// It goes on as it came: remapping is off, or lets the compatibility format through.
    Unchanged(Message),
    /// It goes on as the table says.
    Remapped(Interrupt),
    /// It was posted. If nobody is on the way to look yet, a notification goes out.
    Posted {
        /// The notification.
        notification: Option<Interrupt>,
    },
}

/// What a message asks for.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// To go on as it is.
    Nothing(Message),
    /// An entry, which admits it.
    Entry {
        /// Where it is in the table.
        index: u16,
        /// The entry.
        entry: Irte,
    },
}

/// Interrupt-remapping entries that are kept.
#[derive(Clone, Debug)]
pub(super) struct InterruptCache {
    entries: Vec<Option<(u16, Irte)>>,
}

impl InterruptCache {
    pub(super) fn new() -> Self {
        Self {
            entries: vec![None; KEPT],
        }
    }

    fn get(&self, index: u16) -> Option<Irte> {
        match self.entries.get(usize::from(index) % KEPT) {
            Some(Some((at, entry))) if *at == index => Some(*entry),
            _ => None,
        }
    }

    fn keep(&mut self, index: u16, entry: Irte) {
        if let Some(place) = self.entries.get_mut(usize::from(index) % KEPT) {
            *place = Some((index, entry));
        }
    }

    pub(super) fn forget(&mut self, scope: InterruptScope) {
        match scope {
            InterruptScope::Index { index, order } if order < 8 => {
                let first = index >> order << order;
                let others = 1u16.wrapping_shl(order.into()).wrapping_sub(1);
                for index in first..=first | others {
                    if let Some(place) = self.entries.get_mut(usize::from(index) % KEPT)
                        && place.is_some_and(|(at, _)| at == index)
                    {
                        *place = None;
                    }
                }
            }
            _ => self.entries.fill(None),
        }
    }
}

impl Unit {
    /// What becomes of an interrupt that `source` requests by writing `message`.
    ///
    /// # Errors
    ///
    /// It is refused, and the fault recorded unless FPD says otherwise.
    pub fn remap(
        &mut self,
        memory: &impl Memory,
        host: &mut impl Host,
        source: RequesterId,
        message: Message,
    ) -> Result<Delivered, Refused> {
        let found = self.ask(memory, source, message).and_then(|found| {
            if let Asked::Entry { index, entry } = found {
                if self.options.caching == Caching::UntilInvalidated {
                    self.interrupts.keep(index, entry);
                }
                if entry.posted() {
                    let posted = self.post(memory, entry);
                    return posted
                        .map(|notification| Delivered::Posted { notification })
                        .map_err(|fault| (index, fault));
                }
            }
            Ok(self.delivered(found))
        });
        found.map_err(|(index, fault)| self.refuse_interrupt(host, source, index, fault))
    }

    /// What [`remap`](Self::remap) would make of it now, with nothing recorded, posted or kept. For a VMM whose
    /// interrupts go past the unit until [`Host::interrupts_changed`] says that they may lead elsewhere.
    ///
    /// # Errors
    ///
    /// It would be refused, for this reason.
    pub fn remapped(
        &self,
        memory: &impl Memory,
        source: RequesterId,
        message: Message,
    ) -> Result<Delivered, FaultReason> {
        self.ask(memory, source, message)
            .map(|found| self.delivered(found))
            .map_err(|(_, fault)| fault.reason)
    }

    /// Tells `host` that interrupts may lead elsewhere now.
    pub(super) fn tell_interrupts(&self, memory: &impl Memory, host: &mut impl Host) {
        host.interrupts_changed(&|source, message| self.remapped(memory, source, message));
    }

    /// What `message` asks for; or the index it asked for, and the fault.
    fn ask(
        &self,
        memory: &impl Memory,
        source: RequesterId,
        message: Message,
    ) -> Result<Asked, (u16, Fault)> {
        let status = self.file.get(GSTS);
        if !status.interrupt_remapping() {
            return Ok(Asked::Nothing(message));
        }
        let plain = |reason| Fault::new(reason, Processing::On);
        let Some(asks) = message.to_remappable() else {
            let extended = self.interrupt_table.extended_interrupt_mode();
            if status.compatibility_interrupts() && !extended {
                return Ok(Asked::Nothing(message));
            }
            return Err((0, plain(FaultReason::COMPATIBILITY_BLOCKED)));
        };
        let index = asks.index();
        let refused = |fault| Err((index as u16, fault));
        // With a subhandle, the rest of the data is reserved.
        if asks.subhandle.is_some() && message.data >> 16 != 0 {
            return refused(plain(FaultReason::INTERRUPT_REQUEST_RESERVED));
        }
        let index = match u16::try_from(index) {
            Ok(index) if u32::from(index) < self.interrupt_table.entries() => index,
            _ => return refused(plain(FaultReason::INTERRUPT_INDEX)),
        };
        match self.entry(memory, source, index) {
            Ok(entry) => Ok(Asked::Entry { index, entry }),
            Err(fault) => refused(fault),
        }
    }

    /// What was found, without posting.
    fn delivered(&self, found: Asked) -> Delivered {
        match found {
            Asked::Nothing(message) => Delivered::Unchanged(message),
            Asked::Entry { entry, .. } if entry.posted() => {
                Delivered::Posted { notification: None }
            }
            Asked::Entry { entry, .. } => Delivered::Remapped(Interrupt {
                vector: entry.vector() as u8,
                delivery: entry.delivery(),
                destination: self.destination(entry.destination()),
                logical: entry.logical(),
                redirection_hint: entry.redirection_hint(),
                level_triggered: entry.level_triggered(),
            }),
        }
    }

    /// DST or NDST as a destination.
    fn destination(&self, field: u64) -> u32 {
        if self.interrupt_table.extended_interrupt_mode() {
            field as u32
        } else {
            (field >> 8 & 0xff) as u32
        }
    }

    /// The entry at `index`, checked.
    fn entry(&self, memory: &impl Memory, source: RequesterId, index: u16) -> Result<Irte, Fault> {
        let entry = match self.interrupts.get(index) {
            Some(entry) => entry,
            None => {
                let at = u64::from(index) * Irte::SIZE;
                let at = self.interrupt_table.table().wrapping_add(at);
                let mut words = [0; 2];
                memory
                    .read_words(at, &mut words)
                    .map_err(|_| Fault::new(FaultReason::INTERRUPT_TABLE_ACCESS, Processing::On))?;
                Irte(words)
            }
        };
        let processing = if entry.fault_processing_disabled() {
            Processing::Disabled
        } else {
            Processing::On
        };
        let fault = |reason| Err(Fault::new(reason, processing));
        if !entry.present() {
            return fault(FaultReason::INTERRUPT_NOT_PRESENT);
        }
        let posts = self.options.capability.posted_interrupts();
        let wide = self.interrupt_table.extended_interrupt_mode();
        if entry.reserved() != [0; 2]
            || entry.posted() && !posts
            || entry.svt() == 3
            || !wide && entry.reserved_destination() != 0
        {
            return fault(FaultReason::INTERRUPT_ENTRY_RESERVED);
        }
        if !entry.source_check().admits(source) {
            return fault(FaultReason::INTERRUPT_SOURCE);
        }
        Ok(entry)
    }

    /// Posts the interrupt of `entry`; the notification, if one is due.
    fn post(&self, memory: &impl Memory, entry: Irte) -> Result<Option<Interrupt>, Fault> {
        let processing = if entry.fault_processing_disabled() {
            Processing::Disabled
        } else {
            Processing::On
        };
        let at = entry.descriptor();
        let access = Fault::new(FaultReason::POSTED_DESCRIPTOR_ACCESS, processing);
        let mut descriptor = PostedDescriptor::default();
        memory
            .read_words(at, &mut descriptor.0)
            .map_err(|_| access)?;
        if descriptor.reserved() != [0; 4] {
            let reason = FaultReason::POSTED_DESCRIPTOR_RESERVED;
            return Err(Fault::new(reason, processing));
        }
        let (offset, bit) = PostedDescriptor::request(entry.vector() as u8);
        change(memory, at.wrapping_add(offset), |word| Some(word | bit)).map_err(|()| access)?;
        // The notification is due if none is outstanding, and the request is urgent or none is suppressed.
        let control = at.wrapping_add(PostedDescriptor::CONTROL_OFFSET);
        let before = change(memory, control, |word| {
            let outstanding = word & PostedDescriptor::OUTSTANDING != 0;
            let suppressed = word & PostedDescriptor::SUPPRESSED != 0;
            let due = !outstanding && (entry.urgent() || !suppressed);
            due.then_some(word | PostedDescriptor::OUTSTANDING)
        })
        .map_err(|()| access)?;
        Ok(before.map(|word| {
            let mut descriptor = PostedDescriptor::default();
            if let Some(control) = descriptor.0.get_mut(4) {
                *control = word;
            }
            Interrupt {
                vector: descriptor.notification_vector() as u8,
                delivery: Delivery::FIXED,
                destination: self.destination(descriptor.notification_destination()),
                logical: false,
                redirection_hint: false,
                level_triggered: false,
            }
        }))
    }

    fn refuse_interrupt(
        &mut self,
        host: &mut impl Host,
        source: RequesterId,
        index: u16,
        fault: Fault,
    ) -> Refused {
        let record = FaultRecord(0)
            .with_source(source)
            .with_reason(fault.reason)
            .with_interrupt_index(index);
        self.log(host, record, fault)
    }
}

/// Changes the word at `at` by `new`, atomically; `None` from it leaves the word. The word before, if it changed.
fn change(
    memory: &impl Memory,
    at: u64,
    new: impl Fn(u64) -> Option<u64>,
) -> Result<Option<u64>, ()> {
    let mut found = memory.read(at, Width::Eight).map_err(|_| ())?;
    for _ in 0..PATIENCE {
        let Some(word) = new(found) else {
            return Ok(None);
        };
        let there = memory
            .compare_exchange(at, Width::Eight, found, word)
            .map_err(|_| ())?;
        if there == found {
            return Ok(Some(found));
        }
        found = there;
    }
    Err(())
}
