// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices passed through by iommufd and VFIO's character devices, which takes a newer host: Debian's kernel 6.12 with its VFIO
//! modules built anew, on QEMU 11.

use std::fs;
use std::time::Duration;

use lab_kit::host::Host;
use lab_kit::kernel::Kernel;
use lab_kit::models::{Model, with_iommufd};
use tempfile::NamedTempFile;

use crate::NOBODY;
use crate::evidence::*;
use crate::lab::*;

/// Host of a newer kernel, or why it cannot be had.
fn newer(kernel: &Kernel, written: &[u8]) -> Result<impl Fn() -> Host, Box<dyn std::error::Error>> {
    let (qemu, newer) = (Model::Qemu11.fetch()?, with_iommufd()?);
    Ok(move || {
        host(kernel, written)
            // Five machines in one boot: half a minute, and several times that beside other emulators.
            .time_out(Duration::from_secs(600))
            .qemu(qemu.program())
            .kernel(newer.clone())
    })
}

/// Runs the VMM with `device` until it has said how it opened that, and kills it.
fn opened(device: &str) -> String {
    format!(
        "run none -v {device} >/log 2>&1 & for i in $(seq 100); do grep -q entered /log && break; sleep 0.1; done
         kill -9 $(pidof vmm); wait; grep 'passed through' /log"
    )
}

#[test]
fn devices_are_passed_through_by_iommufd() {
    let kernel = Kernel::fetch().unwrap();
    let content = pattern(16 * MIB, 0x5a5a);
    let written = pattern(MIB, 0x7777);
    let newer = newer(&kernel, &written);
    lab_kit::skip_if!(newer.as_ref().err().map(|error| error.to_string()));
    let newer = newer.unwrap();
    let disk = NamedTempFile::new().unwrap();
    fs::write(disk.path(), &content).unwrap();
    let host = || with_devices(with_victim(newer()), disk.path(), WIDE);
    let nvme = format!("--device path=/sys/bus/pci/devices/{NVME},id=disk");
    let edu = format!("--device path=/sys/bus/pci/devices/{EDU}");
    let outside = format!("memmap=1M$0xf000000 victim={VICTIM:#x}");
    let report = run(
        host,
        &[
            // Two devices, one address space of iommufd's.
            &format!(
                "fill_victim; give {NVME} vfio-pci; give {EDU} vfio-pci
                 run 'both {outside}' -v {nvme} path=/sys/bus/pci/devices/{EDU},iommufd=on"
            ),
            // Behind the guest's own unit, which each follows by an address space of its own.
            &format!(
                "run 'both_switch intel_iommu=on iommu=pt {outside}' --vtd caching=on -v \
                 {nvme},iommu=on path=/sys/bus/pci/devices/{EDU},iommu=on"
            ),
            "unharmed",
            &format!("run none --vtd aw=57,caching=on {nvme},iommu=on"),
            &format!(
                "run busy --dirty-log /dirty {edu},id=edu >/log 2>&1 &
                 for i in $(seq 100); do [ -s /log ] && break; sleep 0.1; done; ask start pages-1
                 run none {edu}; status=$?; run none {edu},iommufd=off; echo $?
                 kill -9 $(pidof vmm); wait; exit $status"
            ),
            &format!(
                "chmod 666 /dev/kvm /dev/iommu; {NOBODY} '. /host.sh; run none {edu},iommufd=on'"
            ),
            &format!(
                "chmod 666 /dev/vfio/devices/*; ulimit -l 1024
                 {NOBODY} '. /host.sh; run none {edu},iommufd=on'"
            ),
            &opened(&format!("{edu},iommufd=off")),
            // Unbound under a guest behind whose unit it is.
            &format!("unplug {NVME} --vtd caching=on {nvme},iommu=on,iommufd=on"),
            "digest /dev/nvme0n1 8 1",
            &format!("rm /dev/iommu; run none {edu},iommufd=on"),
        ],
    );
    let texts: Vec<String> = report.commands.iter().map(|c| c.text()).collect();
    let [
        both,
        followed,
        _,
        narrow,
        busy,
        denied,
        pinned,
        by_group,
        unplugged_under,
        back,
        refused,
    ] = &texts[..]
    else {
        panic!("{texts:#?}");
    };
    for text in [both, followed] {
        assert!(text.contains(", by iommufd\n"), "{text}");
        assert!(!text.contains("by VFIO's group"), "{text}");
    }
    let known = hex(&content[..8 * MIB]);
    for (command, text) in [(0, both), (1, followed)] {
        assert_eq!(report.commands[command].status, 0, "{text}");
        let said = said(text);
        assert_eq!(said["digest"], known, "{text}");
        assert_eq!(said["again"], hex(&written), "{text}");
        assert_eq!(said["reset"], "done", "{text}");
        for when in ["vector", "after"] {
            let words: Vec<&str> = said[when].split(' ').collect();
            assert!(words.len() >= 3 && words.contains(&"PCI-MSI"), "{text}");
            let count: u32 = words[words.len() - 1].parse().unwrap();
            assert!(count > 0, "no interrupt came: {text}");
        }
        let trip = "0x1122334400000000 0x1122334400000007";
        assert_eq!(said["trip"], trip, "{text}");
        assert_eq!(said["well"], "0x1122334400000000", "{text}");
        let stolen = said["stolen"].to_ascii_uppercase();
        assert!(!stolen.contains("5EC2E7"), "{text}");
        assert!(!text.contains("stuck"), "{text}");
    }
    // MSI: the vector that was written, 0x77.
    assert_eq!(said(both)["stray"], "119", "{both}");
    // The disk read by its driver in a domain that maps all, then in one that maps what is read into; `edu` in one that maps all,
    // in one that maps nothing, and back.
    let domains = said(followed);
    assert_eq!(domains["group"], "identity 0", "{followed}");
    assert_eq!(domains["domain"], "DMA", "{followed}");
    assert_eq!(
        (domains["second"], domains["third"]),
        ("DMA", "identity"),
        "{followed}"
    );
    assert_eq!(domains["kept"], "0x0000000000000077", "{followed}");
    assert_eq!(domains["back"], "0x1122334400000000", "{followed}");

    let accesses = [
        ("Write", VICTIM),
        ("Read", VICTIM),
        ("Write", VICTIM),
        ("Read", VICTIM),
        ("Write", 0xf00_5000),
    ];
    stopped(&report.commands[2], &accesses);

    let refusals: [(usize, i32, &str, &[&str]); 5] = [
        (3, 67, narrow, &[NVME, "translates 48 bits", "aw=57"]),
        (4, 66, busy, &[EDU, "in use"]),
        (
            5,
            67,
            denied,
            &["no permission to open /dev/vfio/devices/vfio1", EDU],
        ),
        (6, 67, pinned, &["cannot be pinned", "ulimit -l"]),
        (
            10,
            67,
            refused,
            &[EDU, "there is no /dev/iommu", "6.6", "CONFIG_IOMMUFD"],
        ),
    ];
    for (command, status, text, parts) in refusals {
        assert_eq!(report.commands[command].status, status, "{text}");
        let line = text.lines().find(|line| line.starts_with("vmm: "));
        let line = line.unwrap_or_else(|| panic!("nothing was said: {text}"));
        for part in parts {
            assert!(line.contains(part), "'{part}' is not in: {line}");
        }
    }
    let log =
        "edu=65536 edu.by=\"none: iommufd's log, which is the IOMMU hardware's, is not used\"";
    assert!(said(busy)["pages-1"].ends_with(log), "{busy}");
    // By its group it is as much in use.
    let last = busy.lines().rev().nth(1).unwrap_or_default();
    assert!(last.contains("another process has IOMMU group"), "{busy}");
    assert!(busy.ends_with("\n66\n"), "{busy}");
    assert!(by_group.contains(", by VFIO's group"), "{by_group}");
    unplugged(unplugged_under, &known, &written);
    // Behind the unit only what the guest maps for it.
    let disk = logged(unplugged_under, "unit");
    assert!(disk < PAGES, "{unplugged_under}");
    assert_eq!(*back, format!("{}\n", hex(&written)));
}
