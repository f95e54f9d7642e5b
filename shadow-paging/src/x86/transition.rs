// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes of control registers that end in #GP(0) because of what the registers were.
//!
//! SDM 2B, "MOV—Move to/from Control Registers"; SDM 3A, "Process-Context Identifiers (PCIDs)" and "Extended Feature Enable
//! Register". What is wrong whatever was there before is [`PagingMode`](crate::guest::PagingMode)'s to tell.

use crate::guest::{ModeError, Registers, cr0, cr4, efer};

/// CR3 bits that hold a PCID, if CR4.PCIDE is set.
const PCID: u64 = 0xfff;
/// LAM_U57 and LAM_U48. The processor's CR3 is ours, without them, so that a guest cannot have them.
const LAM: u64 = 0b11 << 61;

/// Whether IA-32e mode is active: `IA32_EFER.LMA`.
const fn long(registers: &Registers) -> bool {
    registers.efer & efer::LME != 0 && registers.cr0 & cr0::PG != 0
}

/// MOV to CR0.
pub(crate) const fn to_cr0(now: &Registers, value: u64) -> Result<(), ModeError> {
    if value & cr0::NW != 0 && value & cr0::CD == 0 {
        return Err(ModeError::WriteThrough { cr0: value });
    }
    if now.cr4 & cr4::PCIDE != 0 && now.cr0 & !value & cr0::PG != 0 {
        return Err(ModeError::PcidWithoutPaging { cr0: value });
    }
    Ok(())
}

/// MOV to CR3, bit 63 taken off where that means something.
pub(crate) const fn to_cr3(now: &Registers, value: u64) -> Result<(), ModeError> {
    if long(now) && value & LAM != 0 {
        return Err(ModeError::LinearAddressMasking { cr3: value });
    }
    Ok(())
}

/// MOV to CR4.
pub(crate) const fn to_cr4(now: &Registers, value: u64) -> Result<(), ModeError> {
    let (cr4, cr3) = (value, now.cr3);
    let tagged = value & !now.cr4 & cr4::PCIDE != 0;
    if tagged && (!long(now) || cr3 & PCID != 0) {
        return Err(ModeError::PcidEnable { cr4, cr3 });
    }
    if long(now) && (value ^ now.cr4) & cr4::LA57 != 0 {
        return Err(ModeError::LinearAddressWidth { cr4 });
    }
    Ok(())
}

/// WRMSR to `IA32_EFER`.
pub(crate) const fn to_efer(now: &Registers, value: u64) -> Result<(), ModeError> {
    if now.cr0 & cr0::PG != 0 && (value ^ now.efer) & efer::LME != 0 {
        return Err(ModeError::LongModeWhilePaging { efer: value });
    }
    Ok(())
}
