// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Faults that a unit recorded: read, cleared, and announced by a message.

use alloc::vec::Vec;

use hvkit_page_table::{Frames, OwnEntries};

use super::command::Switch;
use super::{Mmio, Registers, Unit};
use crate::spec::fault::FaultRecord;
use crate::spec::interrupt::Message;
use crate::spec::registers::{
    Capability, EventAddress, EventControl, EventData, EventUpperAddress, FEADDR, FECTL, FEDATA,
    FEUADDR, FSTS, FaultRecordHigh, FaultStatus, IEADDR, IECTL, IEDATA, IEUADDR, PEADDR, PECTL,
    PEDATA, PEUADDR, ReadWrite, Register,
};

/// What was recorded since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The records, oldest first, as far as the unit keeps an order.
    pub records: Vec<FaultRecord>,
    /// Whether there were more than the unit could record.
    pub overflow: bool,
}

/// What a message announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A fault was recorded, or the queue stopped.
    Fault,
    /// An invalidation wait with the interrupt flag is over.
    Invalidation,
    /// Page requests are waiting.
    PageRequest,
}

struct EventRegisters {
    control: Register<EventControl, ReadWrite>,
    data: Register<EventData, ReadWrite>,
    address: Register<EventAddress, ReadWrite>,
    upper: Register<EventUpperAddress, ReadWrite>,
}

impl Event {
    const fn registers(self) -> EventRegisters {
        let (control, data, address, upper) = match self {
            Self::Fault => (FECTL, FEDATA, FEADDR, FEUADDR),
            Self::Invalidation => (IECTL, IEDATA, IEADDR, IEUADDR),
            Self::PageRequest => (PECTL, PEDATA, PEADDR, PEUADDR),
        };
        EventRegisters {
            control,
            data,
            address,
            upper,
        }
    }
}

/// Reads and clears every record: at most one for each register.
pub(super) fn take(unit: &(impl Mmio + ?Sized), cap: Capability) -> Faults {
    let mut faults = Faults::default();
    let status = unit.get(FSTS);
    if status.pending() {
        let count = cap.fault_records();
        let first = u16::from(status.record());
        // The records are a ring.
        let ring = (0..count).cycle().skip(first.into());
        for index in ring.take(count.into()) {
            let index = index as u8;
            let Some((low, high)) = cap.fault_record(index) else {
                break;
            };
            // The lower half is complete once F is set.
            let upper = unit.get(high);
            if !upper.fault() {
                break;
            }
            let record = FaultRecord::from_halves(unit.get(low), upper);
            unit.put(high, FaultRecordHigh(0).with_fault(true));
            faults.records.push(record);
        }
    }
    // Only now: while it is set nothing more is recorded.
    if status.overflow() {
        unit.put(FSTS, FaultStatus(0).with_overflow(true));
        faults.overflow = true;
    }
    faults
}

/// Clears whatever an earlier owner left.
pub(super) fn clear(unit: &(impl Mmio + ?Sized), cap: Capability) {
    let _ = take(unit, cap);
    let all = FaultStatus(0)
        .with_overflow(true)
        .with_queue_error(true)
        .with_completion_error(true)
        .with_time_out_error(true);
    unit.put(FSTS, all);
}

impl<R: Mmio, M: OwnEntries + Clone, P: Frames + Clone> Unit<R, M, P> {
    /// Takes what was recorded, and makes room for more.
    pub fn take_faults(&mut self) -> Faults {
        take(&self.registers, self.cap)
    }

    /// Sets the message that announces `event`, and unmasks it.
    pub fn announce(&mut self, event: Event, message: Message) {
        let to = event.registers();
        let unit = &self.registers;
        unit.put(to.control, EventControl(0).with_masked(true));
        unit.put(to.data, EventData(message.data));
        unit.put(to.address, EventAddress(0).with_address(message.address));
        unit.put(to.upper, EventUpperAddress((message.address >> 32) as u32));
        unit.put(to.control, EventControl(0));
    }

    /// Masks (off) or unmasks (on) the message of `event`. What happens while it is masked is announced when it is
    /// unmasked.
    pub fn set_announced(&mut self, event: Event, to: Switch) {
        let control = EventControl(0).with_masked(!to.is_on());
        self.registers.put(event.registers().control, control);
    }
}
