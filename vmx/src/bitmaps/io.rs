// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! I/O bitmaps. SDM Vol. 3C, "I/O-Bitmap Addresses".

use core::fmt;
use core::ops::RangeInclusive;

use super::{BITS, Page};

/// Which ports exit: bitmap A for 0000H..7FFFH, and behind it bitmap B for 8000H..FFFFH, a page each.
///
/// ```
/// use hvkit_vmx::bitmaps::IoBitmaps;
///
/// static PORTS: IoBitmaps = IoBitmaps::passing();
/// PORTS.set(0xcf8..=0xcff, true);
/// assert!(PORTS.exits(0xcf8, 4) && !PORTS.exits(0x3f8, 1));
/// assert!(PORTS.exits(0xcf7, 2)); // its second byte is port cf8H
/// ```
#[repr(C, align(4096))]
pub struct IoBitmaps([Page; 2]);

impl IoBitmaps {
    /// From the address of bitmap A to that of bitmap B.
    pub const B: u64 = 4096;

    /// Every access exits.
    pub const fn exiting() -> Self {
        Self([
            Page::filled::<{ u64::MAX }>(),
            Page::filled::<{ u64::MAX }>(),
        ])
    }

    /// No access exits, but one that runs past port FFFFH.
    pub const fn passing() -> Self {
        Self([Page::filled::<0>(), Page::filled::<0>()])
    }

    /// Says whether accesses to any of these ports exit.
    pub fn set(&self, ports: RangeInclusive<u16>, exits: bool) {
        for port in ports {
            let port = usize::from(port);
            // Two pages have a bit for each of 65,536 ports.
            if let Some(page) = self.0.get(port / BITS) {
                page.put(port % BITS, exits);
            }
        }
    }

    /// Whether an access of `bytes` (1, 2 or 4) to `port` exits, as the processor decides it: if the bit of any byte is
    /// set, or if it wraps around port FFFFH.
    pub fn exits(&self, port: u16, bytes: u8) -> bool {
        let port = usize::from(port);
        (port..port.saturating_add(usize::from(bytes))).any(|port| {
            self.0
                .get(port / BITS)
                .is_none_or(|page| page.get(port % BITS))
        })
    }
}

impl fmt::Debug for IoBitmaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBitmaps").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_bit_of_one_of_two_pages() {
        for (port, page, byte, bit) in [
            (0, 0, 0, 0),
            (0x3f8, 0, 0x7f, 0),
            (0x7fff, 0, 4095, 7),
            (0x8000, 1, 0, 0),
            (0x8900, 1, 0x120, 0),
            (0xffff, 1, 4095, 7),
        ] {
            let ports = IoBitmaps::passing();
            ports.set(port..=port, true);
            let set: Vec<_> = (0..8192)
                .filter(|&at| ports.0[at / 4096].byte(at % 4096) != 0)
                .collect();
            assert_eq!(set, [page * 4096 + byte]);
            assert_eq!(ports.0[page].byte(byte), 1 << bit);
            ports.set(port..=port, false);
            assert!(!ports.exits(port, 1));
        }
        assert_eq!(
            (size_of::<IoBitmaps>(), align_of::<IoBitmaps>()),
            (8192, 4096)
        );
    }

    #[test]
    fn an_access_exits_for_any_of_its_bytes() {
        let ports = IoBitmaps::passing();
        ports.set(0x8000..=0x8000, true);
        assert!(ports.exits(0x7fff, 2) && ports.exits(0x7ffd, 4) && ports.exits(0x8000, 1));
        assert!(!ports.exits(0x7ffc, 4) && !ports.exits(0x8001, 4));
    }

    #[test]
    fn a_wrap_exits_whatever_the_bits() {
        let ports = IoBitmaps::passing();
        assert!(ports.exits(0xffff, 2) && ports.exits(0xfffd, 4));
        assert!(!ports.exits(0xffff, 1) && !ports.exits(0xfffc, 4));
        assert!(IoBitmaps::exiting().exits(0x80, 1));
    }
}
