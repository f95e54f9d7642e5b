// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! ACPI: what the guest is told about the machine, and the registers that switch it off.
//!
//! ```text
//!   RSDP -> XSDT -> FADT -> DSDT   PCI root, serial port, the sleep state "off"
//!                -> MADT           processors and interrupt controllers
//!                -> MCFG           PCI configuration space, by segment
//!                -> WDAT           the watchdog, if there is one
//!                -> DMAR           the remapping units, if there are any
//!                -> VIOT           the virtio-iommu, if there is one
//! ```
//!
//! The platform is hardware-reduced: no SCI, no PM timer, no fixed events, no FACS. That is less to
//! emulate and less for a guest to set up. Sleep and reset are byte registers on ports.
//!
//! ACPI Specification 6.5; sections are cited by title.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

mod dsdt;
mod fadt;
mod madt;
pub mod power;
mod wdat;

use crate::machine::address_map;
use crate::pci::intx;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, sdt::Sdt};
use std::ops::Range;

/// Whose tables these are.
pub(crate) const OEM_ID: [u8; 6] = *b"HVKIT ";
/// Which machine's.
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"HVKITVMM";
/// Its revision.
pub(crate) const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this; the root pointer must, so that a search finds it.
const ALIGN: u64 = 16;
/// Bytes of the root pointer.
const RSDP_LENGTH: usize = 36;
/// Bytes of a table's header.
const HEADER_LENGTH: u32 = 36;

/// Buses of a segment that the guest is told of: the root bus has no bridge to another.
pub const BUSES: u16 = 1;

/// The parts of the machine that differ from one to the next; the rest is the address map's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Local APIC identifiers of the processors, the boot processor's first.
    pub apic_ids: Vec<u32>,
    /// Whether there are the two 8259s.
    pub has_pics: bool,
    /// The PCI roots, segment 0's first.
    pub segments: Vec<Segment>,
    /// The first serial port, if there is one.
    pub serial: Option<SerialPort>,
    /// The first port of the watchdog, if there is one.
    pub watchdog: Option<u16>,
    /// Virtio devices that are not on PCI.
    pub virtio: Vec<VirtioWindow>,
    /// Tables that others have written, checksums and all.
    pub others: Vec<Vec<u8>>,
}

/// A PCI root: a host bridge, its bus and what is on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its windows of memory.
    pub windows: Vec<Range<u64>>,
    /// The interrupt pins of its devices that are in use.
    pub intx: Vec<intx::Route>,
}

/// A 16550 on eight ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Its first port.
    pub port: u16,
    /// Its interrupt, edge-triggered and active high.
    pub gsi: u32,
}

/// The registers of a virtio device that is not on PCI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioWindow {
    /// Address of the first register, below 4 GiB.
    pub base: u64,
    /// Bytes.
    pub length: u64,
    /// Its interrupt, level-triggered, active low and shared, as those of PCI.
    pub gsi: u32,
}

impl Platform {
    /// Numbers of the segments.
    fn numbers(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.segments).map(|(number, _)| number)
    }
}

/// Tables, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// Guest-physical address of the first byte, which is also the root pointer's.
    pub address: u64,
    /// All tables, to be written there.
    pub bytes: Vec<u8>,
}

/// A platform that cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// The tables would not fit.
    #[error("{length} bytes of ACPI tables do not fit in {room} bytes")]
    TooLarge {
        /// Bytes needed.
        length: u64,
        /// Bytes there.
        room: u64,
    },
    /// The tables may not begin here.
    #[error("ACPI tables cannot begin at {address:#x}")]
    Address {
        /// Where they were to begin.
        address: u64,
    },
    /// A window of the PCI root is empty.
    #[error("{start:#x}..{end:#x} is no window")]
    Window {
        /// Its first address.
        start: u64,
        /// The address behind it.
        end: u64,
    },
}

/// Writes the tables that describe `platform`, to lie inside `area` from its first byte on.
pub fn build(platform: &Platform, area: Range<u64>) -> Result<Tables, AcpiError> {
    let Range { start, end } = area;
    if !start.is_multiple_of(ALIGN) || end < start {
        return Err(AcpiError::Address { address: start });
    }
    let mut layout = Layout {
        start,
        bytes: vec![0; RSDP_LENGTH],
    };
    let dsdt = layout.append(dsdt::build(platform)?.as_slice());
    let mut tables = vec![
        bytes_of(&fadt::build(dsdt)),
        madt::build(platform).as_slice().to_vec(),
        bytes_of(&mcfg(platform)),
    ];
    tables.extend(
        platform
            .watchdog
            .map(|port| wdat::build(port).as_slice().to_vec()),
    );
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables.iter().chain(&platform.others) {
        xsdt.add_entry(layout.append(table));
    }
    let xsdt = layout.append(&bytes_of(&xsdt));
    let mut bytes = layout.bytes;
    // Room was left for it in front.
    for (to, from) in bytes.iter_mut().zip(bytes_of(&Rsdp::new(OEM_ID, xsdt))) {
        *to = from;
    }
    let (length, room) = (bytes.len() as u64, end.saturating_sub(start));
    if length > room {
        return Err(AcpiError::TooLarge { length, room });
    }
    Ok(Tables {
        address: start,
        bytes,
    })
}

/// Where each table comes to lie.
struct Layout {
    start: u64,
    bytes: Vec<u8>,
}

impl Layout {
    /// Puts a table behind the others and says at which address.
    fn append(&mut self, table: &[u8]) -> u64 {
        let offset = (self.bytes.len() as u64).next_multiple_of(ALIGN);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN as usize), 0);
        self.bytes.extend_from_slice(table);
        // Whether this is inside the area is decided once all tables are there.
        self.start.wrapping_add(offset)
    }
}

/// PCI Firmware Specification 3.3, "MCFG Table Description".
fn mcfg(platform: &Platform) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let last = u8::try_from(BUSES - 1).unwrap_or(u8::MAX);
    for (number, base) in platform.numbers().zip(ecams()) {
        mcfg.add_ecam(base, number, 0, last);
    }
    mcfg
}

/// Where the configuration spaces of segments are, one behind the other.
fn ecams() -> impl Iterator<Item = u64> {
    let length = u64::from(BUSES).saturating_mul(address_map::ECAM_BUS);
    (0u64..).map(move |number| {
        length
            .saturating_mul(number)
            .saturating_add(address_map::ECAM_BASE)
    })
}

/// A table of `signature` with a header and no contents yet.
fn empty(signature: [u8; 4], revision: u8) -> Sdt {
    Sdt::new(
        signature,
        HEADER_LENGTH,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    )
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
