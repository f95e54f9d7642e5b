// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Exits as types: each holds what its answer needs, and offers only the answers that make sense.
//!
//! Everything here works on any store of a VMCS, so it is tested without a processor.
//!
//! ```
//! use hvkit_vmcs::{Vmcs, exit::{ExitReason, Gpr}, fields as f, store::{Fields, FieldsMut}};
//! use hvkit_vmx::{Exit, Registers};
//!
//! let mut vmcs = Vmcs::new(); // a guest that executed RDMSR of IA32_TSC at 1000H
//! vmcs.write(f::GUEST_RIP, 0x1000)?;
//! vmcs.set(f::EXIT_INSTRUCTION_LENGTH.encoding(), 2)?;
//! let mut registers = Registers::new().with(Gpr::RCX, 0x10);
//! match Exit::read(ExitReason::RDMSR, &mut vmcs, &mut registers) {
//!     Exit::ReadMsr(exit) if exit.index == 0x10 => exit.answer(0x1_0000_0002),
//!     other => panic!("{other:?}"),
//! }
//! assert_eq!((registers[Gpr::RDX], registers[Gpr::RAX]), (1, 2));
//! assert_eq!(vmcs.read(f::GUEST_RIP), Some(0x1002));
//! # Ok::<(), hvkit_vmcs::store::NoSuchField>(())
//! ```

mod control_register;
mod delivery;
mod guest;
mod instruction;
mod io;
mod memory;

#[cfg(test)]
mod tests;

pub use control_register::{ControlRegisterExit, CrAccess};
pub use delivery::{Delivery, combine};
pub use guest::Guest;
pub use instruction::{Cpuid, Hypercall, ReadMsr, Skip, WriteMsr, Xsetbv};
pub use io::{Direction, Io};
pub use memory::{EptFault, Exception};

use hvkit_vmcs::exit::{EptViolation, ExitReason, Gpr, IoInstruction};
use hvkit_vmcs::fields as f;
use hvkit_vmcs::store::FieldsMut;

use crate::Registers;

/// Why the guest stopped, with what it takes to answer.
///
/// To drop one without an answer runs the instruction again: an endless loop for most. For what was repaired (an EPT violation, a
/// full page-modification log) it is right only if the exit interrupted nothing: an event whose delivery led to it
/// would be lost, and NMIs that an IRET unblocked would come too early. `retry` ([`EptFault::retry`], [`Exception::retry`],
/// [`Skip::retry`], [`Guest::retry`]) sees to both.
#[derive(Debug)]
#[non_exhaustive]
pub enum Exit<'r, V: FieldsMut> {
    /// An exception that the exception bitmap selects, or an NMI.
    Exception(Exception<'r, V>),
    /// An external interrupt. The vector, if "acknowledge interrupt on exit" is 1.
    Interrupt(Guest<'r, V>, Option<u8>),
    /// A triple fault: the guest is in the shutdown state.
    TripleFault(Guest<'r, V>),
    /// The guest can take an interrupt now ("interrupt-window exiting").
    InterruptWindow(Guest<'r, V>),
    /// The guest can take an NMI now ("NMI-window exiting").
    NmiWindow(Guest<'r, V>),
    /// CPUID.
    Cpuid(Cpuid<'r, V>),
    /// HLT.
    Hlt(Skip<'r, V>),
    /// VMCALL.
    Hypercall(Hypercall<'r, V>),
    /// Another VMX instruction: a guest that was not told of VMX expects #UD.
    VmxInstruction(Skip<'r, V>),
    /// MOV to or from a control register, CLTS, LMSW.
    ControlRegister(ControlRegisterExit<'r, V>),
    /// IN, OUT, INS or OUTS.
    Io(Io<'r, V>),
    /// RDMSR.
    ReadMsr(ReadMsr<'r, V>),
    /// WRMSR.
    WriteMsr(WriteMsr<'r, V>),
    /// XSETBV.
    Xsetbv(Xsetbv<'r, V>),
    /// An access that the EPT does not allow, and how it was made.
    EptViolation(EptFault<'r, V>, EptViolation),
    /// An EPT entry that makes no sense to the processor.
    EptMisconfiguration(EptFault<'r, V>),
    /// The VMX-preemption timer ran out.
    PreemptionTimer(Guest<'r, V>),
    /// Anything else. [`Skip::information`] has what the processor recorded.
    Other(Skip<'r, V>),
}

impl<'r, V: FieldsMut> Exit<'r, V> {
    /// Reads the exit with this reason; not for entry failures. Fields that the store lacks count as zero.
    pub fn read(reason: ExitReason, vmcs: &'r mut V, registers: &'r mut Registers) -> Self {
        let guest = Guest::new(vmcs, registers, reason);
        match ExitReason(reason.basic().into()) {
            ExitReason::EXCEPTION_OR_NMI => Self::Exception(Exception::new(guest)),
            ExitReason::EXTERNAL_INTERRUPT => {
                let event = guest.exiting_event();
                Self::Interrupt(guest, event.is_valid().then(|| event.vector()))
            }
            ExitReason::TRIPLE_FAULT => Self::TripleFault(guest),
            ExitReason::INTERRUPT_WINDOW => Self::InterruptWindow(guest),
            ExitReason::NMI_WINDOW => Self::NmiWindow(guest),
            ExitReason::CPUID => Self::Cpuid(Cpuid::new(guest)),
            ExitReason::HLT => Self::Hlt(Skip::new(guest)),
            ExitReason::VMCALL => Self::Hypercall(Hypercall::new(guest)),
            ExitReason::VMCLEAR
            | ExitReason::VMLAUNCH
            | ExitReason::VMPTRLD
            | ExitReason::VMPTRST
            | ExitReason::VMREAD
            | ExitReason::VMRESUME
            | ExitReason::VMWRITE
            | ExitReason::VMXOFF
            | ExitReason::VMXON
            | ExitReason::INVEPT
            | ExitReason::INVVPID
            | ExitReason::VMFUNC => Self::VmxInstruction(Skip::new(guest)),
            ExitReason::CONTROL_REGISTER => Self::ControlRegister(ControlRegisterExit::new(guest)),
            ExitReason::IO_INSTRUCTION => {
                let access = IoInstruction(guest.read(f::EXIT_QUALIFICATION));
                Self::Io(Io::new(guest, access))
            }
            ExitReason::RDMSR => Self::ReadMsr(ReadMsr::new(guest)),
            ExitReason::WRMSR => Self::WriteMsr(WriteMsr::new(guest)),
            ExitReason::XSETBV => Self::Xsetbv(Xsetbv::new(guest)),
            ExitReason::EPT_VIOLATION => {
                let access = EptViolation(guest.read(f::EXIT_QUALIFICATION));
                Self::EptViolation(EptFault::new(guest), access)
            }
            ExitReason::EPT_MISCONFIGURATION => Self::EptMisconfiguration(EptFault::new(guest)),
            ExitReason::PREEMPTION_TIMER => Self::PreemptionTimer(guest),
            _ => Self::Other(Skip::new(guest)),
        }
    }

    /// The guest, whatever the reason.
    pub fn guest(&mut self) -> &mut Guest<'r, V> {
        match self {
            Self::Exception(exit) => &mut exit.guest,
            Self::Interrupt(guest, _)
            | Self::TripleFault(guest)
            | Self::InterruptWindow(guest)
            | Self::NmiWindow(guest)
            | Self::PreemptionTimer(guest) => guest,
            Self::Cpuid(exit) => &mut exit.guest,
            Self::Hlt(exit) | Self::VmxInstruction(exit) | Self::Other(exit) => &mut exit.guest,
            Self::Hypercall(exit) => &mut exit.guest,
            Self::ControlRegister(exit) => &mut exit.guest,
            Self::Io(exit) => &mut exit.guest,
            Self::ReadMsr(exit) => &mut exit.guest,
            Self::WriteMsr(exit) => &mut exit.guest,
            Self::Xsetbv(exit) => &mut exit.guest,
            Self::EptViolation(exit, _) | Self::EptMisconfiguration(exit) => &mut exit.guest,
        }
    }
}

/// The register RCX as the 32-bit index of an MSR or XCR.
fn index<V: FieldsMut>(guest: &Guest<'_, V>) -> u32 {
    guest.get(Gpr::RCX) as u32
}
