// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! MSR bitmaps. SDM Vol. 3C, "MSR-Bitmap Address".

use core::fmt;

use super::Page;

/// Reading or writing an MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAccess {
    /// RDMSR.
    Read,
    /// WRMSR.
    Write,
}

/// The MSR is in neither range of the bitmaps: accesses to it always exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MSR {0:#x} is in neither range of the bitmaps: it always exits")]
pub struct NotInBitmap(
    /// The MSR's index.
    pub u32,
);

/// Which MSRs exit, for the field "Address of MSR bitmaps": one page.
///
/// ```text
///   byte    0  reads of 00000000H..00001FFFH     byte 2048  writes of the same
///   byte 1024  reads of C0000000H..C0001FFFH     byte 3072  writes of the same
/// ```
///
/// ```
/// use hvkit_vmx::bitmaps::{MsrAccess, MsrBitmap};
///
/// // On bare metal a static: the processor reads it while the guest runs.
/// static BITMAP: MsrBitmap = MsrBitmap::passing();
/// BITMAP.set(0x3a, MsrAccess::Write, true)?; // IA32_FEATURE_CONTROL
/// assert!(BITMAP.exits(0x3a, MsrAccess::Write) && !BITMAP.exits(0x3a, MsrAccess::Read));
/// assert!(BITMAP.exits(0x4000_0000, MsrAccess::Read)); // in neither range
/// # Ok::<(), hvkit_vmx::bitmaps::NotInBitmap>(())
/// ```
#[repr(C, align(4096))]
pub struct MsrBitmap(Page);

/// MSRs in one range.
const RANGE: u32 = 0x2000;
const HIGH: u32 = 0xc000_0000;
/// Bits from the bitmaps for reads to those for writes.
const WRITES: usize = 2048 * 8;

impl MsrBitmap {
    /// Every access exits.
    pub const fn exiting() -> Self {
        Self(Page::filled::<{ u64::MAX }>())
    }

    /// No access to an MSR of the two ranges exits.
    pub const fn passing() -> Self {
        Self(Page::filled::<0>())
    }

    /// Says whether an access exits.
    ///
    /// # Errors
    ///
    /// [`NotInBitmap`], if there is no choice.
    pub fn set(&self, index: u32, access: MsrAccess, exits: bool) -> Result<(), NotInBitmap> {
        self.0
            .put(bit(index, access).ok_or(NotInBitmap(index))?, exits);
        Ok(())
    }

    /// Whether an access exits, as the processor decides it.
    pub fn exits(&self, index: u32, access: MsrAccess) -> bool {
        bit(index, access).is_none_or(|bit| self.0.get(bit))
    }
}

impl fmt::Debug for MsrBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MsrBitmap").finish_non_exhaustive()
    }
}

const fn bit(index: u32, access: MsrAccess) -> Option<usize> {
    let bit = match index {
        0..RANGE => index,
        HIGH..=0xc000_1fff => index.saturating_sub(HIGH).saturating_add(RANGE),
        _ => return None,
    };
    Some(match access {
        MsrAccess::Read => bit as usize,
        MsrAccess::Write => (bit as usize).saturating_add(WRITES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_the_four_bitmaps_is_where_the_manual_puts_it() {
        // MSR, access, byte of the page, bit of the byte.
        let places = [
            (0, MsrAccess::Read, 0, 0),
            (0x1fff, MsrAccess::Read, 1023, 7),
            (0xc000_0000, MsrAccess::Read, 1024, 0),
            (0xc000_1fff, MsrAccess::Read, 2047, 7),
            (0x174, MsrAccess::Write, 2048 + 0x2e, 4),
            (0x1fff, MsrAccess::Write, 3071, 7),
            (0xc000_0080, MsrAccess::Write, 3072 + 0x10, 0),
            (0xc000_1fff, MsrAccess::Write, 4095, 7),
        ];
        for (msr, access, byte, bit) in places {
            let bitmap = MsrBitmap::passing();
            bitmap.set(msr, access, true).unwrap();
            let set: Vec<_> = (0..4096).filter(|&at| bitmap.0.byte(at) != 0).collect();
            assert_eq!(set, [byte], "MSR {msr:#x}");
            assert_eq!(bitmap.0.byte(byte), 1 << bit, "MSR {msr:#x}");
            let other = match access {
                MsrAccess::Read => MsrAccess::Write,
                MsrAccess::Write => MsrAccess::Read,
            };
            assert!(bitmap.exits(msr, access) && !bitmap.exits(msr, other));
            bitmap.set(msr, access, false).unwrap();
            assert!(!bitmap.exits(msr, access));
        }
    }

    #[test]
    fn outside_the_ranges_there_is_no_choice() {
        for bitmap in [MsrBitmap::passing(), MsrBitmap::exiting()] {
            for msr in [0x2000, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, u32::MAX] {
                for access in [MsrAccess::Read, MsrAccess::Write] {
                    assert_eq!(bitmap.set(msr, access, false), Err(NotInBitmap(msr)));
                    assert!(bitmap.exits(msr, access));
                }
            }
        }
        assert!(MsrBitmap::exiting().exits(0x10, MsrAccess::Read));
        assert!(!MsrBitmap::passing().exits(0x10, MsrAccess::Read));
    }

    #[test]
    fn it_is_one_page() {
        assert_eq!(
            (size_of::<MsrBitmap>(), align_of::<MsrBitmap>()),
            (4096, 4096)
        );
        assert!((0..4096).all(|at| MsrBitmap::exiting().0.byte(at) == 0xff));
    }
}
