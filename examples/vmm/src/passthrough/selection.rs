// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The devices that a user names, looked at before anything of the machine is made.

use super::error::PassthroughError;
use super::host::{HostFunction, VFIO};
use crate::config::{HostDevice, Iommufd};
use std::fmt;
use std::path::{Path, PathBuf};

/// The file of iommufd's.
const IOMMU: &str = "/dev/iommu";

/// By which of VFIO's interfaces a device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// By its group, into a container.
    Group,
    /// By its character device, into an address space of iommufd's. Linux from 6.6 on, where the kernel was built with it.
    Cdev,
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Interface::Group => "VFIO's group",
            Interface::Cdev => "iommufd",
        })
    }
}

/// A device that may be passed through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// What the user calls it.
    pub name: String,
    /// Where it is.
    pub host: HostFunction,
    /// How it is opened.
    pub interface: Interface,
}

/// Looks at each device; none may be named twice.
pub fn select(devices: &[HostDevice]) -> Result<Vec<Selected>, PassthroughError> {
    let mut selected: Vec<Selected> = Vec::with_capacity(devices.len());
    for device in devices {
        let host = HostFunction::find(&device.path)?;
        if selected.iter().any(|other| other.host.path == host.path) {
            return Err(PassthroughError::Twice(host.address));
        }
        let name = device.id.clone().unwrap_or_else(|| host.address.clone());
        if selected.iter().any(|other| other.name == name) {
            return Err(PassthroughError::SameName(name));
        }
        let interface = interface(&host, device.iommufd, Path::new(IOMMU))?;
        let neighbour = selected
            .iter()
            .find(|other| other.host.group == host.group && other.interface != interface);
        if let Some(other) = neighbour {
            return Err(PassthroughError::TwoInterfaces {
                address: host.address,
                other: other.host.address.clone(),
                group: host.group,
            });
        }
        selected.push(Selected {
            name,
            host,
            interface,
        });
    }
    Ok(selected)
}

/// How the device of `host` is opened, where iommufd's file would be `iommu`.
fn interface(
    host: &HostFunction,
    asked: Iommufd,
    iommu: &Path,
) -> Result<Interface, PassthroughError> {
    let missing: Option<PathBuf> = match &host.cdev {
        None => Some(Path::new(VFIO).join("devices/vfioN")),
        Some(_) => (!iommu.exists()).then(|| iommu.to_owned()),
    };
    match (asked, missing) {
        (Iommufd::Off, _) | (Iommufd::Auto, Some(_)) => Ok(Interface::Group),
        (Iommufd::Auto | Iommufd::On, None) => Ok(Interface::Cdev),
        (Iommufd::On, Some(missing)) => Err(PassthroughError::NoCdev {
            address: host.address.clone(),
            missing,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_interface_is_taken_where_the_host_has_all_of_it() {
        let here = tempfile::NamedTempFile::new().unwrap();
        let nowhere = Path::new("/nonexistent/iommu");
        let host = |cdev: Option<&Path>| HostFunction {
            address: "0000:01:00.0".to_owned(),
            path: "/".into(),
            group: 7,
            cdev: cdev.map(Path::to_owned),
        };
        let (with, without) = (host(Some(here.path())), host(None));
        let chosen = |host, asked, iommu| interface(host, asked, iommu).map_err(|e| e.to_string());
        assert_eq!(
            chosen(&with, Iommufd::Auto, here.path()),
            Ok(Interface::Cdev)
        );
        assert_eq!(chosen(&with, Iommufd::On, here.path()), Ok(Interface::Cdev));
        for (host, iommu, missing) in [
            (&with, nowhere, "no /nonexistent/iommu;"),
            (&without, here.path(), "no /dev/vfio/devices/vfioN;"),
        ] {
            assert_eq!(chosen(host, Iommufd::Auto, iommu), Ok(Interface::Group));
            let line = chosen(host, Iommufd::On, iommu).unwrap_err();
            for part in [missing, "0000:01:00.0", "6.6", "CONFIG_VFIO_DEVICE_CDEV"] {
                assert!(line.contains(part), "'{part}' is not in: {line}");
            }
        }
        for host in [&with, &without] {
            assert_eq!(
                chosen(host, Iommufd::Off, here.path()),
                Ok(Interface::Group)
            );
        }
    }
}
