// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What sysfs says of a device that a user wants to pass through, before anything is opened.
//!
//! Linux, `Documentation/ABI/testing/sysfs-bus-pci` and `sysfs-kernel-iommu_groups`.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where VFIO's files are.
pub(super) const VFIO: &str = "/dev/vfio";
/// The driver that holds a device on behalf of user space, and the end of the names of its variants.
const VFIO_PCI: &str = "vfio-pci";
/// Drivers that leave a group usable: they do no DMA of their own. VFIO, "IOMMU groups".
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];
/// What Linux calls a group that is one in name only.
const NO_IOMMU_GROUP: &str = "vfio-noiommu";
/// "Configuration Space Organization".
const HEADER_TYPE: usize = 0x0e;

/// A device and the driver that holds it, for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Domain, bus, device, function.
    pub address: String,
    /// Driver.
    pub driver: String,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (driver {})", self.address, self.driver)
    }
}

/// A device that cannot be passed through.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such path.
    #[error("{}: {source}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there, and something else.
    #[error("{} is not a PCI device of sysfs, such as /sys/bus/pci/devices/0000:01:00.0", .0.display())]
    NotPci(PathBuf),
    /// It is a bridge.
    #[error("{address} cannot be passed through: it is a bridge (header type {header_type})")]
    Bridge {
        /// The device.
        address: String,
        /// Its header type.
        header_type: u8,
    },
    /// Nothing stands between the device and the host's memory.
    #[error(
        "{address} is behind no IOMMU, so it would reach all of the host's memory: enable VT-d or \
         AMD-Vi in the firmware, and boot the host with intel_iommu=on (Intel) or without \
         amd_iommu=off (AMD)"
    )]
    NoIommu {
        /// The device.
        address: String,
    },
    /// The host pretends.
    #[error(
        "{address} is in VFIO's no-IOMMU mode, in which it reaches all of the host's memory: refused. \
         Enable the IOMMU, and load vfio without enable_unsafe_noiommu_mode"
    )]
    NoIommuMode {
        /// The device.
        address: String,
    },
    /// Another driver, or none, has it.
    #[error(
        "{address} {}, not to vfio-pci; as root: modprobe vfio-pci; cd {}; echo vfio-pci > \
         driver_override; {}echo {address} > /sys/bus/pci/drivers_probe",
        match driver { Some(driver) => format!("is bound to driver {driver}"), None => "is bound to no driver".to_owned() },
        path.display(),
        match driver { Some(_) => format!("echo {address} > driver/unbind; "), None => String::new() }
    )]
    NotBound {
        /// The device.
        address: String,
        /// Its folder.
        path: PathBuf,
        /// The driver it has.
        driver: Option<String>,
    },
    /// Devices that the IOMMU cannot tell from it are in use by the host.
    #[error(
        "{address} shares IOMMU group {group} with {}: bind these to vfio-pci, too, or to no driver",
        list(others)
    )]
    NotViable {
        /// The device.
        address: String,
        /// The group's number.
        group: u32,
        /// Who is in the way.
        others: Vec<Held>,
    },
}

fn list(others: &[Held]) -> String {
    let others: Vec<String> = others.iter().map(Held::to_string).collect();
    others.join(", ")
}

/// A device that is ready to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFunction {
    /// Domain, bus, device, function: `0000:01:00.0`.
    pub address: String,
    /// Its folder, links resolved.
    pub path: PathBuf,
    /// Its IOMMU group.
    pub group: u32,
    /// Its character device, `/dev/vfio/devices/vfioN`, if the host has made one.
    pub cdev: Option<PathBuf>,
}

impl HostFunction {
    /// The device whose folder in sysfs `path` leads to.
    pub fn find(path: &Path) -> Result<Self, HostError> {
        let given = path.to_owned();
        let path = fs::canonicalize(path).map_err(|source| HostError::Path {
            path: given.clone(),
            source,
        })?;
        let address = path.file_name().and_then(|name| name.to_str());
        let Some(address) = address.filter(|name| is_address(name)) else {
            return Err(HostError::NotPci(given));
        };
        let address = address.to_owned();
        let config = fs::read(path.join("config"));
        let (Some("pci"), Ok(config)) = (target(&path, "subsystem").as_deref(), config) else {
            return Err(HostError::NotPci(given));
        };
        let header_type = config.get(HEADER_TYPE).map_or(0, |byte| byte & 0x7f);
        if header_type != 0 {
            return Err(HostError::Bridge {
                address,
                header_type,
            });
        }
        let group = target(&path, "iommu_group").and_then(|name| name.parse().ok());
        let Some(group) = group else {
            return Err(HostError::NoIommu { address });
        };
        let name = fs::read_to_string(path.join("iommu_group/name"));
        if name.is_ok_and(|name| name.trim() == NO_IOMMU_GROUP) {
            return Err(HostError::NoIommuMode { address });
        }
        let driver = target(&path, "driver");
        if !driver.as_deref().is_some_and(is_vfio) {
            return Err(HostError::NotBound {
                address,
                path,
                driver,
            });
        }
        let others = in_the_way(&path, &address);
        if !others.is_empty() {
            return Err(HostError::NotViable {
                address,
                group,
                others,
            });
        }
        Ok(HostFunction {
            address,
            cdev: cdev(&path).filter(|file| file.exists()),
            path,
            group,
        })
    }
}

/// The devices of the group that keep it from being used, in the order of their addresses.
fn in_the_way(path: &Path, address: &str) -> Vec<Held> {
    let Ok(entries) = fs::read_dir(path.join("iommu_group/devices")) else {
        return Vec::new();
    };
    let mut others: Vec<Held> = entries
        .filter_map(|entry| {
            let other = entry.ok()?;
            let name = other.file_name().into_string().ok()?;
            let driver = target(&other.path(), "driver")?;
            let harmless = is_vfio(&driver) || HARMLESS.contains(&driver.as_str());
            (name != address && !harmless).then_some(Held {
                address: name,
                driver,
            })
        })
        .collect();
    others.sort_by(|a, b| a.address.cmp(&b.address));
    others
}

/// The name that VFIO has for the character device of the device at `path`. Linux, "VFIO Device cdev Example".
fn cdev(path: &Path) -> Option<PathBuf> {
    let mut entries = fs::read_dir(path.join("vfio-dev")).ok()?;
    let name = entries.next()?.ok()?.file_name();
    Some(Path::new(VFIO).join("devices").join(name))
}

fn is_vfio(driver: &str) -> bool {
    driver.ends_with(VFIO_PCI)
}

/// The last part of where a link in `folder` leads.
fn target(folder: &Path, link: &str) -> Option<String> {
    let target = fs::read_link(folder.join(link)).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// Domain, bus, device, function: `0000:01:00.0`.
fn is_address(name: &str) -> bool {
    let hex = |text: &str, least: usize| {
        text.len() >= least && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let parts: Vec<&str> = name.split([':', '.']).collect();
    matches!(parts[..], [domain, bus, device, function]
        if hex(domain, 4) && hex(bus, 2) && hex(device, 2) && hex(function, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_other_names() {
        for good in ["0000:01:00.0", "10000:ff:1f.7", "abcd:00:02.3"] {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "01:00.0",
            "pci0000:00",
            "0000:01:00",
            "nvme0",
            "0000:0g:00.0",
            "0000:01:00.0.1",
        ] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn the_character_device_has_the_name_that_sysfs_says() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(cdev(folder.path()), None, "a kernel without them");
        fs::create_dir_all(folder.path().join("vfio-dev/vfio17")).unwrap();
        assert_eq!(cdev(folder.path()), Some("/dev/vfio/devices/vfio17".into()));
    }

    #[test]
    fn folders_of_other_things_are_not_pci_devices() {
        let error = |path: &str| HostFunction::find(Path::new(path)).unwrap_err();
        assert!(matches!(error("/nonexistent"), HostError::Path { .. }));
        for path in ["/", "/sys", "/sys/class/mem/null", "/etc/passwd"] {
            assert!(matches!(error(path), HostError::NotPci(_)), "{path}");
        }
    }
}
