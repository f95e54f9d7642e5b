// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! VMREAD and VMWRITE bitmaps of VMCS shadowing. SDM Vol. 3C, "VMCS Shadowing Bitmap Addresses".

use core::fmt;

use hvkit_vmcs::Encoding;

use super::{BITS, Page};

/// Which fields exit when a guest with a shadow VMCS reads (or, in a second such page, writes) them.
///
/// ```
/// use hvkit_vmcs::fields;
/// use hvkit_vmx::bitmaps::FieldBitmap;
///
/// static READS: FieldBitmap = FieldBitmap::exiting();
/// READS.set(fields::GUEST_RIP.encoding(), false);
/// assert!(!READS.exits(0x681e) && READS.exits(0x4402) && READS.exits(0x1_681e));
/// ```
#[repr(C, align(4096))]
pub struct FieldBitmap(Page);

impl FieldBitmap {
    /// Every access exits.
    pub const fn exiting() -> Self {
        Self(Page::filled::<{ u64::MAX }>())
    }

    /// No access exits, but one with an encoding that no bit stands for.
    pub const fn passing() -> Self {
        Self(Page::filled::<0>())
    }

    /// Says whether accesses to a field with this encoding exit: the full and the high access apart. Encodings with bits
    /// beyond the 15 of the bitmap always exit, and are left alone.
    pub fn set(&self, field: Encoding, exits: bool) {
        self.0.put(field.0 as usize, exits);
    }

    /// Whether VMREAD or VMWRITE with `operand` in its register exits, as the processor decides it.
    pub fn exits(&self, operand: u64) -> bool {
        operand >= BITS as u64 || self.0.get(operand as usize)
    }
}

impl fmt::Debug for FieldBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FieldBitmap").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_the_bit_of_its_encoding() {
        // Guest RIP, 681EH: byte d03H, bit 6. Bit 32767 is the last.
        for (encoding, byte, bit) in [(0x681e, 0xd03, 6), (0x7fff, 4095, 7), (0, 0, 0)] {
            let bitmap = FieldBitmap::passing();
            bitmap.set(Encoding(encoding), true);
            let set: Vec<_> = (0..4096).filter(|&at| bitmap.0.byte(at) != 0).collect();
            assert_eq!(set, [byte]);
            assert_eq!(bitmap.0.byte(byte), 1 << bit);
            assert!(bitmap.exits(encoding.into()));
        }
    }

    #[test]
    fn operands_beyond_the_page_always_exit() {
        let bitmap = FieldBitmap::passing();
        bitmap.set(Encoding(0x8000), false);
        bitmap.set(Encoding(u32::MAX), true);
        assert!((0..4096).all(|at| bitmap.0.byte(at) == 0));
        for operand in [0x8000, 1 << 32, u64::MAX] {
            assert!(bitmap.exits(operand));
        }
        assert!(!bitmap.exits(0x7fff) && FieldBitmap::exiting().exits(0x7fff));
    }
}
