// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel and the emulated remapping unit of the real `vmm`, in the laboratory's host: DMA of virtio devices
//! behind it, strictly and lazily invalidated.

use std::collections::BTreeMap;
use std::time::Duration;

use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use sha2::{Digest, Sha256};

const MIB: usize = 1 << 20;

/// What a guest said, by word.
fn said(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix("@test "))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect()
}

/// No two sectors alike, and not zero.
fn pattern(length: usize, seed: u32) -> Vec<u8> {
    let words = (0..length as u32 / 4).map(|i| i.wrapping_mul(2_654_435_761) ^ seed);
    words.flat_map(u32::to_le_bytes).collect()
}

fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

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
    let vmm = |cmdline: &str, options: &str| {
        format!(
            "vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory size=256M \
             --cmdline 'console=ttyS0 quiet panic=-1 {cmdline}' {options}"
        )
    };
    let commands = [
        vmm(
            "intel_iommu=on iommu.strict=1",
            "--vtd --disk path=/one,iommu=on path=/two --rng iommu=on",
        ),
        "sha256sum </one; sha256sum </two".to_owned(),
        vmm(
            "intel_iommu=on,sm_on iommu.strict=0",
            "--vtd aw=57,scalable=on --disk path=/one,iommu=on path=/two --rng iommu=on",
        ),
    ];
    let [one, two] = [0x5a5a, 0xa5a5].map(|seed| pattern(8 * MIB, seed));
    let report = Host::new()
        .memory_mib(2048)
        .cpus(2)
        .time_out(Duration::from_secs(400))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(one.clone(), "/one", 0o644)
        .data(two.clone(), "/two", 0o644)
        .run(&commands)
        .unwrap();
    report.check().unwrap();
    let texts: Vec<String> = report.commands.iter().map(|c| c.text()).collect();
    let [strict, digests, lazy] = &texts[..] else {
        panic!("{texts:#?}");
    };
    let mut disks = [one, two];
    let kinds = [
        ("DMA", "legacy mode, strict", strict),
        ("DMA-FQ", "scalable mode, lazy", lazy),
    ];
    for (kind, what, text) in kinds {
        let said = said(text);
        assert_eq!(said["enabled"], "1", "{what}: {text}");
        assert_eq!(said["address"], "fed90000", "{text}");
        // The host bridge and three devices.
        assert_eq!(said["groups"], "4", "{text}");
        // VIRTIO_F_ACCESS_PLATFORM (bit 33), and how Linux invalidates; all devices are in the unit's scope.
        for (device, platform) in [
            ("0x0002-0000:00:01.0", 1),
            ("0x0002-0000:00:02.0", 0),
            ("0x0004-0000:00:03.0", 1),
        ] {
            assert_eq!(said[device], format!("{platform} {kind}"), "{what}: {text}");
        }
        for (name, disk) in ["vda", "vdb"].into_iter().zip(&mut disks) {
            assert_eq!(said[name], hex(disk), "{what}: {text}");
            disk[2 * MIB..4 * MIB].copy_from_slice(&written);
            let again = format!("{name}-again");
            assert_eq!(said[&*again], hex(&written), "{what}: {text}");
        }
        assert_eq!(said["random"], "1000", "{text}");
        assert_eq!(said["lost"], "0", "{what}: {text}");
        let vectors: Vec<&str> = said["vector"].split(',').map(str::trim).collect();
        assert_eq!(vectors.len(), 5, "{text}");
        for vector in &vectors[..4] {
            assert!(!vector.ends_with(" 0"), "{vector} never came: {text}");
        }
    }
    // What the first guest wrote, as the host sees it.
    let host: Vec<&str> = digests.split_whitespace().step_by(2).collect();
    assert_eq!(host, disks.each_ref().map(|disk| hex(disk)));
}
