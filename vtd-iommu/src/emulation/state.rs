// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A unit's state as plain data, to be kept or sent elsewhere.

use alloc::vec::Vec;

use super::faults::FaultLog;
use super::options::{Options, OptionsError, WINDOW};
use super::unit::Unit;
use crate::spec::registers::{
    CAP, Capability, ContextCommand, ECAP, ExtendedCapability, InterruptTableAddress,
    InvalidateAddress, RootTableAddress, VER, Version, Word,
};

/// Everything that software can tell of a unit. What it keeps of tables is not among it, nor who is watched: a
/// unit may forget at any time, and watching is the VMM's.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct State {
    /// The register window, 8 bytes each.
    pub registers: Vec<u64>,
    /// RTADDR_REG as it was when it was last taken.
    pub root: u64,
    /// IRTA_REG as it was when it was last taken.
    pub interrupt_table: u64,
    /// IVA_REG, which does not read back.
    pub invalidate_address: u64,
    /// SID and FM of CCMD_REG, which do not read back.
    #[cfg_attr(feature = "serde", serde(default))]
    pub context_command: u64,
    /// The fault record that is next.
    pub next_record: u8,
}

/// A state that no unit with these options has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The options themselves.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Not a window of registers.
    #[error("{0} words of registers, where there are 512")]
    Length(usize),
    /// Bits that no register has.
    #[error("the word at {offset:#x} has bits {bits:#x} of no register")]
    Bits {
        /// Where.
        offset: u32,
        /// Which.
        bits: u64,
    },
    /// Of a unit with other capabilities.
    #[error("version {version:?}, {capability:?}, {extended:?} are another unit's")]
    OtherUnit {
        /// VER_REG.
        version: Version,
        /// CAP_REG.
        capability: Capability,
        /// ECAP_REG.
        extended: ExtendedCapability,
    },
    /// Bits that the register that they were written to does not have.
    #[error("{0:#x} was never in that register")]
    Pointer(u64),
    /// A fault record that the unit does not have.
    #[error("fault record {0} is next, of fewer")]
    Record(u8),
}

impl Unit {
    /// Its state.
    #[must_use]
    pub fn save(&self) -> State {
        State {
            registers: self.file.words().to_vec(),
            root: self.root.0,
            interrupt_table: self.interrupt_table.0,
            invalidate_address: self.invalidate_address.0,
            context_command: self.context_command.0,
            next_record: self.faults.next,
        }
    }
}

impl TryFrom<(Options, &State)> for Unit {
    type Error = StateError;

    /// A unit that goes on where another with these options stopped.
    fn try_from((options, state): (Options, &State)) -> Result<Self, StateError> {
        let mut unit = Self::new(options)?;
        let length = state.registers.len();
        if length != WINDOW as usize / 8 {
            return Err(StateError::Length(length));
        }
        for (index, word) in state.registers.iter().enumerate() {
            let offset = (index as u32) << 3;
            let bits = word & !unit.file.storable(index);
            if bits != 0 {
                return Err(StateError::Bits { offset, bits });
            }
            unit.file.put(offset, 8, *word);
        }
        let (version, capability, extended) =
            (unit.file.get(VER), unit.file.get(CAP), unit.file.get(ECAP));
        if (version, capability, extended)
            != (options.version, options.capability, options.extended)
        {
            return Err(StateError::OtherUnit {
                version,
                capability,
                extended,
            });
        }
        for (pointer, defined) in [
            (state.root, RootTableAddress::DEFINED),
            (state.interrupt_table, InterruptTableAddress::DEFINED),
            (state.invalidate_address, InvalidateAddress::DEFINED),
            (state.context_command, ContextCommand::ACCESS.write_only),
        ] {
            if pointer & !defined != 0 {
                return Err(StateError::Pointer(pointer));
            }
        }
        if state.next_record > options.capability.nfr() {
            return Err(StateError::Record(state.next_record));
        }
        unit.root = RootTableAddress(state.root);
        unit.interrupt_table = InterruptTableAddress(state.interrupt_table);
        unit.invalidate_address = InvalidateAddress(state.invalidate_address);
        unit.context_command = ContextCommand(state.context_command);
        unit.faults = FaultLog {
            next: state.next_record,
        };
        Ok(unit)
    }
}
