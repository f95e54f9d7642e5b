// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Faults and events: records, their overflow, and the interrupts that tell of them.
//!
//! "Primary Fault Logging", "Fault Status Register", "Fault Event Control Register".

use super::host::Host;
use super::registers::RegisterFile;
use super::request::Fate;
use crate::spec::fault::FaultRecord;
use crate::spec::interrupt::Message;
use crate::spec::registers::{
    CAP, EventAddress, EventControl, EventData, EventUpperAddress, FEADDR, FECTL, FEDATA, FEUADDR,
    FSTS, FaultRecordHigh, FaultRecordLow, FaultStatus, IEADDR, IECTL, IEDATA, IEUADDR, PEADDR,
    PECTL, PEDATA, PEUADDR, ReadWrite, Register, Word,
};

/// Status bits that a fault event stands for.
const CONDITIONS: u32 = FaultStatus(0)
    .with_overflow(true)
    .with_pending(true)
    .with_queue_error(true)
    .with_completion_error(true)
    .with_time_out_error(true)
    .0;

/// The four registers of one event interrupt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    control: Register<EventControl, ReadWrite>,
    data: Register<EventData, ReadWrite>,
    address: Register<EventAddress, ReadWrite>,
    upper: Register<EventUpperAddress, ReadWrite>,
}

impl Event {
    pub(super) const FAULT: Self = Self {
        control: FECTL,
        data: FEDATA,
        address: FEADDR,
        upper: FEUADDR,
    };
    pub(super) const INVALIDATION: Self = Self {
        control: IECTL,
        data: IEDATA,
        address: IEADDR,
        upper: IEUADDR,
    };
    pub(super) const PAGE_REQUEST: Self = Self {
        control: PECTL,
        data: PEDATA,
        address: PEADDR,
        upper: PEUADDR,
    };

    /// The condition came up: sends the message, or keeps it pending while the event is masked.
    pub(super) fn raise(self, file: &mut RegisterFile, host: &mut impl Host) {
        let control = file.get(self.control).with_pending(true);
        file.set(self.control, control);
        self.unmask(file, host);
    }

    /// Sends what is pending, if the event is not masked. Called when the mask may have been cleared.
    pub(super) fn unmask(self, file: &mut RegisterFile, host: &mut impl Host) {
        let control = file.get(self.control);
        if control.pending() && !control.masked() {
            file.set(self.control, control.with_pending(false));
            let low = file.get(self.address).raw();
            let high = file.get(self.upper).raw();
            host.message(Message {
                address: high << 32 | low,
                data: file.get(self.data).0,
            });
        }
    }

    /// Software has serviced the condition before the message was sent.
    pub(super) fn withdraw(self, file: &mut RegisterFile) {
        let control = file.get(self.control);
        file.set(self.control, control.with_pending(false));
    }
}

/// The fault records of a unit: a ring, whose next place is hardware's secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FaultLog {
    pub(super) next: u8,
}

impl FaultLog {
    /// Logs `record`, if there is a place.
    pub(super) fn record(
        &mut self,
        record: FaultRecord,
        file: &mut RegisterFile,
        host: &mut impl Host,
    ) -> Fate {
        let status = file.get(FSTS);
        if status.overflow() {
            return Fate::Overflowed;
        }
        // Further faults of a requester whose record is pending may be collapsed into it.
        let mut index = 0;
        while let Some((_, high)) = file.get(CAP).fault_record(index) {
            let high = file.get(high);
            if high.fault() && high.source() == record.sid() {
                return Fate::Collapsed;
            }
            let Some(next) = index.checked_add(1) else {
                break;
            };
            index = next;
        }
        let Some((low, high)) = file.get(CAP).fault_record(self.next) else {
            return Fate::Overflowed;
        };
        if file.get(high).fault() {
            file.set(FSTS, status.with_overflow(true));
            self.event(status, file, host);
            return Fate::Overflowed;
        }
        let (FaultRecordLow(first), FaultRecordHigh(second)) = record.with_fault(true).halves();
        file.set(low, FaultRecordLow(first));
        file.set(high, FaultRecordHigh(second));
        let place = self.next;
        self.next = match self.next.checked_add(1) {
            Some(next) if next <= file.get(CAP).nfr() => next,
            _ => 0,
        };
        if !status.pending() {
            file.set(FSTS, status.with_pending(true).with_record(place));
            self.event(status, file, host);
        }
        Fate::Recorded(place)
    }

    /// Raises the fault event, unless conditions that software has not serviced stood `before`.
    pub(super) fn event(self, before: FaultStatus, file: &mut RegisterFile, host: &mut impl Host) {
        if before.0 & CONDITIONS == 0 {
            Event::FAULT.raise(file, host);
        }
    }

    /// Software has cleared fault bits of records, or status bits.
    pub(super) fn serviced(self, file: &mut RegisterFile) {
        let mut pending = false;
        let mut index = 0;
        while let Some((_, high)) = file.get(CAP).fault_record(index) {
            pending |= file.get(high).fault();
            let Some(next) = index.checked_add(1) else {
                break;
            };
            index = next;
        }
        let status = file.get(FSTS).with_pending(pending);
        file.set(FSTS, status);
        if status.0 & CONDITIONS == 0 {
            Event::FAULT.withdraw(file);
        }
    }
}
