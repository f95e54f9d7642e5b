// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel in the real `vmm`, in the laboratory's host: both kinds of kernel file, eight
//! processors, memory above 4 GiB, disks with and without message-signalled interrupts, and each way
//! that Linux ends.

use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use std::collections::BTreeMap;
use std::time::Duration;

/// The guest's init says what it sees, then ends as the kernel's command line says.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </lab/modules/order
say() { echo "@test $*"; }
say online "$(cat /sys/devices/system/cpu/online)"
ran=
for cpu in $(seq 0 $(($(grep -c ^processor /proc/cpuinfo) - 1))); do
    ran="$ran$(taskset $(printf %x $((1 << cpu))) cut -d' ' -f39 /proc/self/stat) "
done
say ran $ran
say ram $(sed -n 's/^\([0-9a-f]*-[0-9a-f]*\) : System RAM/\1/p' /proc/iomem)
say clock "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
say functions $(ls /sys/bus/pci/devices)
[ -b /dev/vda ] && say digest "$(sha256sum </dev/vda | cut -d' ' -f1)"
say vector $(sed -n 's/.* \(IO-APIC\|PCI-MSI\) .* \(virtio[^ ]*\)$/\1 \2/p' /proc/interrupts)
say disks $(cd /sys/block && for d in vd*; do echo "$d:$(cat $d/size):$(cat $d/ro)"; done)
case "$(cat /proc/cmdline)" in
*end=reboot*) reboot -f ;;
*end=panic*) echo c >/proc/sysrq-trigger ;;
*) poweroff -f ;;
esac
sleep 60
"#;

/// What the guest of one command said, by word.
fn said(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix("@test "))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect()
}

#[test]
fn linux_finds_what_it_was_given_and_ends_as_it_is_told() {
    let kernel = Kernel::fetch().unwrap();
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs
        .file("/init", 0o755, INIT)
        .modules(&kernel, &["virtio_pci", "virtio_blk", "pvpanic_mmio"])
        .unwrap();
    let vmm = |options: &str, cmdline: &str| {
        format!(
            "vmm --initramfs /guest/initramfs --cmdline 'console=ttyS0 quiet panic=-1 {cmdline}' {options}"
        )
    };
    let commands = [
        "sha256sum </disk".to_owned(),
        // Without message-signalled interrupts, too: the disks are on their pins.
        vmm(
            "--kernel /guest/bzImage --cpus boot=2 --memory size=256M \
             --disk path=/disk,readonly=on path=/other",
            "pci=nomsi end=reboot",
        ),
        vmm(
            "--kernel /guest/vmlinux --cpus boot=8 --memory size=3584M",
            "end=off",
        ),
        vmm(
            "--kernel /guest/vmlinux --cpus boot=2 --memory size=256M --disk /disk",
            "end=panic",
        ),
    ];
    // No two sectors alike.
    let content: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let report = Host::new()
        .memory_mib(5120)
        .time_out(Duration::from_secs(400))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.bzimage(), "/guest/bzImage", 0o644)
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(content, "/disk", 0o644)
        .data(vec![0; 3 << 20], "/other", 0o644)
        .run(&commands)
        .unwrap();
    let [digest, guests @ ..] = &report.commands[..] else {
        panic!("the host ran nothing");
    };
    let texts: Vec<String> = guests.iter().map(|c| c.text()).collect();
    let statuses: Vec<i32> = guests.iter().map(|c| c.status).collect();
    // Reset, power-off, panic.
    assert_eq!(statuses, [3, 0, 4], "{texts:#?}");
    let guests: Vec<_> = texts.iter().map(|text| said(text)).collect();

    assert_eq!(guests[0]["online"], "0-1");
    assert_eq!(guests[0]["ran"], "0 1");
    assert_eq!(guests[0]["ram"], "00001000-0009ffff 00100000-0fffffff");
    assert_eq!(
        guests[0]["functions"],
        "0000:00:00.0 0000:00:01.0 0000:00:02.0"
    );
    assert_eq!(guests[0]["disks"], "vda:2048:1 vdb:6144:0");
    assert_eq!(guests[0]["vector"], "IO-APIC virtio0 IO-APIC virtio1");
    let digest = digest.text();
    assert_eq!(Some(guests[0]["digest"]), digest.split_whitespace().next());

    assert_eq!(guests[1]["online"], "0-7");
    assert_eq!(guests[1]["ran"], "0 1 2 3 4 5 6 7");
    assert_eq!(
        guests[1]["ram"],
        "00001000-0009ffff 00100000-bfffffff 100000000-11fffffff"
    );
    assert_eq!(guests[1]["functions"], "0000:00:00.0");

    assert_eq!(guests[2]["disks"], "vda:2048:0");
    assert!(
        guests[2]["vector"].contains("PCI-MSI virtio0-"),
        "{guests:?}"
    );
    assert!(texts[2].contains("vmm: the guest panicked"), "{}", texts[2]);
    for guest in &guests {
        assert_eq!(guest["clock"], "kvm-clock");
    }
}
