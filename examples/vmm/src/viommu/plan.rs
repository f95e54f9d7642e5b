// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which device is behind which unit, by what the user says; and what of it contradicts itself.

use super::UnitError;
use crate::config::{Config, Dma, Place, Rings, Scope, Transport, VirtioIommu, Vtd};
use crate::interrupts::UnitNumber;
use crate::machine::address_map::MOST_UNITS;
use std::collections::BTreeSet;

/// The unit in whose scope a device at `place` is; none: nothing of it is translated or remapped.
#[must_use]
pub fn unit_of(vtds: &[Vtd], place: &Place) -> Option<UnitNumber> {
    let found = match &place.unit {
        Some(_) => vtds.iter().position(|vtd| vtd.id == place.unit),
        None => vtds
            .iter()
            .position(|vtd| vtd.scope == Scope::Segment && vtd.segment == place.segment),
    };
    found.map(UnitNumber)
}

/// The unit that has the I/O APIC, if there is a unit: that of segment 0, or the first.
#[must_use]
pub fn unit_of_io_apic(vtds: &[Vtd]) -> Option<UnitNumber> {
    let first = (!vtds.is_empty()).then_some(UnitNumber(0));
    unit_of(vtds, &Place::default()).or(first)
}

/// A device, as far as units and segments go.
struct Device<'a> {
    option: &'static str,
    name: String,
    dma: Dma,
    place: &'a Place,
    kind: Kind,
}

/// By whom a device is served, and what that asks of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A virtio device of ours: it asks the unit each time.
    Ours,
    /// A virtio device of another process, which has to be told of each change.
    Served,
    /// The host's, or another process's PCI device: likewise, and it has no memory but through its unit.
    Physical,
}

/// Where devices are that do not say.
static ANYWHERE: Place = Place {
    segment: 0,
    unit: None,
    rings: Rings::Both,
};

/// All devices of `config` that say where they are.
fn devices(config: &Config) -> Vec<Device<'_>> {
    let virtio = |option, name, dma, place| Device {
        option,
        name,
        dma,
        place,
        kind: Kind::Ours,
    };
    let file = |path: &std::path::Path| path.display().to_string();
    let mut devices = Vec::new();
    for disk in &config.disks {
        devices.push(virtio("disk", file(&disk.path), disk.dma, &disk.place));
    }
    for net in &config.nets {
        devices.push(virtio("net", net.wire.to_string(), net.dma, &net.place));
    }
    if let Some(vsock) = &config.vsock {
        devices.push(virtio(
            "vsock",
            file(&vsock.socket),
            vsock.dma,
            &vsock.place,
        ));
    }
    if let Some(rng) = &config.rng {
        devices.push(virtio("rng", file(&rng.source), rng.dma, &rng.place));
    }
    for served in &config.served {
        devices.push(Device {
            option: served.what.option(),
            name: file(&served.socket),
            dma: served.dma,
            place: &ANYWHERE,
            kind: Kind::Served,
        });
    }
    for asked in &config.back_ends {
        let name = file(&asked.socket);
        devices.push(virtio("vhost-user-backend", name, asked.dma, &ANYWHERE));
    }
    for pmem in &config.pmems {
        devices.push(virtio("pmem", file(&pmem.path), Dma::Direct, &pmem.place));
    }
    let console = "the console".to_owned();
    devices.push(virtio(
        "console",
        console,
        config.console_dma,
        &config.console_place,
    ));
    for device in &config.devices {
        devices.push(Device {
            option: "device",
            name: device.id.clone().unwrap_or_else(|| file(&device.path)),
            dma: device.dma,
            place: &device.place,
            kind: Kind::Physical,
        });
    }
    for device in &config.user_devices {
        devices.push(Device {
            option: "user-device",
            name: device.name(),
            dma: device.dma,
            place: &device.place,
            kind: Kind::Physical,
        });
    }
    devices
}

/// Whether the devices of `config`, its segments and its remapping units go together.
///
/// # Errors
///
/// The first unit or device that does not.
pub fn check(config: &Config) -> Result<(), UnitError> {
    let vtds = &config.vtds[..];
    check_units(vtds)?;
    let devices = devices(config);
    for vtd in vtds {
        if vtd.segment >= config.segments {
            return Err(UnitError::NoSegment {
                option: "vtd",
                name: vtd.id.clone().unwrap_or_else(|| "the unit".to_owned()),
                segment: vtd.segment,
                count: config.segments,
            });
        }
    }
    for device in &devices {
        check_device(config, device)?;
    }
    let named = |vtd: &&Vtd| devices.iter().any(|device| device.place.unit == vtd.id);
    match vtds
        .iter()
        .find(|vtd| vtd.scope == Scope::Named && !named(vtd))
    {
        Some(Vtd { id: Some(id), .. }) => Err(UnitError::NamedByNone(id.clone())),
        Some(_) => Err(UnitError::Nameless),
        None => Ok(()),
    }
}

fn check_units(vtds: &[Vtd]) -> Result<(), UnitError> {
    if vtds.len() > MOST_UNITS {
        return Err(UnitError::TooMany(vtds.len()));
    }
    let mut ids = BTreeSet::new();
    let mut segments = BTreeSet::new();
    for vtd in vtds {
        match &vtd.id {
            Some(id) if !ids.insert(id) => return Err(UnitError::SameId(id.clone())),
            None if vtd.scope == Scope::Named => return Err(UnitError::Nameless),
            _ => {}
        }
        if vtd.scope == Scope::Segment && !segments.insert(vtd.segment) {
            return Err(UnitError::SameSegment(vtd.segment));
        }
    }
    match vtds.first() {
        Some(first) if vtds.iter().any(|vtd| vtd.interrupts != first.interrupts) => {
            Err(UnitError::SomeInterrupts)
        }
        _ => Ok(()),
    }
}

fn check_device(config: &Config, device: &Device<'_>) -> Result<(), UnitError> {
    let (option, name) = (device.option, || device.name.clone());
    let segment = device.place.segment;
    if segment >= config.segments {
        return Err(UnitError::NoSegment {
            option,
            name: name(),
            segment,
            count: config.segments,
        });
    }
    if segment > 0 && config.transport == Transport::Mmio && device.kind != Kind::Physical {
        let name = name();
        return Err(UnitError::NotOnPci {
            option,
            name,
            segment,
        });
    }
    let unit = unit_of(&config.vtds, device.place);
    let unit = unit.and_then(|number| config.vtds.get(number.0));
    match (unit, &device.place.unit) {
        (None, Some(id)) => {
            return Err(UnitError::UnknownUnit {
                option,
                name: name(),
                id: id.clone(),
            });
        }
        (Some(vtd), Some(id)) if vtd.segment != segment => {
            return Err(UnitError::OtherSegment {
                option,
                name: name(),
                segment,
                id: id.clone(),
                theirs: vtd.segment,
            });
        }
        (None, None) if device.dma == Dma::Translated => {
            if config.virtio_iommu == VirtioIommu::Present && segment == 0 {
                return match device.kind {
                    Kind::Ours => Ok(()),
                    Kind::Served | Kind::Physical => Err(UnitError::NotTold {
                        option,
                        name: name(),
                    }),
                };
            }
            return Err(UnitError::NoUnit {
                option,
                name: name(),
                segment,
            });
        }
        _ => {}
    }
    let Some(vtd) = unit else { return Ok(()) };
    let told = match device.kind {
        Kind::Ours => false,
        Kind::Served => device.dma == Dma::Translated,
        Kind::Physical => true,
    };
    match (told, device.kind, device.dma) {
        (true, ..) if !vtd.caching => Err(UnitError::NotCaching {
            option,
            name: name(),
        }),
        (_, Kind::Physical, Dma::Direct) => Err(UnitError::Outside {
            option,
            name: name(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
