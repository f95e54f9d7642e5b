// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel and the emulated remapping unit of the real `vmm`, in the laboratory's host: DMA of virtio devices
//! behind it, strictly and lazily invalidated.

#[path = "support/evidence.rs"]
mod evidence;

use std::time::Duration;

use evidence::*;
use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;

#[test]
fn linux_drives_the_unit_and_its_disks_are_behind_it() {
    let kernel = Kernel::fetch().unwrap();
    let written = pattern(2 * MIB, 0x7777);
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs
        .file("/init", 0o755, include_str!("remapping_lab/guest.sh"))
        .file("/written", 0o644, written.clone())
        .modules(&kernel, &["virtio_pci", "virtio_blk", "virtio_rng"])
        .unwrap();
    let vmm = |case: &Case| {
        format!(
            "vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory size=256M \
             --cmdline 'console=ttyS0 quiet panic=-1 {}' --vtd {} --cpus {} \
             --disk path=/one,iommu=on path=/two{} --rng iommu=on",
            case.cmdline, case.vtd, case.cpus, case.second.options
        )
    };
    let mut commands: Vec<String> = CASES.iter().map(vmm).collect();
    commands.extend(saved_and_restored());
    // What the first guest wrote, as the host sees it.
    commands.insert(1, "sha256sum </one; sha256sum </two".to_owned());
    let mut disks = [0x5a5a, 0xa5a5].map(|seed| pattern(8 * MIB, seed));
    let report = Host::new()
        .memory_mib(2048)
        .time_out(Duration::from_secs(400))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(disks[0].clone(), "/one", 0o644)
        .data(disks[1].clone(), "/two", 0o644)
        .run(&commands)
        .unwrap();
    report.check().unwrap();
    let mut texts: Vec<String> = report.commands.iter().map(|c| c.text()).collect();
    let digests = texts.remove(1);
    for (case, text) in CASES.iter().zip(&texts) {
        case.check(text, &mut disks, &written);
    }
    let host: Vec<&str> = digests.split_whitespace().step_by(2).collect();
    assert_eq!(host, disks.each_ref().map(|disk| hex(disk)));
    check_restored(&texts[CASES.len()..], &disks, &written);
}

/// A guest that is saved while it writes and reads disks behind the unit, and that goes on twice from there. What is on the
/// disks belongs to what is saved.
fn saved_and_restored() -> [String; 3] {
    let machine =
        "--memory size=256M --vtd --cpus boot=2 --disk path=/one,iommu=on path=/two --rng iommu=on";
    let save = format!(
        "vmm --kernel /guest/vmlinux --initramfs /guest/initramfs {machine} --snapshot /saved \
         --cmdline 'console=ttyS0 quiet panic=-1 intel_iommu=on do=work' </dev/null >/log 2>&1 &
         for i in $(seq 3000); do grep -q '@test working' /log && break; sleep 0.1; done; sleep 0.5
         kill -USR1 $!; wait $!; echo $?; cat /log; cp /one /one.then; cp /two /two.then; ls /saved"
    );
    let restore = format!("echo go | vmm --restore /saved {machine}");
    let again = format!("cp /one.then /one; cp /two.then /two; {restore}");
    [save, restore, again]
}

fn check_restored(texts: &[String], disks: &[Vec<u8>; 2], written: &[u8]) {
    let [saved, restored @ ..] = texts else {
        panic!("{texts:#?}");
    };
    assert!(saved.starts_with("16\n"), "{saved}");
    assert!(saved.contains("@test working"), "{saved}");
    assert!(
        !saved.contains("@test rounds"),
        "it was not at work: {saved}"
    );
    assert!(saved.ends_with("manifest.json\nmemory\n"), "{saved}");
    assert_eq!(restored.len(), 2);
    for text in restored {
        // What the guest had said is not said again: it goes on.
        assert!(!text.contains("@test working"), "{text}");
        let said = said(text);
        assert!(said["rounds"].parse::<u32>().unwrap() >= 4, "{text}");
        for (word, value) in [("bad", "0"), ("lost", "0"), ("random", "1000")] {
            assert_eq!(said[word], value, "{text}");
        }
        for (name, disk) in ["vda", "vdb"].into_iter().zip(disks) {
            let mut disk = disk.clone();
            for at in [4 * MIB, 5 * MIB] {
                disk[at..at + MIB].copy_from_slice(&written[..MIB]);
            }
            assert_eq!(said[name], hex(&disk), "{text}");
        }
    }
}

/// A guest, and what it is to find.
struct Case {
    cmdline: &'static str,
    vtd: &'static str,
    cpus: u32,
    /// How Linux invalidates, as its domains' types say.
    kind: &'static str,
    /// Its mode of interrupt remapping.
    remapping: &'static str,
    /// The kinds of its serial line's interrupt, and its devices'.
    vectors: [&'static str; 2],
    /// The second disk.
    second: Second,
}

/// Where a disk is.
struct Second {
    options: &'static str,
    address: &'static str,
    /// The unit that it is behind; none: it is not.
    unit: Option<&'static str>,
}

/// On segment 0, and behind nothing.
const BESIDE: Second = Second {
    options: "",
    address: "0000:00:02.0",
    unit: None,
};

const CASES: [Case; 5] = [
    Case {
        cmdline: "intel_iommu=on iommu.strict=1",
        vtd: "aw=48",
        cpus: 2,
        kind: "DMA",
        remapping: "x2apic",
        vectors: ["IR-IO-APIC", "IR-PCI-MSI"],
        second: BESIDE,
    },
    Case {
        cmdline: "intel_iommu=on,sm_on iommu.strict=0",
        vtd: "aw=57,scalable=on,intremap=off",
        cpus: 1,
        kind: "DMA-FQ",
        remapping: "",
        vectors: ["IO-APIC", "PCI-MSI"],
        second: BESIDE,
    },
    // By pins, whose ends a remapped guest tells the I/O APIC itself.
    Case {
        cmdline: "intel_iommu=on iommu.strict=0 pci=nomsi nox2apic",
        vtd: "aw=39",
        cpus: 2,
        kind: "DMA-FQ",
        remapping: "xapic",
        vectors: ["IR-IO-APIC", "IR-IO-APIC"],
        second: BESIDE,
    },
    // By pins, whose ends KVM tells.
    Case {
        cmdline: "intel_iommu=on iommu.strict=1 pci=nomsi intremap=off",
        vtd: "aw=48",
        cpus: 2,
        kind: "DMA",
        remapping: "",
        vectors: ["IO-APIC", "IO-APIC"],
        second: BESIDE,
    },
    // Two segments, each with a unit of its own kind.
    Case {
        cmdline: "intel_iommu=on iommu.strict=1",
        vtd: "aw=48 --vtd pci_segment=1,aw=39 --platform num_pci_segments=2",
        cpus: 2,
        kind: "DMA",
        remapping: "x2apic",
        vectors: ["IR-IO-APIC", "IR-PCI-MSI"],
        second: Second {
            options: ",iommu=on,pci_segment=1",
            address: "0001:00:01.0",
            unit: Some("dmar1"),
        },
    },
];

impl Case {
    fn check(&self, text: &str, disks: &mut [Vec<u8>; 2], written: &[u8]) {
        let what = self.cmdline;
        let said = said(text);
        assert_eq!(said["enabled"], "1", "{what}: {text}");
        assert_eq!(said["remapping"], self.remapping, "{what}: {text}");
        let online = if self.cpus == 1 { "0" } else { "0-1" };
        assert_eq!(said["online"], online, "{what}: {text}");
        let second = &self.second;
        let two = second.unit.is_some();
        // Host bridges and three devices.
        let (units, groups) = match two {
            true => ("dmar0=fed90000 dmar1=fed91000", "5"),
            false => ("dmar0=fed90000", "4"),
        };
        assert_eq!([said["units"], said["groups"]], [units, groups], "{text}");
        // VIRTIO_F_ACCESS_PLATFORM (bit 33), and how Linux invalidates; all devices are in a unit's scope.
        let third = if two { "0000:00:02.0" } else { "0000:00:03.0" };
        for (kind, address, platform, unit) in [
            (2, "0000:00:01.0", 1, "dmar0"),
            (
                2,
                second.address,
                two.into(),
                second.unit.unwrap_or("dmar0"),
            ),
            (4, third, 1, "dmar0"),
        ] {
            let device = format!("{kind:#06x}-{address}");
            let expected = format!("{platform} {} {unit}", self.kind);
            assert_eq!(said[&*device], expected, "{what}: {text}");
        }
        for (name, disk) in ["vda", "vdb"].into_iter().zip(disks) {
            assert_eq!(said[name], hex(disk), "{what}: {text}");
            disk[2 * MIB..4 * MIB].copy_from_slice(written);
            let again = format!("{name}-again");
            assert_eq!(said[&*again], hex(written), "{what}: {text}");
        }
        assert_eq!(said["random"], "1000", "{text}");
        assert_eq!(said["lost"], "0", "{what}: {text}");
        let vectors: Vec<&str> = said["vector"].trim_end_matches(',').split(',').collect();
        let [line, devices @ ..] = &vectors[..] else {
            panic!("{what}: {text}");
        };
        assert_eq!(devices.len(), 3, "{what}: {text}");
        let [line_kind, device_kind] = self.vectors;
        assert!(
            line.starts_with(&format!("{line_kind} ttyS0")),
            "{what}: {text}"
        );
        for vector in devices {
            let prefix = format!("{device_kind} virtio");
            assert!(
                vector.trim().starts_with(&prefix),
                "{vector}: {what}: {text}"
            );
        }
        for vector in vectors {
            let came = vector.trim().rsplit(' ').next().unwrap();
            assert_ne!(came, "0", "{vector} never came: {what}: {text}");
        }
    }
}
