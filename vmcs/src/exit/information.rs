// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One VM exit, read from a VMCS.

use core::fmt;

use super::{ExitReason, Instruction, Qualification};
use crate::{event::Event, fields as f, store::Fields};

/// The VM-exit information fields of the last exit, or of an entry that failed.
///
/// ```
/// use hvkit_vmcs::{Vmcs, exit::{ExitInformation, Qualification}, fields as f, store::FieldsMut};
///
/// let mut vmcs = Vmcs::new();
/// vmcs.set(f::EXIT_REASON.encoding(), 30)?;
/// vmcs.set(f::EXIT_QUALIFICATION.encoding(), 0x03f8_0000)?;
/// let exit = ExitInformation::read(&vmcs).unwrap();
/// let Qualification::Io(io) = exit.qualification() else { panic!() };
/// assert_eq!((io.port(), io.size(), io.is_in()), (0x3f8, Some(1), false));
/// # Ok::<(), hvkit_vmcs::store::NoSuchField>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ExitInformation {
    /// The exit reason.
    pub reason: ExitReason,
    /// The exit qualification, raw.
    pub raw_qualification: u64,
    /// The exiting event, and its error code.
    pub event: Event,
    /// The error code of the exiting event; meaningful if the event has one.
    pub error_code: u32,
    /// The event whose delivery the exit interrupted.
    pub original_event: Event,
    /// The error code of the original event; meaningful if the event has one.
    pub original_error_code: u32,
    /// The length of the instruction, for exits due to one.
    pub instruction_length: u32,
    /// Instruction information, raw.
    pub raw_instruction: u32,
    /// The guest-linear address, for the exits that set it.
    pub linear_address: u64,
    /// The guest-physical address, for EPT violations, EPT misconfigurations and SPP events.
    pub physical_address: Option<u64>,
}

impl ExitInformation {
    /// Reads the fields. `None` if the store lacks one that every processor has.
    pub fn read(vmcs: &impl Fields) -> Option<Self> {
        Some(Self {
            reason: ExitReason(vmcs.read(f::EXIT_REASON)?),
            raw_qualification: vmcs.read(f::EXIT_QUALIFICATION)?,
            event: Event(vmcs.read(f::EXITING_EVENT)?),
            error_code: vmcs.read(f::EXITING_EVENT_ERROR_CODE)?,
            original_event: Event(vmcs.read(f::ORIGINAL_EVENT)?),
            original_error_code: vmcs.read(f::ORIGINAL_EVENT_ERROR_CODE)?,
            instruction_length: vmcs.read(f::EXIT_INSTRUCTION_LENGTH)?,
            raw_instruction: vmcs.read(f::EXIT_INSTRUCTION_INFORMATION)?,
            linear_address: vmcs.read(f::GUEST_LINEAR_ADDRESS)?,
            physical_address: vmcs.read(f::GUEST_PHYSICAL_ADDRESS),
        })
    }

    /// The qualification, as the reason makes it read.
    pub const fn qualification(&self) -> Qualification {
        Qualification::decode(self.reason, self.raw_qualification, self.event)
    }

    /// The instruction information, as the reason makes it read.
    pub const fn instruction(&self) -> Instruction {
        Instruction::decode(self.reason, self.raw_instruction)
    }
}

impl fmt::Display for ExitInformation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x})", self.reason, self.reason.0)?;
        match self.qualification() {
            Qualification::None => {}
            qualification => write!(f, ", {qualification:?}")?,
        }
        if self.event.is_valid() {
            write!(f, ", {}", self.event)?;
        }
        if self.original_event.is_valid() {
            write!(f, ", during delivery of {}", self.original_event)?;
        }
        Ok(())
    }
}
