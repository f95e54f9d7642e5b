// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `hvkit inspect dmar`: firmware's description of the remapping units.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use hvkit_vtd_iommu::dmar::{
    AtsrFlags, Dmar, DrhdFlags, SatcFlags, Scope, ScopeKind, Scopes, Structure, StructureKind,
    TableFlags,
};
use serde::Serialize;

use crate::page::Page;
use crate::svg::{LINE, Svg, Tint};
use crate::{Found, Picture, input};

/// What to look at.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The table's bytes, such as /sys/firmware/acpi/tables/DMAR. `-` is the standard input.
    file: PathBuf,
    #[command(flatten)]
    picture: Picture,
}

/// The table in words.
#[derive(Debug, Default, Serialize)]
struct Table {
    revision: u8,
    host_address_bits: u32,
    flags: Vec<&'static str>,
    /// In the table's order.
    structures: Vec<Part>,
    /// What the specification forbids, and what cannot be read.
    wrong: Vec<String>,
}

/// One structure.
#[derive(Debug, Serialize)]
struct Part {
    kind: &'static str,
    /// Its numbers, in words.
    what: String,
    /// The PCI segment of its devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<u16>,
    devices: Vec<String>,
}

/// Prints a DMAR table.
pub(crate) fn inspect(options: &Options, page: &mut Page<'_>) -> Result<Found> {
    let bytes = input::read(&options.file)?;
    let table = Dmar::parse(&bytes).with_context(|| options.file.display().to_string())?;
    let table = Table::of(&table);
    if options.picture.json {
        page.json(&table)?;
    } else if options.picture.svg {
        page.svg(&table.svg())?;
    } else {
        page.text(&table.text())?;
    }
    Ok(if table.wrong.is_empty() {
        Found::Nothing
    } else {
        Found::Something
    })
}

impl Table {
    fn of(dmar: &Dmar<'_>) -> Self {
        let flags = [
            (TableFlags::INTR_REMAP, "interrupt remapping"),
            (
                TableFlags::X2APIC_OPT_OUT,
                "firmware asks not to use x2APIC",
            ),
            (
                TableFlags::DMA_CTRL_PLATFORM_OPT_IN,
                "firmware protects memory from DMA at boot",
            ),
        ];
        let flags = flags
            .into_iter()
            .filter(|(flag, _)| dmar.flags().contains(*flag));
        let mut table = Table {
            revision: dmar.revision(),
            host_address_bits: dmar.host_address_bits(),
            flags: flags.map(|(_, name)| name).collect(),
            ..Table::default()
        };
        let mut catch_alls = Vec::new();
        let mut last = StructureKind(0);
        for structure in dmar.structures() {
            let structure = match structure {
                Ok(structure) => structure,
                Err(error) => {
                    table.wrong.push(error.to_string());
                    break;
                }
            };
            let kind = kind_of(&structure);
            if kind < last {
                let (kind, last) = (kind.0, last.0);
                let wrong = format!("a structure of type {kind} comes after one of type {last}");
                table.wrong.push(wrong);
            }
            last = last.max(kind);
            if let Structure::Drhd(unit, _) = structure {
                if catch_alls.contains(&unit.segment) {
                    table.wrong.push(format!(
                        "the unit at {:#x} comes after that of all other devices of segment {}",
                        unit.base, unit.segment
                    ));
                }
                if unit.flags.contains(DrhdFlags::INCLUDE_PCI_ALL) {
                    catch_alls.push(unit.segment);
                }
                if !unit.base.is_multiple_of(unit.register_bytes()) {
                    let wrong = format!("the unit at {:#x} is not aligned to its size", unit.base);
                    table.wrong.push(wrong);
                }
            }
            table.add(structure);
        }
        table
    }

    fn add(&mut self, structure: Structure<'_>) {
        let (kind, what, segment, scopes) = match structure {
            Structure::Drhd(unit, scopes) => {
                let all = unit.flags.contains(DrhdFlags::INCLUDE_PCI_ALL);
                let all = if all {
                    ", all devices of no other unit"
                } else {
                    ""
                };
                let kib = unit.register_bytes() >> 10;
                let what = format!("registers at {:#x}, {kib} KiB{all}", unit.base);
                ("remapping unit", what, Some(unit.segment), Some(scopes))
            }
            Structure::Rmrr(memory, scopes) => {
                let what = format!("{:#x}-{:#x}", memory.base, memory.limit);
                if memory.span().is_none() {
                    let wrong = format!("reserved memory {what} is not whole pages");
                    self.wrong.push(wrong);
                }
                ("reserved memory", what, Some(memory.segment), Some(scopes))
            }
            Structure::Atsr(ports, scopes) => {
                let all = ports.flags.contains(AtsrFlags::ALL_PORTS);
                let what = if all {
                    "every root port"
                } else {
                    "these root ports"
                };
                ("ATS", what.to_owned(), Some(ports.segment), Some(scopes))
            }
            Structure::Rhsa(near) => {
                let what = format!(
                    "unit {:#x} is near proximity domain {}",
                    near.base, near.proximity_domain
                );
                ("affinity", what, None, None)
            }
            Structure::Andd(device) => {
                let name = String::from_utf8_lossy(device.name);
                let what = format!("number {} is {name}", device.device);
                ("named device", what, None, None)
            }
            Structure::Satc(caches, scopes) => {
                let required = caches.flags.contains(SatcFlags::ATC_REQUIRED);
                let what = if required { "required" } else { "optional" };
                let kind = "address translation caches";
                (kind, what.to_owned(), Some(caches.segment), Some(scopes))
            }
            Structure::Sidp(properties, scopes) => {
                let kind = "device properties";
                (kind, String::new(), Some(properties.segment), Some(scopes))
            }
            Structure::Unknown { kind, bytes } => {
                let what = format!("type {}, {} bytes", kind.0, bytes.len());
                ("unknown structure", what, None, None)
            }
        };
        let devices = scopes
            .map(|scopes| self.devices(scopes))
            .unwrap_or_default();
        self.structures.push(Part {
            kind,
            what,
            segment,
            devices,
        });
    }

    fn devices(&mut self, scopes: Scopes<'_>) -> Vec<String> {
        let mut devices = Vec::new();
        for scope in scopes {
            match scope {
                Ok(scope) => {
                    if scope.path.is_empty() {
                        let wrong = format!("{}: no path", device(&scope));
                        self.wrong.push(wrong);
                    }
                    devices.push(device(&scope));
                }
                Err(error) => self.wrong.push(error.to_string()),
            }
        }
        devices
    }

    fn text(&self) -> String {
        let mut text = format!(
            "DMAR revision {}, {}-bit addresses{}\n",
            self.revision,
            self.host_address_bits,
            self.flags
                .iter()
                .map(|flag| format!(", {flag}"))
                .collect::<String>()
        );
        for part in &self.structures {
            text += &part.line();
            text.push('\n');
            for device in &part.devices {
                // A string takes what is written to it.
                let _ = writeln!(text, "    {device}");
            }
        }
        for wrong in &self.wrong {
            let _ = writeln!(text, "WRONG: {wrong}");
        }
        text
    }

    /// Units on the left, their devices beside them; below, what else names devices.
    fn svg(&self) -> String {
        const LEFT: u32 = 10;
        const RIGHT: u32 = 560;
        const WIDTH: u32 = 460;
        let mut svg = Svg::default();
        let flags = self.flags.join(", ");
        let title = format!(
            "DMAR revision {}, {}-bit addresses, {flags}",
            self.revision, self.host_address_bits
        );
        svg.words(LEFT, 8, &title);
        let mut y = 38;
        for part in &self.structures {
            let tint = match part.kind {
                "remapping unit" => Tint::Unit,
                "reserved memory" => Tint::Memory,
                "unknown structure" => Tint::Wrong,
                _ => Tint::ReadOnly,
            };
            let mut lines = vec![match part.segment {
                Some(segment) => format!("{}, segment {segment}", part.kind),
                None => part.kind.to_owned(),
            }];
            if !part.what.is_empty() {
                lines.push(part.what.clone());
            }
            let height = svg.label(LEFT, y, WIDTH, tint, &lines);
            let mut below = y;
            for device in &part.devices {
                let line = [device.clone()];
                let box_height = svg.label(RIGHT, below, WIDTH, Tint::Device, &line);
                let middle = |y: u32, height: u32| y.saturating_add(height / 2);
                svg.line(
                    (LEFT + WIDTH, middle(y, height)),
                    (RIGHT, middle(below, box_height)),
                );
                below = below.saturating_add(box_height).saturating_add(6);
            }
            y = y.saturating_add(height).max(below).saturating_add(14);
        }
        for wrong in &self.wrong {
            svg.label(
                LEFT,
                y,
                WIDTH + RIGHT,
                Tint::Wrong,
                std::slice::from_ref(wrong),
            );
            y = y.saturating_add(LINE + 12);
        }
        svg.finish()
    }
}

impl Part {
    fn line(&self) -> String {
        let mut line = self.kind.to_owned();
        if let Some(segment) = self.segment {
            line += &format!(", segment {segment}");
        }
        if !self.what.is_empty() {
            line += &format!(": {}", self.what);
        }
        line
    }
}

fn kind_of(structure: &Structure<'_>) -> StructureKind {
    match structure {
        Structure::Drhd(..) => StructureKind::DRHD,
        Structure::Rmrr(..) => StructureKind::RMRR,
        Structure::Atsr(..) => StructureKind::ATSR,
        Structure::Rhsa(_) => StructureKind::RHSA,
        Structure::Andd(_) => StructureKind::ANDD,
        Structure::Satc(..) => StructureKind::SATC,
        Structure::Sidp(..) => StructureKind::SIDP,
        Structure::Unknown { kind, .. } => *kind,
    }
}

/// A device in words: what it is, and its path from the host bridge of its bus.
fn device(scope: &Scope<'_>) -> String {
    let kind = match scope.kind {
        ScopeKind::ENDPOINT => "endpoint".to_owned(),
        ScopeKind::SUB_HIERARCHY => "bridge and all behind it".to_owned(),
        ScopeKind::IO_APIC => format!("I/O APIC {}", scope.enumeration_id),
        ScopeKind::HPET => format!("HPET {}", scope.enumeration_id),
        ScopeKind::NAMED => format!("named device {}", scope.enumeration_id),
        ScopeKind(kind) => format!("device of type {kind}"),
    };
    let path: Vec<_> = scope
        .path
        .steps()
        .map(|(device, function)| format!("{device:02x}.{function:x}"))
        .collect();
    let flags = match scope.flags {
        0 => String::new(),
        flags => format!(", flags {flags:#x}"),
    };
    format!("{kind} {:02x}:{}{flags}", scope.start_bus, path.join("/"))
}
