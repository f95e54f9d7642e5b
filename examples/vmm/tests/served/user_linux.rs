// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel on the real `vmm`, in the laboratory's host: a disk that another process serves as a whole PCI
//! function, by vfio-user, driven by the guest's own virtio drivers. First without a remapping unit, and the process is
//! killed in the end; then behind one, beside a virtio disk that another process serves behind the same unit, by vhost-user.

use crate::linux::{hex, said};
use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use std::time::Duration;

const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module" || echo "@test trouble $module"; done </lab/modules/order
read -r line </proc/cmdline
case "$line" in *run=unit*) run=unit;; *) run=plain;; esac
say() { echo "@test $run-$*"; }
digest() { sha256sum | cut -d' ' -f1; }
main=none other=none
for disk in vda vdb; do
    case "$(cat /sys/block/$disk/size 2>/dev/null)" in 4096) main=$disk ;; 2048) other=$disk ;; esac
done
say size "$(cat /sys/block/$main/size)"
name=$(basename "$(readlink -f /sys/block/$main/device)")
say vectors "$(grep -c "$name" /proc/interrupts)"
say groups "$(ls /sys/kernel/iommu_groups 2>/dev/null | wc -w)"
say read "$(dd if=/dev/$main bs=64k count=16 2>/dev/null | digest)"
dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
say written "$(digest </tmp/data)"
dd if=/tmp/data of=/dev/$main bs=64k seek=16 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
say reread "$(dd if=/dev/$main bs=64k skip=16 count=16 2>/dev/null | digest)"
if [ $run = unit ]; then
    say told-read "$(dd if=/dev/$other bs=64k count=8 2>/dev/null | digest)"
    dd if=/tmp/data of=/dev/$other bs=64k seek=8 count=8 2>/dev/null
    sync
    echo 3 >/proc/sys/vm/drop_caches
    say told-reread "$(dd if=/dev/$other bs=64k skip=8 count=8 2>/dev/null | digest)"
    say told-written "$(dd if=/tmp/data bs=64k count=8 2>/dev/null | digest)"
    # A driver that is bound anew: a reset, and other addresses.
    name=$(basename "$(readlink -f /sys/block/$other/device)")
    echo "$name" >/sys/bus/virtio/drivers/virtio_blk/unbind
    echo "$name" >/sys/bus/virtio/drivers/virtio_blk/bind
    say told-again "$(dd if=/dev/$other bs=64k skip=8 count=8 2>/dev/null | digest)"
    say faults "$(dmesg | grep -c 'DMAR.*fault')"
fi
if [ $run = plain ]; then
    echo kill >/dev/hvc0
    # Then its configuration space reads all ones, as of a device that was pulled out.
    cd /sys/bus/pci/drivers/virtio-pci
    for device in 0000:*; do
        [ "$(cat $device/device)" = 0x1042 ] && break
    done
    tries=0
    while [ "$(od -An -tx4 -N4 $device/config | tr -d ' ')" != ffffffff ] && [ $tries -lt 600 ]; do
        tries=$((tries + 1))
        usleep 100000
    done
    say identity "$(od -An -tx4 -N4 $device/config | tr -d ' ')"
    say alive yes
    # Not by its drivers: to be shut down, the one of the device that is gone waits for a reset for ever.
    echo b >/proc/sysrq-trigger
fi
# Nothing is to be written any more.
poweroff -n -f
sleep 60
"#;

const HOST: &str = r#"
rm -f /tmp/own /tmp/hvc; : >/tmp/hvc
serve() {
    rm -f /tmp/own
    vmm serve --disk path=/disk --socket /tmp/own --protocol vfio-user -v 2>/tmp/served &
    server=$!
    while [ ! -S /tmp/own ]; do usleep 100000; done
}
run() {
    vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory 256M --console file=/tmp/hvc \
        --cmdline "console=ttyS0 quiet loglevel=1 panic=-1 $1" $2 -v 2>/tmp/said
    echo "@host status-$3 $?"
    cat /tmp/said
}
image() { dd if=/disk bs=64k skip=16 count=16 2>/dev/null | sha256sum | cut -d' ' -f1; }
serve
vmm serve --disk path=/second --socket /tmp/told -v 2>/tmp/served-told &
told=$!
while [ ! -S /tmp/told ]; do usleep 100000; done
run "run=unit intel_iommu=on" "--vtd caching=on --user-device socket=/tmp/own,id=disk,iommu=on \
    --disk vhost_user=on,socket=/tmp/told,iommu=on" unit
wait $told
echo "@host served-told $?"
echo "@host image-told $(dd if=/second bs=64k skip=8 count=8 2>/dev/null | sha256sum | cut -d' ' -f1)"
wait $server
echo "@host served-unit $?"
cat /tmp/served
echo "@host image-unit $(image)"
serve
(
    while ! grep -q kill /tmp/hvc 2>/dev/null; do usleep 100000; done
    kill -9 $server
) &
run run=plain "--user-device /tmp/own" plain
echo "@host image-plain $(image)"
"#;

#[test]
fn linux_uses_a_pci_function_of_another_process_and_outlives_it() {
    let kernel = Kernel::fetch().unwrap();
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs
        .file("/init", 0o755, INIT)
        .modules(&kernel, &["virtio_pci", "virtio_blk", "virtio_console"])
        .unwrap();
    // No two equal blocks.
    let data: Vec<u8> = (0..1u32 << 19).flat_map(u32::to_le_bytes).collect();
    let first_half = hex(&data[..1 << 20]);
    let report = Host::new()
        .memory_mib(2048)
        .time_out(Duration::from_secs(300))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(&data[..], "/disk", 0o644)
        .data(&data[1 << 20..], "/second", 0o644)
        .run(&[HOST])
        .unwrap();
    let text = report.commands[0].text();
    let (guest, host) = (said(&text, "@test "), said(&text, "@host "));
    let get = |key: &str| {
        *guest
            .get(key)
            .unwrap_or_else(|| panic!("no {key} in\n{text}"))
    };
    assert!(!text.contains("trouble"), "{text}");
    for run in ["unit", "plain"] {
        let get = |key: &str| get(&format!("{run}-{key}"));
        // Powered off, or reset.
        let status = if run == "unit" { "0" } else { "3" };
        assert_eq!(host[&*format!("status-{run}")], status, "{text}");
        assert_eq!(get("size"), "4096", "{text}");
        // One of the queue, one of the configuration: MSI-X.
        assert_eq!(get("vectors"), "2", "{text}");
        assert_eq!(get("read"), first_half, "{text}");
        assert_eq!(get("reread"), get("written"), "{text}");
        assert_eq!(host[&*format!("image-{run}")], get("written"), "{text}");
    }
    assert_ne!(get("unit-groups"), "0", "{text}");
    assert_eq!(get("plain-groups"), "0", "{text}");
    // By vhost-user, of a process that is told what the guest maps.
    let second = hex(&data[1 << 20..][..512 << 10]);
    assert_eq!(get("unit-told-read"), second, "{text}");
    for what in ["unit-told-reread", "unit-told-again"] {
        assert_eq!(get(what), get("unit-told-written"), "{what}\n{text}");
    }
    assert_eq!(host["image-told"], get("unit-told-written"), "{text}");
    assert_eq!(host["served-told"], "0", "{text}");
    assert_eq!(get("unit-faults"), "0", "{text}");
    // It ends with its VMM.
    assert_eq!(host["served-unit"], "0", "{text}");
    assert_eq!(get("plain-identity"), "ffffffff", "{text}");
    assert_eq!(get("plain-alive"), "yes", "{text}");
    let gone = "the device /tmp/own is gone: the other process has hung up";
    assert!(text.contains(gone), "{text}");
}
