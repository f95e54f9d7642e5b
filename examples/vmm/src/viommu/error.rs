// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user can ask of units and segments and not get: one line each.

use crate::machine::address_map::MOST_UNITS;
use hvkit_vtd_iommu::dmar::BuildError;
use hvkit_vtd_iommu::emulation::OptionsError;

/// A remapping unit, or a device behind it, that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// There is nothing that the device could be behind.
    #[error("--{option}: {name} has iommu=on, and there is no remapping unit: add --vtd{}", of(*segment))]
    NoUnit {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
        /// Its segment.
        segment: u16,
    },
    /// Nothing has the name that the device says it is behind.
    #[error("--{option}: {name} has iommu={id}, which is neither on nor off nor the id of a --vtd")]
    UnknownUnit {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
        /// What it names.
        id: String,
    },
    /// The unit is elsewhere.
    #[error(
        "--{option}: {name} is on PCI segment {segment}, and --vtd id={id} on segment {theirs}"
    )]
    OtherSegment {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
        /// Its segment.
        segment: u16,
        /// The unit.
        id: String,
        /// The unit's segment.
        theirs: u16,
    },
    /// There is no such segment.
    #[error(
        "--{option}: {name} has pci_segment={segment}, and --platform num_pci_segments={count}"
    )]
    NoSegment {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
        /// Its segment.
        segment: u16,
        /// How many there are.
        count: u16,
    },
    /// Virtio devices of windows of registers are on no segment.
    #[error("--{option}: {name} has pci_segment={segment}, which --transport mmio has none of")]
    NotOnPci {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
        /// Its segment.
        segment: u16,
    },
    /// Two units of one name.
    #[error("--vtd: id={0} is given twice")]
    SameId(String),
    /// Two units with one segment.
    #[error(
        "--vtd: two units have PCI segment {0}: give one of them scope=named and an id for devices to name, or another pci_segment"
    )]
    SameSegment(u16),
    /// A unit that nothing can name.
    #[error("--vtd: scope=named needs an id for devices to name")]
    Nameless,
    /// A unit that nothing names.
    #[error("--vtd: id={0} has scope=named, and no device has iommu={0}")]
    NamedByNone(String),
    /// Interrupts are remapped by all units or by none.
    #[error("--vtd: intremap=on and intremap=off: interrupts are remapped by all units or by none")]
    SomeInterrupts,
    /// More than fit.
    #[error("--vtd: {0} units are too many: {MOST_UNITS} are possible")]
    TooMany(usize),
    /// The device is not behind the unit, whose table says that it is.
    #[error(
        "--{option}: {name}: with --vtd, the guest believes that the device's DMA is translated: add iommu=on"
    )]
    Outside {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
    },
    /// Nothing tells the unit what the guest maps for a device of the host, or of another process.
    #[error("--{option}: {name} has iommu=on, which needs --vtd caching=on")]
    NotCaching {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
    },
    /// A virtio-iommu tells nobody what the guest maps.
    #[error("--{option}: {name} has iommu=on, which needs --vtd caching=on, not --virtio-iommu")]
    NotTold {
        /// The option.
        option: &'static str,
        /// The device.
        name: String,
    },
    /// No first stage.
    #[error("--vtd: aw={bits} is too narrow for scalable=on, whose tables have 48 bits or more")]
    NarrowScalable {
        /// Bits of address.
        bits: u8,
    },
    /// No such unit.
    #[error("--vtd: {0}")]
    Options(#[from] OptionsError),
    /// No such table.
    #[error("--vtd: {0}")]
    Table(#[from] BuildError),
}

fn of(segment: u16) -> String {
    match segment {
        0 => String::new(),
        other => format!(" pci_segment={other}"),
    }
}
