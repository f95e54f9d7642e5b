// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest that stopped: its registers, its fields, and the steps every answer is made of.

use core::fmt;

use hvkit_vmcs::controls::Entry;
use hvkit_vmcs::event::{Event, EventKind, Interruptibility, PendingDebug};
use hvkit_vmcs::exit::{ExitInformation, ExitReason, Gpr};
use hvkit_vmcs::field::{Access, ReadWrite, WidthType};
use hvkit_vmcs::store::FieldsMut;
use hvkit_vmcs::{Field, fields as f};

use crate::Registers;

/// A guest that stopped.
pub struct Guest<'r, V: FieldsMut> {
    vmcs: &'r mut V,
    registers: &'r mut Registers,
    reason: ExitReason,
}

const CR0_PE: u64 = 1 << 0;
const RFLAGS_TF: u64 = 1 << 8;
const DEBUGCTL_BTF: u64 = 1 << 1;
const CR4_FRED: u64 = 1 << 32;
const CS_LONG: u32 = 1 << 13;
const GENERAL_PROTECTION: u8 = 13;
const UNDEFINED: u8 = 6;

impl<'r, V: FieldsMut> Guest<'r, V> {
    pub(super) fn new(vmcs: &'r mut V, registers: &'r mut Registers, reason: ExitReason) -> Self {
        Self {
            vmcs,
            registers,
            reason,
        }
    }

    /// Why it stopped.
    pub fn reason(&self) -> ExitReason {
        self.reason
    }

    /// The VMCS.
    pub fn vmcs(&mut self) -> &mut V {
        self.vmcs
    }

    /// The registers that no VMCS holds.
    pub fn registers(&mut self) -> &mut Registers {
        self.registers
    }

    /// All that the processor recorded of the exit. `None` if the store lacks a field that every processor has.
    pub fn information(&self) -> Option<ExitInformation> {
        ExitInformation::read(&*self.vmcs)
    }

    /// A field; zero where the store has none.
    pub fn read<T: WidthType, A: Access>(&self, field: Field<T, A>) -> T::Word {
        self.vmcs.read(field).unwrap_or(T::from_raw(0))
    }

    /// Writes a field that every processor has.
    pub(super) fn write<T: WidthType>(&mut self, field: Field<T, ReadWrite>, value: T::Word) {
        // A store without it is a test's; there is nothing to tell anyone.
        let _ = self.vmcs.write(field, value);
    }

    /// A general-purpose register, RSP too.
    pub fn get(&self, register: Gpr) -> u64 {
        match register {
            Gpr::RSP => self.read(f::GUEST_RSP),
            _ => self.registers[register],
        }
    }

    /// Sets a general-purpose register, RSP too.
    pub fn set(&mut self, register: Gpr, value: u64) {
        match register {
            Gpr::RSP => self.write(f::GUEST_RSP, value),
            _ => self.registers[register] = value,
        }
    }

    /// Whether the guest executes 64-bit code.
    pub fn is_64_bit(&self) -> bool {
        let entry = Entry::from_bits_retain(self.read(f::ENTRY_CONTROLS));
        entry.contains(Entry::IA32E_MODE_GUEST)
            && self.read(f::GUEST_CS_ACCESS_RIGHTS) & CS_LONG != 0
    }

    /// The exiting event.
    pub fn exiting_event(&self) -> Event {
        Event(self.read(f::EXITING_EVENT))
    }

    /// The event whose delivery the exit interrupted, if it did.
    pub fn original_event(&self) -> Option<Event> {
        Some(Event(self.read(f::ORIGINAL_EVENT))).filter(|event| event.is_valid())
    }

    /// Completes the instruction that exited, as if it had been executed: RIP goes past it, blocking by STI and MOV SS is
    /// over, and a single step is pending if the guest asked for it.
    ///
    /// For exits due to the execution of an instruction: only those record its length.
    pub fn skip(&mut self) {
        let length = u64::from(self.read(f::EXIT_INSTRUCTION_LENGTH));
        let next = self.read(f::GUEST_RIP).wrapping_add(length);
        let next = if self.is_64_bit() {
            next
        } else {
            next & 0xffff_ffff
        };
        self.write(f::GUEST_RIP, next);
        let blocking = Interruptibility::from_bits_retain(self.read(f::GUEST_INTERRUPTIBILITY));
        let over = Interruptibility::STI | Interruptibility::MOV_SS;
        if blocking.intersects(over) {
            self.write(f::GUEST_INTERRUPTIBILITY, blocking.difference(over).bits());
        }
        // With BTF, TF means a step to the next branch, and this was none.
        if self.read(f::GUEST_RFLAGS) & RFLAGS_TF != 0
            && self.read(f::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0
        {
            let pending = self.read(f::GUEST_PENDING_DEBUG);
            self.write(f::GUEST_PENDING_DEBUG, pending | PendingDebug::BS.bits());
        }
    }

    /// Lets the guest begin with this event. `error_code` counts if the event has one; in real mode (CR0.PE is 0: an
    /// unrestricted guest) no exception has, and VM entry fails with one. For software interrupts and exceptions, the length of the
    /// instruction is that of the exit.
    ///
    /// An event that was to be delivered already is replaced: see [`combine`](super::combine). A guest that uses FRED transitions finds 0 as
    /// the event data.
    pub fn inject(&mut self, event: Event, error_code: u32) {
        self.inject_with_data(event, error_code, 0);
    }

    /// [`inject`](Self::inject), with event data for a guest that uses FRED transitions (CR4.FRED): of a page fault the address, of a
    /// debug exception its conditions, of a device-not-available exception `IA32_XFD_ERR`. SDM Vol. 3C, "VM-Entry Controls for Event
    /// Injection".
    pub(super) fn inject_with_data(&mut self, event: Event, error_code: u32, data: u64) {
        if self.read(f::GUEST_CR4) & CR4_FRED != 0 {
            self.write(f::INJECTED_EVENT_DATA, data);
        }
        let real_mode = self.read(f::GUEST_CR0) & CR0_PE == 0;
        let event = if real_mode && event.is_a(EventKind::HARDWARE_EXCEPTION) {
            Event(event.0 & !(1 << 11))
        } else {
            event
        };
        self.write(f::INJECTED_EVENT, event.0);
        if event.has_error_code() {
            self.write(f::INJECTED_EVENT_ERROR_CODE, error_code);
        }
        if matches!(
            event.kind(),
            EventKind::SOFTWARE_INTERRUPT
                | EventKind::PRIVILEGED_SOFTWARE_EXCEPTION
                | EventKind::SOFTWARE_EXCEPTION
        ) {
            let length = self.read(f::EXIT_INSTRUCTION_LENGTH);
            self.write(f::ENTRY_INSTRUCTION_LENGTH, length);
        }
    }

    /// A general-protection exception instead of the instruction, with error code 0 outside real mode.
    pub fn fault(&mut self) {
        let event = Event::new(EventKind::HARDWARE_EXCEPTION, GENERAL_PROTECTION);
        self.inject(event.with_error_code(), 0);
    }

    /// An invalid-opcode exception instead of the instruction.
    pub fn undefined(&mut self) {
        self.inject(Event::new(EventKind::HARDWARE_EXCEPTION, UNDEFINED), 0);
    }

    /// Lets the guest do again what exited, and first finish what the exit interrupted: an event whose delivery led to the
    /// exit is injected again, and NMIs that IRET unblocked just before are blocked again.
    ///
    /// SDM Vol. 3C, "Information for VM Exits That Occur During Event Delivery", "Information About NMI Unblocking Due to
    /// IRET".
    pub fn retry(&mut self) {
        let blocking = Interruptibility::from_bits_retain(self.read(f::GUEST_INTERRUPTIBILITY));
        match self.original_event() {
            Some(event) => {
                // Bit 12 is undefined in this field and reserved for injection.
                let again = Event(event.0 & !(1 << 12));
                let error_code = self.read(f::ORIGINAL_EVENT_ERROR_CODE);
                let data = self.read(f::ORIGINAL_EVENT_DATA);
                self.inject_with_data(again, error_code, data);
                if event.kind() == EventKind::NMI {
                    // Its delivery began, and will begin again: that blocks.
                    let bits = blocking.difference(Interruptibility::NMI).bits();
                    self.write(f::GUEST_INTERRUPTIBILITY, bits);
                }
            }
            None if self.iret_unblocked_nmis() => {
                let bits = (blocking | Interruptibility::NMI).bits();
                self.write(f::GUEST_INTERRUPTIBILITY, bits);
            }
            None => {}
        }
    }

    /// Bit 12 of the exiting event, or of the qualification for the exits that have it there.
    fn iret_unblocked_nmis(&self) -> bool {
        match self.reason {
            reason if reason.is(ExitReason::EXCEPTION_OR_NMI) => {
                let event = self.exiting_event();
                // Undefined for a double fault.
                event.unblocked_nmi() && event.vector() != 8
            }
            reason
                if reason.is(ExitReason::EPT_VIOLATION)
                    || reason.is(ExitReason::PML_FULL)
                    || reason.is(ExitReason::SPP)
                    || reason.is(ExitReason::INSTRUCTION_TIMEOUT) =>
            {
                self.read(f::EXIT_QUALIFICATION) >> 12 & 1 != 0
            }
            _ => false,
        }
    }
}

impl<V: FieldsMut> fmt::Debug for Guest<'_, V> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.information() {
            Some(information) => write!(out, "{information}")?,
            None => write!(out, "{}", self.reason)?,
        }
        write!(out, " at RIP {:#x}", self.read(f::GUEST_RIP))
    }
}
