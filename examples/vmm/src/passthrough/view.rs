// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The configuration space that the guest sees in place of the function's own.
//!
//! ```text
//!   who the function is          as in the function
//!   memory BARs                  as large as in the function, at addresses of the guest's choice
//!   I/O BARs, expansion ROM      absent
//!   MSI, MSI-X, PCI Express      ours, at the function's offsets
//!   vendor-specific              the function's, read and written
//!   other capabilities           absent: power management, VPD, all extended ones
//! ```
//!
//! What is absent reads 0. A capability is absent because nobody here answers for what it does: power
//! management would take the registers away under the guest's own mapping of them.

use super::bars::BarLayout;
use super::capabilities::{self, Capability, EXPRESS, VENDOR};
use super::hardware::{PhysicalFunction, Region};
use hvkit_virtio_devices::pci::bar::BarKind;
use hvkit_virtio_devices::pci::config::{ConfigSpace, Identity};
use hvkit_virtio_devices::pci::msi::AddressWidth;
use hvkit_virtio_devices::pci::{msi, msix};
use std::ops::Range;

const HEADER_TYPE: usize = 0x0e;
const BARS: u8 = 6;
const BAR_0: usize = 0x10;
/// "Base Addresses": bit 0 I/O; of memory, bits 2:1 the type and bit 3 prefetchable.
const IO: u8 = 1;
const TYPE: u8 = 6;
const TYPE_64: u8 = 4;
const PREFETCHABLE: u8 = 8;

/// Bytes of address space that the machine has for base address registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB.
    pub low: u64,
    /// Above.
    pub high: u64,
}

/// A function that cannot be shown to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// A bridge, or something newer.
    #[error("its header has type {0}: only endpoints (type 0) can be passed through")]
    HeaderType(u8),
    /// The guest has no room for the registers.
    #[error("its BAR {bar} has {length} bytes, and the guest's window for it {window}")]
    BarTooLarge {
        /// Which base address register.
        bar: u8,
        /// Bytes.
        length: u64,
        /// Bytes of the largest window it could be in.
        window: u64,
    },
}

/// An MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsiShape {
    pub(super) offset: u8,
    pub(super) count: u16,
    pub(super) width: AddressWidth,
}

/// An MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MsixShape {
    pub(super) offset: u8,
    pub(super) count: u16,
    pub(super) table: msix::Place,
    pub(super) pending: msix::Place,
}

/// What a function has, as read from it; nothing of it is believed that could not be.
#[derive(Debug)]
pub(super) struct View {
    raw: [u8; 256],
    /// The header; capabilities are added by those who answer for them.
    pub(super) config: ConfigSpace,
    pub(super) bars: [BarLayout; BARS as usize],
    pub(super) regions: [Region; BARS as usize],
    capabilities: Vec<Capability>,
}

impl View {
    pub(super) fn of(physical: &dyn PhysicalFunction, windows: Windows) -> Result<Self, ViewError> {
        let mut raw = [0; 256];
        for (dword, offset) in raw.chunks_exact_mut(4).zip((0u16..).step_by(4)) {
            physical.config_read(offset, dword);
        }
        let header = raw[HEADER_TYPE] & 0x7f;
        if header != 0 {
            return Err(ViewError::HeaderType(header));
        }
        let mut config = ConfigSpace::new(identity(&raw));
        if physical.has_pin() {
            config.set_interrupt_pin();
        }
        let mut view = View {
            raw,
            config,
            bars: Default::default(),
            regions: Default::default(),
            capabilities: capabilities::list(&raw),
        };
        view.add_bars(physical, windows)?;
        Ok(view)
    }

    fn add_bars(
        &mut self,
        physical: &dyn PhysicalFunction,
        windows: Windows,
    ) -> Result<(), ViewError> {
        let mut bar = 0;
        while bar < BARS {
            let index = usize::from(bar);
            let at = index.saturating_mul(4).saturating_add(BAR_0);
            let flags = self.raw.get(at).map_or(0, |low| low & 0xf);
            let wide = flags & (IO | TYPE) == TYPE_64;
            let region = physical.region(bar);
            let length = region.length;
            if flags & IO == 0 && length != 0 {
                let (kind, window) = match (wide, flags & PREFETCHABLE != 0) {
                    (true, true) => (BarKind::Memory64Prefetchable, windows.high.max(windows.low)),
                    (true, false) => (BarKind::Memory64, windows.high.max(windows.low)),
                    (false, _) => (BarKind::Memory32, windows.low),
                };
                if length > window {
                    return Err(ViewError::BarTooLarge {
                        bar,
                        length,
                        window,
                    });
                }
                match self.config.add_bar(bar, kind, length) {
                    Ok(()) => {
                        let mut places = self.bars.iter_mut().zip(&mut self.regions);
                        if let Some((layout, there)) = places.nth(index) {
                            *layout = BarLayout::new(length);
                            *there = region;
                        }
                    }
                    Err(error) => log::warn!("BAR {bar} is hidden: {error}"),
                }
            }
            bar = bar.saturating_add(if wide { 2 } else { 1 });
        }
        Ok(())
    }

    fn find(&self, id: u8) -> Option<u8> {
        let found = self.capabilities.iter().find(|c| c.id == id);
        found.map(|capability| capability.offset)
    }

    /// Up to four bytes of the function's own configuration space; 0 beyond its end.
    fn word(&self, offset: u8, bytes: u8) -> u32 {
        (0..bytes).rev().fold(0, |word, i| {
            let byte = self.raw.get(usize::from(offset).saturating_add(i.into()));
            word << 8 | u32::from(byte.copied().unwrap_or(0))
        })
    }

    pub(super) fn msi(&self) -> Option<MsiShape> {
        let offset = self.find(msi::CAPABILITY)?;
        let control = self.word(offset.checked_add(2)?, 2);
        Some(MsiShape {
            offset,
            count: (1 << (control >> 1 & 7)).min(msi::MAX_VECTORS),
            width: match control & 1 << 7 {
                0 => AddressWidth::Bits32,
                _ => AddressWidth::Bits64,
            },
        })
    }

    /// The MSI-X capability, if its structures lie where the function has registers. Their places
    /// are then known to [`bars`](Self::bars).
    pub(super) fn take_msix(&mut self) -> Option<MsixShape> {
        let offset = self.find(msix::CAPABILITY)?;
        let place = |word: u32| msix::Place {
            bar: (word & 7) as u8,
            offset: word & !7,
        };
        let last = (self.word(offset.checked_add(2)?, 2) & 0x7ff) as u16;
        let count = last.saturating_add(1);
        let table = place(self.word(offset.checked_add(4)?, 4));
        let pending = place(self.word(offset.checked_add(8)?, 4));
        let table_length = u64::from(count) * msix::ENTRY;
        let pending_length = u64::from(count).div_ceil(64).saturating_mul(8);
        let mut bars = self.bars.clone();
        let there = bars
            .get_mut(usize::from(table.bar))
            .is_some_and(|bar| bar.set_table(table.offset.into(), table_length))
            && bars
                .get_mut(usize::from(pending.bar))
                .is_some_and(|bar| bar.set_pending(pending.offset.into(), pending_length));
        if !there {
            log::warn!("MSI-X is hidden: {table:x?} and {pending:x?} are not in its BARs");
            return None;
        }
        self.bars = bars;
        Some(MsixShape {
            offset,
            count,
            table,
            pending,
        })
    }

    /// The PCI Express capability after its header, and what software may set of it.
    pub(super) fn express(&self) -> Option<(u8, Vec<u8>, Vec<u8>)> {
        let offset = self.find(EXPRESS)?;
        let word = |at: u8, bytes| offset.checked_add(at).map(|at| self.word(at, bytes));
        let flags = word(2, 2)?;
        let version = flags & 0xf;
        // A root complex integrated endpoint, for that is where it is: it has no link.
        let flags = version | 9 << 4;
        // Payload size, extended tags, role-based error reporting, and function level reset, which
        // any function here can do.
        let can = word(4, 4)? & (7 | 1 << 5 | 1 << 15) | 1 << 28;
        let control = word(8, 2)? & 0x7fff;
        let mut body = Vec::new();
        body.extend_from_slice(&flags.to_le_bytes()[..2]);
        body.extend_from_slice(&can.to_le_bytes());
        body.extend_from_slice(&control.to_le_bytes()[..2]);
        // Device Control, but not Initiate Function Level Reset, which reads 0.
        let writable = vec![0, 0, 0, 0, 0, 0, 0xff, 0x7f];
        // Device Status; from version 2 all registers are there, those of absent links and slots too.
        let length: usize = if version >= 2 { 0x3c } else { 0x0c };
        // Without identifier and link.
        body.resize(length.saturating_sub(2), 0);
        Some((offset, body, writable))
    }

    /// Vendor-specific capabilities: offset, and the bytes after the header.
    pub(super) fn vendor(&self) -> Vec<(u8, Vec<u8>)> {
        let all = self.capabilities.iter().filter(|c| c.id == VENDOR);
        all.filter_map(|c| {
            let start = usize::from(c.offset);
            let length = usize::from(*self.raw.get(start + 2)?);
            let body = self.raw.get(start + 2..start.checked_add(length)?)?;
            (length > 2).then(|| (c.offset, body.to_vec()))
        })
        .collect()
    }

    /// Adds a capability to what the guest sees, and says whether there was room.
    pub(super) fn add(&mut self, offset: u8, id: u8, body: &[u8], writable: &[u8]) -> bool {
        let added = self
            .config
            .add_capability_at(offset.into(), id, body, writable);
        if let Err(error) = &added {
            log::warn!("capability {id:#x} is hidden: {error}");
        }
        added.is_ok()
    }
}

/// Bytes that are the function's own, read and written.
pub(super) fn overlap(range: &Range<u16>, offset: u16, length: usize) -> Option<Range<u16>> {
    let end = u16::try_from(length)
        .ok()
        .and_then(|l| offset.checked_add(l))?;
    let common = range.start.max(offset)..range.end.min(end);
    (!common.is_empty()).then_some(common)
}

fn identity(raw: &[u8; 256]) -> Identity {
    let half = |at: usize| {
        let bytes = raw.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
    };
    Identity {
        vendor: half(0x00),
        device: half(0x02),
        revision: raw[0x08],
        class: u32::from_le_bytes([raw[0x09], raw[0x0a], raw[0x0b], 0]),
        subsystem_vendor: half(0x2c),
        subsystem: half(0x2e),
    }
}
