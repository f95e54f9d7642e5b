// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `--device` with folders that look like sysfs: what is refused before VFIO is asked, by the real
//! program, in one line and with a status of its own.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use support::{Folder, run, vmm};

const ADDRESS: &str = "0000:01:00.0";

/// A folder that is a small sysfs.
struct Sysfs(Folder);

impl Sysfs {
    fn new() -> Self {
        let folder = Folder::new();
        for name in ["pci", "drivers", "groups"] {
            fs::create_dir(folder.path(name)).unwrap();
        }
        Sysfs(folder)
    }

    /// A PCI device with this type of header.
    fn device(&self, address: &str, header_type: u8) -> PathBuf {
        let device = self.0.path(address);
        fs::create_dir(&device).unwrap();
        let mut config = [0; 64];
        config[0x0e] = header_type;
        self.0.file(&format!("{address}/config"), &config);
        symlink("../pci", device.join("subsystem")).unwrap();
        device
    }

    fn driver(&self, device: &Path, name: &str) {
        symlink(self.0.path("drivers").join(name), device.join("driver")).unwrap();
    }

    fn group(&self, device: &Path, number: u32) {
        let group = self.0.path("groups").join(number.to_string());
        fs::create_dir_all(group.join("devices")).unwrap();
        symlink(&group, device.join("iommu_group")).unwrap();
        let address = device.file_name().unwrap();
        symlink(device, group.join("devices").join(address)).unwrap();
    }
}

/// Runs `vmm` with these values of `--device`; it must end with `status` and one line that has `parts`.
fn refused(devices: &[String], status: i32, parts: &[&str]) {
    let mut command = vmm();
    command.args([
        "--kernel",
        "/nonexistent",
        "--memory",
        "size=64M",
        "--device",
    ]);
    command.args(devices);
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!(code, Some(status), "{stderr}");
    assert_eq!(
        (stdout.as_str(), stderr.lines().count()),
        ("", 1),
        "{stderr}"
    );
    for part in parts {
        assert!(stderr.contains(part), "'{part}' is not in: {stderr}");
    }
}

fn path(device: &Path) -> String {
    format!("path={}", device.display())
}

#[test]
fn what_is_not_a_pci_device() {
    let sysfs = Sysfs::new();
    refused(
        &["/nonexistent/0000:01:00.0".to_owned()],
        60,
        &["/nonexistent/0000:01:00.0: No such file"],
    );
    for other in ["/dev/null", "/sys", "/proc/self"] {
        refused(
            &[other.to_owned()],
            60,
            &[other, "is not a PCI device of sysfs"],
        );
    }
    // The right name, and not PCI.
    let device = sysfs.device(ADDRESS, 0);
    fs::remove_file(device.join("subsystem")).unwrap();
    refused(&[path(&device)], 60, &["is not a PCI device of sysfs"]);
    let bridge = sysfs.device("0000:02:00.0", 0x81);
    refused(
        &[path(&bridge)],
        60,
        &["0000:02:00.0", "bridge (header type 1)"],
    );
}

#[test]
fn a_device_behind_no_iommu() {
    let sysfs = Sysfs::new();
    let device = sysfs.device(ADDRESS, 0);
    sysfs.driver(&device, "nvme");
    refused(
        &[path(&device)],
        63,
        &[ADDRESS, "no IOMMU", "intel_iommu=on"],
    );
}

#[test]
fn the_mode_without_iommu_is_never_used() {
    let sysfs = Sysfs::new();
    let device = sysfs.device(ADDRESS, 0);
    sysfs.driver(&device, "vfio-pci");
    sysfs.group(&device, 0);
    fs::write(device.join("iommu_group/name"), "vfio-noiommu\n").unwrap();
    refused(&[path(&device)], 63, &[ADDRESS, "no-IOMMU mode", "refused"]);
}

#[test]
fn a_device_that_another_driver_has_or_none() {
    let sysfs = Sysfs::new();
    let device = sysfs.device(ADDRESS, 0);
    sysfs.group(&device, 7);
    let folder = format!("cd {};", device.display());
    let bind = "echo 0000:01:00.0 > /sys/bus/pci/drivers_probe";
    refused(
        &[path(&device)],
        61,
        &[
            "is bound to no driver, not to vfio-pci",
            &folder,
            "echo vfio-pci > driver_override",
            bind,
        ],
    );
    sysfs.driver(&device, "nvme");
    refused(
        &[path(&device)],
        61,
        &[
            "is bound to driver nvme,",
            "echo 0000:01:00.0 > driver/unbind",
            bind,
        ],
    );
}

#[test]
fn a_group_that_the_host_uses() {
    let sysfs = Sysfs::new();
    let device = sysfs.device(ADDRESS, 0);
    sysfs.driver(&device, "vfio-pci");
    sysfs.group(&device, 7);
    for (address, driver) in [
        ("0000:01:00.2", Some("xhci_hcd")),
        ("0000:01:00.1", Some("snd_hda_intel")),
        ("0000:01:00.3", Some("vfio-pci")),
        ("0000:01:00.4", None),
        ("0000:00:01.0", Some("pcieport")),
    ] {
        let other = sysfs.device(address, 0);
        if let Some(driver) = driver {
            sysfs.driver(&other, driver);
        }
        sysfs.group(&other, 7);
    }
    refused(
        &[path(&device)],
        62,
        &["group 7 with 0000:01:00.1 (driver snd_hda_intel), 0000:01:00.2 (driver xhci_hcd): bind"],
    );
}

#[test]
fn iommufd_where_the_host_has_none() {
    let sysfs = Sysfs::new();
    let device = sysfs.device(ADDRESS, 0);
    sysfs.driver(&device, "vfio-pci");
    sysfs.group(&device, 7);
    let parts = [
        ADDRESS,
        "iommufd=on",
        "no /dev/vfio/devices/vfioN",
        "from 6.6 on",
        "CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV",
    ];
    refused(&[format!("{},iommufd=on", path(&device))], 67, &parts);
    refused(
        &[format!("{},iommufd=1", path(&device))],
        2,
        &["iommufd=1 is not auto, on or off"],
    );
}

#[test]
fn the_same_device_or_name_twice() {
    let sysfs = Sysfs::new();
    let device = sysfs.device(ADDRESS, 0);
    let other = sysfs.device("0000:02:00.0", 0);
    for (device, group) in [(&device, 7), (&other, 8)] {
        sysfs.driver(device, "vfio-pci");
        sysfs.group(device, group);
    }
    let link = sysfs.0.path("link");
    symlink(&device, &link).unwrap();
    refused(
        &[path(&device), path(&link)],
        66,
        &["0000:01:00.0 is given twice"],
    );
    let named = |device: &Path| format!("{},id=disk", path(device));
    refused(
        &[named(&device), named(&other)],
        66,
        &["id=disk is given twice"],
    );
}
