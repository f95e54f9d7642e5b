// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! EPT violations, and exceptions.

use hvkit_vmcs::event::{Event, EventKind};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;

use super::{Delivery, Guest, combine};

/// The exceptions whose exit qualification is the event data of their delivery by FRED.
const DEBUG: u8 = 1;
const DEVICE_NOT_AVAILABLE: u8 = 7;
const PAGE_FAULT: u8 = 14;

/// An access that stopped at the EPT.
#[derive(Debug)]
pub struct EptFault<'r, V: FieldsMut> {
    /// The guest.
    pub guest: Guest<'r, V>,
    /// The guest-physical address.
    pub physical: u64,
}

impl<'r, V: FieldsMut> EptFault<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>) -> Self {
        Self {
            physical: guest.read(f::GUEST_PHYSICAL_ADDRESS),
            guest,
        }
    }

    /// The linear address, where the processor recorded one (bit 7 of the qualification of a violation).
    pub fn linear(&self) -> u64 {
        self.guest.read(f::GUEST_LINEAR_ADDRESS)
    }

    /// Lets the guest try again, after the EPT was changed.
    pub fn retry(mut self) {
        self.guest.retry();
    }
}

/// An exception or NMI.
#[derive(Debug)]
pub struct Exception<'r, V: FieldsMut> {
    /// The guest.
    pub guest: Guest<'r, V>,
    /// What.
    pub event: Event,
    /// Its error code; 0 if it has none.
    pub error_code: u32,
    /// The exit qualification: the address of a page fault, the conditions of a debug exception.
    pub qualification: u64,
}

impl<'r, V: FieldsMut> Exception<'r, V> {
    pub(super) fn new(guest: Guest<'r, V>) -> Self {
        let event = guest.exiting_event();
        Self {
            event,
            error_code: if event.has_error_code() {
                guest.read(f::EXITING_EVENT_ERROR_CODE)
            } else {
                0
            },
            qualification: guest.read(f::EXIT_QUALIFICATION),
            guest,
        }
    }

    /// Whether it is an NMI, which is the host's to handle.
    pub fn is_nmi(&self) -> bool {
        self.event.is_a(EventKind::NMI)
    }

    /// The address, if it is a page fault.
    pub fn page_fault(&self) -> Option<u64> {
        let is_fault = self.event.is_a(EventKind::HARDWARE_EXCEPTION) && self.event.vector() == 14;
        is_fault.then_some(self.qualification)
    }

    /// Lets the guest try again, after the cause was removed.
    pub fn retry(mut self) {
        self.guest.retry();
    }

    /// Gives the exception to the guest, as if it had not exited: CR2 is set (DR6 is the caller's), and during the delivery of another
    /// one it becomes a double fault where it would have. Returns what became of it; a triple fault is the caller's to
    /// act upon, and nothing was injected then.
    pub fn reflect(mut self) -> Delivery {
        let event = Event(self.event.0 & !(1 << 12 | 1 << 13));
        let delivery = match self.guest.original_event() {
            Some(first) => combine(first, event),
            None => Delivery::Second,
        };
        match delivery {
            Delivery::Second => {
                if let Some(address) = self.page_fault() {
                    self.guest.registers().cr2 = address;
                }
                let data = if event.is_a(EventKind::HARDWARE_EXCEPTION)
                    && matches!(event.vector(), DEBUG | DEVICE_NOT_AVAILABLE | PAGE_FAULT)
                {
                    self.qualification
                } else {
                    0
                };
                self.guest.inject_with_data(event, self.error_code, data);
            }
            Delivery::DoubleFault => self.guest.inject(Delivery::DOUBLE_FAULT, 0),
            Delivery::TripleFault => {}
        }
        delivery
    }
}
