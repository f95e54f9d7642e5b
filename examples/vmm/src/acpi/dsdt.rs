// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The tree of devices that a guest cannot find by itself.
//!
//! Nothing here is a method: a guest reads constants and interprets no code.

use super::power::SLEEP_TYPE_OFF;
use super::{AcpiError, BUSES, Platform, Segment, VirtioWindow, empty};
use crate::machine::address_map::{ECAM_BASE, ECAM_BUS, PANIC_PORT, PCI_CONFIG_PORT};
use crate::pci::ports::PORTS;
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    PackageBuilder, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

/// Integers are 64 bits wide from this revision on.
const REVISION: u8 = 2;
const SERIAL_PORTS: u8 = 8;

pub(super) fn build(platform: &Platform) -> Result<Sdt, AcpiError> {
    let roots = platform.numbers().zip(&platform.segments);
    let roots: Vec<_> = roots.map(pci_root).collect::<Result<_, _>>()?;
    let board = board(platform);
    let panic = panic();
    let serial = serial(platform);
    let mut devices: Vec<&dyn Aml> = roots.iter().map(|root| root as &dyn Aml).collect();
    devices.extend([&board as &dyn Aml, &panic]);
    if let Some(serial) = &serial {
        devices.push(serial);
    }
    let virtio: Vec<_> = platform.virtio.iter().zip(0..).map(virtio).collect();
    devices.extend(virtio.iter().map(|device| device as &dyn Aml));
    let mut body = Vec::new();
    off().to_aml_bytes(&mut body);
    Scope::new("_SB_".into(), devices).to_aml_bytes(&mut body);
    let mut dsdt = empty(*b"DSDT", REVISION);
    dsdt.append_slice(&body);
    Ok(dsdt)
}

/// AML that is already bytes.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn encoded(aml: &dyn Aml) -> Encoded {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    Encoded(bytes)
}

/// The value for the sleep control register to switch off. "\\_Sx (System States)".
fn off() -> Encoded {
    let mut package = PackageBuilder::new();
    package.add_element(&SLEEP_TYPE_OFF);
    for _ in 0..3 {
        package.add_element(&ZERO);
    }
    encoded(&Name::new("_S5_".into(), &package))
}

/// The root bus of a segment and its windows. PCI Firmware Specification 3.3, "ACPI Methods for PCI
/// Host Bridges".
fn pci_root((number, segment): (u16, &Segment)) -> Result<Encoded, AcpiError> {
    let mut windows: Vec<Box<dyn Aml>> = Vec::new();
    for window in &segment.windows {
        let (start, end) = (window.start, window.end);
        let last = end.checked_sub(1).filter(|last| start <= *last);
        let last = last.ok_or(AcpiError::Window { start, end })?;
        // A prefetchable window would keep out BARs that are not.
        let cacheable = AddressSpaceCacheable::NotCacheable;
        windows.push(match (u32::try_from(start), u32::try_from(last)) {
            (Ok(start), Ok(last)) => {
                Box::new(AddressSpace::new_memory(cacheable, true, start, last, None))
            }
            _ => Box::new(AddressSpace::new_memory(cacheable, true, start, last, None)),
        });
    }
    let buses = AddressSpace::new_bus_number(0u16, BUSES - 1);
    let mut resources: Vec<&dyn Aml> = vec![&buses];
    // Taken by the first bridge itself: no window. They lead to segment 0 only.
    let ports = IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, PORTS);
    if number == 0 {
        resources.push(&ports);
    }
    resources.extend(windows.iter().map(|w| &**w));

    let express = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let conventional = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let unit = Name::new("_UID".into(), &number);
    let group = Name::new("_SEG".into(), &number);
    let bus = Name::new("_BBN".into(), &ZERO);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    let routes = interrupt_routes(segment);
    let mut children: Vec<&dyn Aml> =
        vec![&express, &conventional, &unit, &group, &bus, &resources];
    if let Some(routes) = &routes {
        children.push(routes);
    }
    let name = format!("PCI{number:X}");
    Ok(encoded(&Device::new(name.as_str().into(), children)))
}

/// "_PRT (PCI Routing Table)": for each pin device, pin, no link device, interrupt. None without
/// pins, so that there is nothing to evaluate.
fn interrupt_routes(segment: &Segment) -> Option<Encoded> {
    let mut table = PackageBuilder::new();
    for route in &segment.intx {
        let mut entry = PackageBuilder::new();
        // All functions of the device.
        entry.add_element(&(u32::from(route.device) << 16 | 0xffff));
        entry.add_element(&route.pin);
        entry.add_element(&ZERO);
        entry.add_element(&route.gsi);
        table.add_element(&entry);
    }
    (!segment.intx.is_empty()).then(|| encoded(&Name::new("_PRT".into(), &table)))
}

/// Memory that belongs to the board, so that no guest takes configuration space for free. PCI
/// Firmware Specification 3.3, "MCFG Table Description", wants it said here.
fn board(platform: &Platform) -> Encoded {
    let base = (ECAM_BASE & 0xffff_ffff) as u32;
    // At most 256 MiB.
    let buses = (platform.segments.len() as u64).saturating_mul(BUSES.into());
    let ecam = Memory32Fixed::new(true, base, buses.saturating_mul(ECAM_BUS) as u32);
    encoded(&Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    ))
}

/// The paravirtual panic port, under the name that its Linux driver looks for.
fn panic() -> Encoded {
    let port = IO::new(PANIC_PORT, PANIC_PORT, 1, 1);
    encoded(&Device::new(
        "PVPN".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    ))
}

fn serial(platform: &Platform) -> Option<Encoded> {
    let serial = platform.serial?;
    let ports = IO::new(serial.port, serial.port, 1, SERIAL_PORTS);
    // Consumer, edge-triggered, active high, exclusive.
    let interrupt = Interrupt::new(true, true, false, false, serial.gsi);
    Some(encoded(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &interrupt]),
            ),
        ],
    )))
}

/// A virtio device's window of registers and its interrupt, under the name that drivers of virtio-mmio look for.
fn virtio((window, number): (&VirtioWindow, u8)) -> Encoded {
    // Below 4 GiB; a window has 4 KiB.
    let registers = Memory32Fixed::new(true, window.base as u32, window.length as u32);
    // Consumer, level-triggered, active low, shared.
    let interrupt = Interrupt::new(true, false, true, true, window.gsi);
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    encoded(&Device::new(
        format!("VR{number:02X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            &Name::new("_CRS".into(), &resources),
        ],
    ))
}
