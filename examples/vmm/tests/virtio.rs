// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel and the virtio devices of the real `vmm`, in the laboratory's host: a disk of several queues, a
//! network card on a tap interface, random bytes, a console; by messages and by interrupt pins.

use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use std::collections::BTreeMap;
use std::time::Duration;

/// The guest's init says what it finds, and moves bytes through each device.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module" || echo "@test trouble $module"; done </lab/modules/order
say() { echo "@test $*"; }
digest() { sha256sum | cut -d' ' -f1; }
# The feature bits that each driver settled, bit 0 first.
for device in /sys/bus/virtio/devices/*; do
    say "features-$(cat $device/device)" "$(cat $device/features)"
done
say disk "$(cat /sys/block/vda/serial) $(ls /sys/block/vda/mq | wc -w) $(cat /sys/block/vda/queue/nr_requests)"
say hwrng "$(cat /sys/class/misc/hw_random/rng_current)" "$(dd if=/dev/hwrng bs=1000 count=1 2>/dev/null | wc -c)"
say card "$(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu) $(cat /sys/class/net/eth0/carrier_changes)"
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up
ping -c 3 -W 10 10.0.0.1 >/tmp/ping
say ping "$(sed -n 's/.*, \([0-9]*\) packets received.*/\1/p' /tmp/ping)"
dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
say sent "$(digest </tmp/data)"
nc 10.0.0.1 5000 </tmp/data
# An input that never ends: busybox's nc hangs up when its own does.
mkfifo /tmp/silence
nc 10.0.0.1 5001 0<>/tmp/silence >/tmp/got
say got "$(digest </tmp/got)"
say length "$(wc -c </tmp/got)"
echo "through hvc0" >/dev/hvc0
cp /tmp/data /dev/vda
sync
echo 3 >/proc/sys/vm/drop_caches
say reread "$(dd if=/dev/vda bs=64k count=16 2>/dev/null | digest)"
say vectors "$(grep -c 'PCI-MSI.*virtio' /proc/interrupts) $(grep -c 'IO-APIC.*virtio' /proc/interrupts)"
poweroff -f
sleep 60
"#;

/// Joins the tap interface when the VMM has made it, and serves the guest on it.
const HOST: &str = r#"
rm -f /tmp/sent /tmp/hvc /tmp/silence
mkfifo /tmp/silence
(
    while ! ifconfig t0 10.0.0.1 netmask 255.255.255.0 up 2>/dev/null; do usleep 100000; done
    nc -l -p 5000 0<>/tmp/silence >/tmp/sent
) &
nc -l -p 5001 </served &
vmm VMM
echo "@host status $?"
echo "@host sent $(sha256sum </tmp/sent | cut -d' ' -f1)"
echo "@host length $(wc -c </tmp/sent)"
echo "@host served $(sha256sum </served | cut -d' ' -f1)"
echo "@host hvc $(tr -d '\r' </tmp/hvc)"
"#;

/// What was said under a mark, by word.
fn said<'a>(text: &'a str, mark: &str) -> BTreeMap<&'a str, &'a str> {
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix(mark))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect()
}

/// Whether bit `bit` of a feature string is set.
fn has(features: &str, bit: usize) -> bool {
    features.as_bytes().get(bit) == Some(&b'1')
}

#[test]
fn linux_uses_every_device_by_messages_and_by_pins() {
    let kernel = Kernel::fetch().unwrap();
    let mut initramfs = Initramfs::with_busybox().unwrap();
    let modules = [
        "virtio_pci",
        "virtio_blk",
        "virtio_net",
        "virtio_rng",
        "virtio_console",
    ];
    initramfs
        .file("/init", 0o755, INIT)
        .modules(&kernel, &modules)
        .unwrap();
    let command = |more: &str| {
        let vmm = format!(
            "--kernel /guest/vmlinux --initramfs /guest/initramfs --cpus 2 --memory 256M \
             --cmdline 'console=ttyS0 quiet panic=-1 {more}' \
             --disk path=/disk,num_queues=2,queue_size=128,serial=hvkit-disk,bw_size=64M \
             --net tap=t0,mac=52:54:00:12:34:56,mtu=1400 --rng --console file=/tmp/hvc"
        );
        HOST.replace("VMM", &vmm)
    };
    // Whatever has no two equal blocks.
    let served: Vec<u8> = (0..1u32 << 17).flat_map(u32::to_le_bytes).collect();
    let report = Host::new()
        .module("tun")
        .memory_mib(2048)
        .cpus(2)
        .time_out(Duration::from_secs(400))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(vec![0; 4 << 20], "/disk", 0o644)
        .data(served, "/served", 0o644)
        .run(&[command(""), command("pci=nomsi")])
        .unwrap();
    for (run, by_messages) in report.commands.iter().zip([true, false]) {
        let text = run.text();
        let (guest, host) = (said(&text, "@test "), said(&text, "@host "));
        let get = |key: &str| {
            *guest
                .get(key)
                .unwrap_or_else(|| panic!("no {key} in\n{text}"))
        };
        assert!(!guest.contains_key("trouble"), "{text}");
        assert_eq!(host["status"], "0", "{text}");

        // Every driver has taken VERSION_1 and the packed ring.
        for device in [
            "features-0x0001",
            "features-0x0002",
            "features-0x0003",
            "features-0x0004",
        ] {
            assert!(
                has(get(device), 32) && has(get(device), 34),
                "{device}\n{text}"
            );
        }
        // Checksums and segmentation, either way; MTU, MAC, STATUS.
        for bit in [0, 1, 7, 8, 11, 12, 3, 5, 16] {
            assert!(
                has(get("features-0x0001"), bit),
                "bit {bit} of the card\n{text}"
            );
        }
        assert!(get("disk").starts_with("hvkit-disk 2 "), "{text}");
        assert_eq!(get("hwrng"), "virtio_rng.0 1000", "{text}");
        assert!(get("card").starts_with("52:54:00:12:34:56 1400 "), "{text}");
        assert_eq!(get("ping"), "3", "{text}");
        assert_eq!(host["length"], "1048576", "guest to host\n{text}");
        assert_eq!(get("length"), "524288", "host to guest\n{text}");
        assert_eq!(get("sent"), host["sent"], "guest to host\n{text}");
        assert_eq!(get("got"), host["served"], "host to guest\n{text}");
        assert_eq!(host["hvc"], "through hvc0", "{text}");
        assert_eq!(get("reread"), get("sent"), "disk\n{text}");
        let (messages, pins) = get("vectors").split_once(' ').unwrap();
        if by_messages {
            // A vector for each queue and each configuration, at least.
            assert!(
                messages.parse::<u32>().unwrap() >= 8 && pins == "0",
                "{text}"
            );
        } else {
            assert_eq!(messages, "0", "{text}");
            assert_ne!(pins, "0", "{text}");
        }
    }
}
