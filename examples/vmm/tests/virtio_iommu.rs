// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel 6.12, whose driver for virtio-iommu the older one leaves out, and devices of the real `vmm` behind one, in the
//! laboratory's host: what they move is right, and it was mapped.

#[path = "support/marks.rs"]
mod marks;

use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::models::with_iommufd;
use marks::said;
use std::time::Duration;

/// The guest's init.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module" || echo "@test trouble $module"; done </lab/modules/order
say() { echo "@test $*"; }
digest() { sha256sum | cut -d' ' -f1; }
for _ in $(seq 100); do [ -e /dev/vda ] && [ -e /sys/class/net/eth0 ] && break; usleep 100000; done
# Which functions of PCI are behind it, and how their addresses are kept.
for group in /sys/kernel/iommu_groups/*; do
    say "group-$(ls $group/devices | tr '\n' ' ' | sed 's/ $//')" "$(cat $group/type)"
done
for device in /sys/bus/virtio/devices/*; do
    say "platform-$(basename $(readlink -f $device/..))" "$(cut -c34 $device/features)"
done
say reserved "$(cat /sys/kernel/iommu_groups/0/reserved_regions | grep -c 'fee00000.*msi')"
dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
say data "$(digest </tmp/data)"
dd if=/tmp/data of=/dev/vda bs=64k conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
say reread "$(dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | digest)"
say random "$(dd if=/dev/hwrng bs=1000 count=1 2>/dev/null | wc -c)"
ip link set eth0 up; ip address add 10.0.0.2/24 dev eth0
say ping "$(ping -c 3 -W 10 10.0.0.1 | sed -n 's/.*, \([0-9]*\) packets received.*/\1/p')"
# A driver that goes has its mappings taken back, and comes again.
device=$(basename $(readlink -f /sys/block/vda/device))
echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
say rebound "$(dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | digest)"
echo "@test ready"
read -r _
# Another process's machine by now.
say after "$(dd if=/dev/vda bs=64k count=64 iflag=direct 2>/dev/null | digest)"
say again "$(ping -c 3 -W 10 10.0.0.1 | sed -n 's/.*, \([0-9]*\) packets received.*/\1/p')"
say faults "$(dmesg | grep -c 'virtio_iommu.*fault')"
poweroff -f
sleep 60
"#;

const HOST: &str = r#"
truncate -s 16M /tmp/disk
mkfifo /tmp/in; exec 3<>/tmp/in
join() {
    for _ in $(seq 600); do [ -e /sys/class/net/t0 ] && break; usleep 100000; done
    # The guest remembers whom it spoke to.
    ip link set t0 address 52:54:00:00:00:01 up; ip address add 10.0.0.1/24 dev t0
}
machine="--memory 256M --virtio-iommu --console null \
    --disk path=/tmp/disk,iommu=on --net tap=t0,iommu=on --rng src=/dev/urandom,iommu=on"
join &
vmm --kernel /guest/vmlinux --initramfs /guest/initramfs $machine --counters /tmp/counters --snapshot /tmp/saved \
    --cmdline "console=ttyS0 quiet panic=-1" </tmp/in >/tmp/out 2>/tmp/err & vmm=$!
for _ in $(seq 3000); do grep -q "@test ready" /tmp/out && break; kill -0 $vmm || break; usleep 100000; done
echo counters | socat -t 5 - UNIX-CONNECT:/tmp/counters
kill -USR1 $vmm
wait $vmm; echo "@host saved $?"
join &
vmm --restore /tmp/saved $machine </tmp/in >>/tmp/out 2>>/tmp/err & vmm=$!
sleep 2; echo go >&3
wait $vmm; echo "@host status $?"
tr -d '\r' </tmp/out; cat /tmp/err
echo "@host disk $(head -c 4194304 /tmp/disk | sha256sum | cut -d' ' -f1)"
"#;

#[test]
fn devices_behind_a_virtio_iommu() {
    let kernel = with_iommufd().unwrap();
    let mut guest = Initramfs::with_busybox().unwrap();
    let modules = [
        "virtio_pci",
        "virtio-iommu",
        "virtio_blk",
        "virtio_net",
        "virtio-rng",
    ];
    guest
        .file("/init", 0o755, INIT)
        .modules(&kernel, &modules)
        .unwrap();
    let report = Host::new()
        .time_out(Duration::from_secs(600))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .program("/usr/bin/socat", "/bin/socat")
        .module("tun")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(guest.build().unwrap(), "/guest/initramfs", 0o644)
        .data(HOST, "/host", 0o644)
        .run(&["sh /host"])
        .unwrap();
    let text = report.commands[0].text();
    let guest = said(&text, "@test ");
    let host = said(&text, "@host ");
    assert!(!text.contains("@test trouble"), "{text}");
    assert_eq!((host["saved"], host["status"]), ("16", "0"), "{text}");
    // The IOMMU itself is 00:01.0 and behind nothing; three devices are behind it, each by itself, the console is not.
    for function in ["0000:00:02.0", "0000:00:03.0", "0000:00:04.0"] {
        assert!(
            guest[&*format!("group-{function}")].starts_with("DMA"),
            "{text}"
        );
        assert_eq!(guest[&*format!("platform-{function}")], "1", "{text}");
    }
    assert_eq!(guest["platform-0000:00:01.0"], "0", "{text}");
    assert_eq!(guest["platform-0000:00:05.0"], "0", "{text}");
    assert!(!guest.contains_key("group-0000:00:05.0"), "{text}");
    assert_eq!(guest["reserved"], "1", "{text}");
    assert_eq!(guest["reread"], guest["data"], "{text}");
    assert_eq!(guest["rebound"], guest["data"], "{text}");
    assert_eq!(host["disk"], guest["data"], "{text}");
    assert_eq!((guest["random"], guest["ping"]), ("1000", "3"), "{text}");
    // What was mapped is still, in the machine that goes on.
    assert_eq!(
        (guest["after"], guest["again"]),
        (guest["data"], "3"),
        "{text}"
    );
    assert_eq!(guest["faults"], "0", "{text}");
    // What the three of them move was mapped: a request for each, at the least.
    let requests = text.split("\"virtio-iommu\",\"queues\":[").nth(1).unwrap();
    let chains = requests.split("\"chains\":").nth(1).unwrap();
    let chains: u64 = chains.split(',').next().unwrap().parse().unwrap();
    assert!(chains > 100, "{text}");
}
