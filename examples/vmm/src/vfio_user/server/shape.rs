// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a function has, found out as software does: by its configuration space.
//!
//! PCI Local Bus 3.0, "Base Addresses", "MSI-X Capability and Table Structures".

use hvkit_virtio_devices::pci::config::register;
use hvkit_virtio_devices::pci::{PciFunction, msix};

/// Base address registers.
pub(super) const BARS: usize = 6;
const CAPABILITIES: u16 = 48;
/// A base address register: I/O, and of memory the type.
const IO: u32 = 1;
const TYPE: u32 = 6;
const TYPE_64: u32 = 4;

/// Where MSI-X is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixPlace {
    pub(super) capability: u16,
    pub(super) bar: u8,
    pub(super) table: u64,
}

/// How many bytes each base address register leads to. They are left as they were.
pub(super) fn bar_lengths(function: &mut dyn PciFunction) -> [u64; BARS] {
    let mut lengths = [0; BARS];
    let mut bar = 0;
    while bar < BARS {
        let at = |bar: usize| register::BARS.saturating_add((bar as u16).saturating_mul(4));
        let (low, mask) = size(function, at(bar));
        let next = bar.saturating_add(1);
        let wide = low & (IO | TYPE) == TYPE_64 && next < BARS;
        let high = match wide {
            true => size(function, at(next)).1,
            false => u32::MAX,
        };
        let mask = u64::from(high) << 32 | u64::from(mask & !0xf);
        let is_there =
            low & IO == 0 && mask & 0xffff_ffff != 0 || wide && high != 0 && high != u32::MAX;
        if let Some(length) = lengths.get_mut(bar).filter(|_| is_there) {
            *length = (!mask).wrapping_add(1);
        }
        bar = bar.saturating_add(if wide { 2 } else { 1 });
    }
    lengths
}

/// A register, and what of it software can set.
fn size(function: &mut dyn PciFunction, at: u16) -> (u32, u32) {
    let before = word(function, at);
    function.config_write(at, &[0xff; 4]);
    let mask = word(function, at);
    function.config_write(at, &before.to_le_bytes());
    (before, mask)
}

fn word(function: &mut dyn PciFunction, at: u16) -> u32 {
    let mut bytes = [0; 4];
    function.config_read(at, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// The MSI-X capability and its table, if there is one.
pub(super) fn msix_place(function: &mut dyn PciFunction) -> Option<MsixPlace> {
    let mut at = word(function, register::CAPABILITIES) as u16 & 0xfc;
    for _ in 0..CAPABILITIES {
        if at < 0x40 {
            return None;
        }
        let head = word(function, at);
        if head & 0xff == u32::from(msix::CAPABILITY) {
            let table = word(function, at.saturating_add(4));
            return Some(MsixPlace {
                capability: at,
                bar: (table & 7) as u8,
                table: (table & !7).into(),
            });
        }
        at = (head >> 8) as u16 & 0xfc;
    }
    None
}
