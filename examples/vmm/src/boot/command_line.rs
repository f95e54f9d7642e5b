// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's command line in guest memory.

use super::error::BootError;
use super::layout::COMMAND_LINE;
use crate::machine::memory::GuestRam;
use vm_memory::Bytes;

/// Writes `text` with its closing zero, if the kernel takes that many bytes (`limit`, without the
/// zero).
pub(super) fn write(ram: &GuestRam, text: &str, limit: usize) -> Result<(), BootError> {
    if text.len() > limit {
        return Err(BootError::CommandLineTooLong {
            length: text.len(),
            limit,
        });
    }
    if text.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    ram.write_slice(text.as_bytes(), COMMAND_LINE)?;
    let end = COMMAND_LINE.0.saturating_add(text.len() as u64);
    ram.write_obj(0u8, vm_memory::GuestAddress(end))?;
    Ok(())
}
