// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reset vector in the BIOS area, for guests that restart a PC by jumping there.
//!
//! Linux does so when ACPI is hardware-reduced: it believes that such a machine has EFI, and where
//! there is none it falls back to the BIOS. There is no BIOS either, but nine bytes that use the
//! reset control register.

use super::address_map::{RESET_PORT, RESET_VECTOR};
use super::memory::GuestRam;
use crate::acpi::power::RESET_VALUE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

/// Real mode: MOV DX, port; MOV AL, value; OUT DX, AL; HLT; a jump back to HLT.
fn code() -> [u8; 9] {
    let [low, high] = RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}

/// Writes the code to where a processor of 8086 days would have begun.
///
/// # Errors
///
/// `ram` has no page there.
pub fn write(ram: &GuestRam) -> Result<(), GuestMemoryError> {
    ram.write_slice(&code(), GuestAddress(RESET_VECTOR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    #[test]
    fn the_code_writes_the_reset_register() {
        let code = code();
        let mut format = IntelFormatter::new();
        let listing: Vec<String> = Decoder::with_ip(16, &code, 0xfff0, DecoderOptions::NONE)
            .iter()
            .map(|instruction| {
                let mut text = String::new();
                format.format(&instruction, &mut text);
                text
            })
            .collect();
        assert_eq!(
            listing,
            [
                "mov dx,0CF9h",
                "mov al,6",
                "out dx,al",
                "hlt",
                "jmp short 0FFF6h"
            ]
        );
        // It ends inside the segment, and inside the BIOS area.
        assert!(RESET_VECTOR + code.len() as u64 <= 0x10_0000);
    }
}
