// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Devices of the laboratory's host passed through to Debian's kernel by the real `vmm`: real KVM,
//! real VFIO, QEMU's VT-d unit, and QEMU's NVMe disk and `edu` behind it.

mod behind;
mod cdev;
#[path = "../support/evidence.rs"]
mod evidence;
mod kills;
mod lab;
mod nested;

use std::fs;

use evidence::*;
use lab::*;
use lab_kit::kernel::Kernel;
use tempfile::NamedTempFile;

const LONE_EDU: &str = "0000:00:07.0";
/// With registers larger than the guest's windows.
const HUGE: &str = "0000:02:00.0";
/// Behind a conventional bridge, with a device of the host.
const SHARED: &str = "0000:04:01.0";
const PORT: &str = "0000:00:06.0";
/// As a user who owns nothing; by path, for busybox has a smaller one of that name.
const NOBODY: &str = "/setpriv --reuid 65534 --regid 65534 --clear-groups sh -c";

#[test]
fn a_disk_is_the_guest_s_and_then_the_host_s_again() {
    let kernel = Kernel::fetch().unwrap();
    let content = pattern(16 * MIB, 0x5a5a);
    let written = pattern(MIB, 0x7777);
    let disk = NamedTempFile::new().unwrap();
    fs::write(disk.path(), &content).unwrap();
    let host = || with_devices(host(&kernel, &written), disk.path(), "");
    let device = format!("--device path=/sys/bus/pci/devices/{NVME},id=disk");
    let until_ready = "for i in $(seq 300); do grep -q 'test ready' /log && break; sleep 0.1; done";
    let kill = |when: &str| {
        format!(
            "give {NVME} vfio-pci; run busy {device} >/log & {when}; kill -9 $(pidof vmm); wait $!; echo $?;
             grep -c 'test ready' /log; give {NVME} nvme; digest /dev/nvme0n1 0 8"
        )
    };
    let report = run(
        host,
        &[
            &format!("run nvme {device}"),
            // Two devices, which share the guest's memory and nothing else.
            &format!(
                "give {NVME} vfio-pci; give {EDU} vfio-pci
                 run nvme --cpus boot=2 {device} path=/sys/bus/pci/devices/{EDU}"
            ),
            &format!(
                "vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory size=256M \
                 --cmdline 'console=ttyS0 quiet panic=-1 pci=nomsi do=nvme' {device}"
            ),
            &kill("sleep 0.3"),
            &kill("sleep 3"),
            &kill(&format!("{until_ready}; sleep 1")),
            // Unbound under the guest.
            &format!("give {NVME} vfio-pci >/dev/null; unplug {NVME} {device}"),
            "dmesg | grep -i dmar.*fault; true",
        ],
    );
    let texts: Vec<String> = report.commands.iter().map(|c| c.text()).collect();
    let [
        unbound,
        message,
        pin,
        early,
        booting,
        reading,
        unbound_under,
        faults,
    ] = &texts[..]
    else {
        panic!("{texts:#?}");
    };

    // Bound to the host's own driver: refused, with what to do.
    assert_eq!(report.commands[0].status, 61, "{unbound}");
    assert!(
        unbound.contains("is bound to driver nvme, not to vfio-pci"),
        "{unbound}"
    );

    let known = hex(&content[..8 * MIB]);
    assert!(
        said(message)["functions"].ends_with("0000:00:01.0 0000:00:02.0"),
        "{message}"
    );
    assert!(said(pin)["functions"].ends_with("0000:00:01.0"), "{pin}");
    for (command, text, kind) in [(1, message, "PCI-MSI"), (2, pin, "IO-APIC")] {
        assert_eq!(report.commands[command].status, 0, "{text}");
        let said = said(text);
        assert_eq!(said["digest"], known, "{text}");
        assert_eq!(said["again"], hex(&written), "{text}");
        assert_eq!(said["reset"], "done", "{text}");
        assert!(said["methods"].contains("flr"), "{text}");
        // MSI-X and PCI Express, and no extended capability.
        assert!(said["capabilities"].ends_with("00000000"), "{text}");
        for when in ["vector", "after"] {
            let words: Vec<&str> = said[when].split(' ').collect();
            assert!(words.len() >= 3 && words[1] == kind, "{text}");
            let count: u32 = words[2].parse().unwrap();
            assert!(count > 0, "no interrupt came: {text}");
        }
    }
    for text in [early, booting, reading] {
        assert!(text.contains("\n137\n"), "{text}");
        assert!(text.ends_with(&format!("nvme\n{known}\n")), "{text}");
    }
    assert!(
        reading.contains("\n137\n1\n"),
        "it was not reading: {reading}"
    );
    unplugged(unbound_under, &known, &written);
    // The kernel's log has all that is mapped for the disk, which is all, as long as the disk is there.
    assert_eq!(logged(unbound_under, "container"), PAGES);
    let after = said(unbound_under)["pages-3"];
    let gone = "disk.by=\"none: the host has all devices back\"";
    assert!(after.ends_with(gone), "{after}");
    assert_eq!(faults, "", "the guest's own DMA went astray");

    let mut expected = content;
    expected[8 * MIB..9 * MIB].copy_from_slice(&written);
    assert!(
        fs::read(disk.path()).unwrap() == expected,
        "the disk does not hold what the guest wrote"
    );
}

#[test]
fn dma_outside_the_guest_is_stopped_and_told() {
    let kernel = Kernel::fetch().unwrap();
    let host = || {
        with_victim(host(&kernel, &[])).qemu_args([
            "-device",
            "pcie-root-port,id=port1,slot=1,chassis=1,addr=6",
            "-device",
            "edu,bus=port1,dma_mask=0xffffffffffffffff",
            "-device",
            "edu,addr=7",
            "-device",
            "pcie-root-port,id=port2,slot=2,chassis=2,addr=8",
            "-device",
            "pci-testdev,membar=128G,bus=port2",
            "-device",
            "pcie-root-port,id=port3,slot=3,chassis=3,addr=9",
            "-device",
            "pcie-pci-bridge,id=bridge,bus=port3",
            "-device",
            "edu,bus=bridge,addr=1",
            "-device",
            "virtio-balloon-pci,bus=bridge,addr=2",
        ])
    };
    let device = |address: &str| format!("--device path=/sys/bus/pci/devices/{address}");
    let edu = device(EDU);
    let report = run(
        host,
        &[
            &format!("fill_victim; devmem {VICTIM} 64"),
            &format!("give {EDU} vfio-pci; run 'edu memmap=1M$0xf000000 victim={VICTIM:#x}' {edu}"),
            "unharmed",
            // What a user can get wrong, and only VFIO can say.
            &format!("give {LONE_EDU} vfio-pci; run none {}", device(LONE_EDU)),
            &format!("give {HUGE} vfio-pci; run none {}", device(HUGE)),
            &format!("give {SHARED} vfio-pci; run none {}", device(SHARED)),
            &format!("run none {}", device(PORT)),
            &format!(
                "run busy {edu} >/log 2>&1 & for i in $(seq 100); do [ -s /log ] && break; sleep 0.1; done
                 run none {edu}; status=$?; kill -9 $(pidof vmm); exit $status"
            ),
            // A user who may not, and one who may lock no memory.
            &format!("chmod 666 /dev/kvm; {NOBODY} '. /host.sh; run none {edu}'"),
            &format!(
                "chmod 666 /dev/vfio/*; ulimit -l 1024; {NOBODY} '. /host.sh; run none {edu}'"
            ),
            &format!("rm /dev/vfio/vfio; run none {edu}"),
        ],
    );
    let texts: Vec<String> = report.commands.iter().map(|c| c.text()).collect();
    let [before, guest, _, refusals @ ..] = &texts[..] else {
        panic!("{texts:#?}");
    };
    assert!(
        before.ends_with("0x5EC2E70000000000\n"),
        "no victim: {before}"
    );
    assert_eq!(report.commands[1].status, 0, "{guest}");
    let said = said(guest);
    assert_eq!(said["identity"], "0x010000ED");
    assert_eq!(said["complement"], "0xEDCBA987");
    // DMA inside the guest's memory works, before and after what must not.
    assert_eq!(
        said["trip"], "0x1122334400000000 0x1122334400000007",
        "{guest}"
    );
    assert_eq!(said["well"], "0x1122334400000000", "{guest}");
    // MSI: the vector that was written, 0x77.
    assert_eq!(said["stray"], "119", "{guest}");
    // Nothing was read from outside.
    assert!(
        !said["stolen"].to_ascii_uppercase().contains("5EC2E7"),
        "{guest}"
    );
    assert!(!guest.contains("stuck"), "{guest}");
    assert!(
        !guest.contains("not mapped"),
        "its registers were trapped: {guest}"
    );
    // Nothing was written outside: the digests agree.
    let accesses = [("Write", VICTIM), ("Read", VICTIM)];
    stopped(&report.commands[2], &accesses);

    let expected: [(i32, &[&str]); 8] = [
        (64, &[LONE_EDU, "cannot be reset"]),
        (65, &[HUGE, "BAR 2 has 137438953472 bytes"]),
        (62, &[SHARED, "0000:04:02.0 (driver virtio-pci)"]),
        (60, &[PORT, "bridge"]),
        (66, &[EDU, "another process has IOMMU group"]),
        (67, &["no permission to open /dev/vfio/", EDU]),
        (67, &["cannot be pinned", "ulimit -l"]),
        (67, &["/dev/vfio/vfio", "module vfio-pci"]),
    ];
    assert_eq!(refusals.len(), expected.len());
    for ((status, parts), (command, text)) in expected
        .into_iter()
        .zip(report.commands[3..].iter().zip(refusals))
    {
        assert_eq!(command.status, status, "{text}");
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("vmm: ")).collect();
        let [line] = lines[..] else {
            panic!("not one line: {text}");
        };
        for part in parts {
            assert!(line.contains(part), "'{part}' is not in: {line}");
        }
    }
}

#[test]
fn a_host_without_iommu_says_what_to_enable() {
    let kernel = Kernel::fetch().unwrap();
    let text = |switched_off: &str, first: &str| {
        let host = || {
            host(&kernel, &[])
                .kernel_arg(switched_off)
                .qemu_args(["-device", "edu,addr=7"])
        };
        let command = format!("{first} run none --device path=/sys/bus/pci/devices/{LONE_EDU}");
        let report = run(host, &[&command]);
        let text = report.commands[0].text();
        assert_eq!(report.commands[0].status, 63, "{text}");
        assert_eq!(text.matches("vmm: ").count(), 1, "{text}");
        text
    };
    let give = format!("give {LONE_EDU} vfio-pci;");
    let remapping = text("intremap=off", &give);
    assert!(
        remapping.contains("enable interrupt remapping"),
        "{remapping}"
    );
    let text = text("intel_iommu=off", "");
    assert!(
        text.contains("behind no IOMMU") && text.contains("intel_iommu=on"),
        "{text}"
    );
}
