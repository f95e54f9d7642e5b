// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of the laboratory's host behind the guest's own remapping unit: QEMU's VT-d unit follows ours.

use std::fs;

use lab_kit::kernel::Kernel;
use tempfile::NamedTempFile;

use crate::evidence::*;
use crate::lab::*;
use crate::nested::IOVA;

#[test]
fn a_device_reaches_what_its_guest_maps_and_no_more() {
    lab_kit::skip_if!(lab_kit::skip::missing(&["/usr/bin/strip"]));
    let kernel = Kernel::fetch().unwrap();
    let content = pattern(16 * MIB, 0x5a5a);
    let written = pattern(MIB, 0x7777);
    let disk = NamedTempFile::new().unwrap();
    fs::write(disk.path(), &content).unwrap();
    let host = || {
        let host = with_nested_guest(with_victim(host(&kernel, &written)), &kernel);
        with_devices(host, disk.path(), WIDE)
    };
    let nvme = format!("--device path=/sys/bus/pci/devices/{NVME},id=disk,iommu=on");
    let edu = format!("--device path=/sys/bus/pci/devices/{EDU},iommu=on");
    let report = run(
        host,
        &[
            // First, so that the host's log, which takes a few faults in five seconds, takes those of the last too.
            &format!(
                "fill_victim; give {EDU} vfio-pci
                 guest=/guest/nested run 'assign intel_iommu=on' --vtd caching=on {edu}"
            ),
            "unharmed; status=$?; dmesg -c >/dev/null; exit $status",
            &format!(
                "give {NVME} vfio-pci
                 run 'nvme intel_iommu=on iommu.strict=1' --vtd caching=on {nvme}"
            ),
            &format!(
                "run 'nvme intel_iommu=on,sm_on iommu.strict=0' --vtd caching=on,scalable=on {nvme}"
            ),
            "dmesg | grep -i dmar.*fault; true",
            &format!("give {NVME} nvme; digest /dev/nvme0n1 0 8; digest /dev/nvme0n1 8 1"),
            &format!("give {NVME} vfio-pci; run none --vtd aw=57,caching=on {nvme}"),
            &format!("run none --vtd caching=on --device path=/sys/bus/pci/devices/{NVME}"),
            &format!("run none --vtd {nvme}"),
            &format!("run none {nvme}"),
            &format!(
                "fill_victim; dmesg -c >/dev/null; give {EDU} vfio-pci
                 run 'switch intel_iommu=on iommu=pt memmap=1M$0xf000000 victim={VICTIM:#x}' --vtd caching=on {edu}"
            ),
            "unharmed",
        ],
    );
    let texts: Vec<String> = report.commands.iter().map(|c| c.text()).collect();
    let [
        assigned,
        _,
        legacy,
        scalable,
        faults,
        back,
        refusals @ ..,
        switched,
        _,
    ] = &texts[..]
    else {
        panic!("{texts:#?}");
    };

    // A program in the guest has the device, twice: it reaches the page that the program maps, and only as long as that is mapped.
    assert_eq!(report.commands[0].status, 0, "{assigned}");
    let twice = said(assigned);
    assert_eq!((twice["first"], twice["second"]), ("0", "0"), "{assigned}");
    assert_eq!(twice["driver"], "vfio-pci", "{assigned}");
    let words: Vec<&str> = twice["interrupts"].split_whitespace().collect();
    assert_eq!((words[1], words[2]), ("1", "IR-PCI-MSI"), "{assigned}");
    assert!(assigned.contains("@test stopped"), "{assigned}");
    assert!(!assigned.contains("stuck"), "{assigned}");
    assert_eq!(twice["faults"], "DMA 0", "{assigned}");
    // By what the first program mapped, when that had ended; by what the second had taken back; where it never mapped anything.
    let accesses = [("Read", IOVA), ("Write", IOVA), ("Write", VICTIM)];
    stopped(&report.commands[1], &accesses);

    let known = hex(&content[..8 * MIB]);
    for (command, text) in [(2, legacy), (3, scalable)] {
        assert_eq!(report.commands[command].status, 0, "{text}");
        let said = said(text);
        // Whatever it was asked for: under a unit in caching mode Linux is strict.
        assert_eq!(said["group"], "DMA 0", "{text}");
        assert_eq!(said["digest"], known, "{text}");
        // Unbound, reset and bound again in between.
        assert_eq!(said["again"], hex(&written), "{text}");
        assert_eq!(said["reset"], "done", "{text}");
        for when in ["vector", "after"] {
            let words: Vec<&str> = said[when].split(' ').collect();
            assert!(words.len() >= 6 && words[4] == "PCI-MSI", "{text}");
            let count: u32 = words[5].parse().unwrap();
            assert!(count > 0, "no interrupt came: {text}");
        }
    }
    assert_eq!(faults, "", "the guest's own DMA went astray");
    assert_eq!(*back, format!("nvme\n{known}\n{}\n", hex(&written)));

    let expected: [(i32, &[&str]); 4] = [
        (67, &[NVME, "translates 48 bits of address", "aw=57"]),
        (2, &["--device: ", NVME, "add iommu=on"]),
        (2, &["disk", "needs --vtd caching=on"]),
        (2, &["disk", "add --vtd"]),
    ];
    assert_eq!(refusals.len(), expected.len());
    let commands = report.commands[6..].iter().zip(refusals);
    for ((status, parts), (command, text)) in expected.into_iter().zip(commands) {
        assert_eq!(command.status, status, "{text}");
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("vmm: ")).collect();
        let [line] = lines[..] else {
            panic!("not one line: {text}");
        };
        for part in parts {
            assert!(line.contains(part), "'{part}' is not in: {line}");
        }
    }

    assert_eq!(report.commands[10].status, 0, "{switched}");
    let said = said(switched);
    // All of the guest's memory, and nothing of the host's.
    assert_eq!(said["first"], "identity", "{switched}");
    let trip = "0x1122334400000000 0x1122334400000007";
    assert_eq!(said["trip"], trip, "{switched}");
    assert_eq!(said["well"], "0x1122334400000000", "{switched}");
    let stolen = said["stolen"].to_ascii_uppercase();
    assert!(!stolen.contains("5EC2E7"), "{switched}");
    // A message written by hand is no interrupt, and the guest is told.
    assert_eq!((said["stray"], said["rogue"]), ("", "1"), "{switched}");
    // A domain that maps nothing, and back.
    assert_eq!(
        (said["second"], said["third"]),
        ("DMA", "identity"),
        "{switched}"
    );
    assert_eq!(said["kept"], "0x0000000000000077", "{switched}");
    assert_eq!(said["back"], "0x1122334400000000", "{switched}");

    let accesses = [("Write", VICTIM), ("Read", VICTIM), ("Write", 0xf00_5000)];
    stopped(&report.commands[11], &accesses);
}
