// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel on the real `vmm`, in the laboratory's host: it writes, many requests at once, to disks that `vmm serve`
//! serves, one by a split queue and one by a packed one, while those are killed and started again. Nothing fails, and nothing is
//! lost.

use super::linux::said;
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
say() { echo "@test $*"; }
digest() { sha256sum | cut -d' ' -f1; }
now() { cut -d. -f1 /proc/uptime; }
say disk "$(cat /sys/block/vda/size) $(cat /sys/block/vdb/size)"
# VIRTIO_F_RING_PACKED is bit 34, and the first is bit 0.
say packed "$(cut -c35 /sys/block/vda/device/features) $(cut -c35 /sys/block/vdb/device/features)"
echo working >/dev/hvc0
rounds=0
end=$(($(now) + 24))
while [ $(now) -lt $end ]; do
    rounds=$((rounds + 1))
    dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
    writers=
    # Eight at once, each its own part, in requests of many sizes.
    for part in 0 1 2 3 4 5 6 7; do
        size=$((4 << (part % 4)))
        count=$((512 / size))
        for disk in vda vdb; do
            dd if=/tmp/data of=/dev/$disk bs=${size}k skip=$((part * count)) seek=$((part * count)) count=$count \
                oflag=direct conv=notrunc 2>/dev/null || say trouble write $disk $part &
            writers="$writers $!"
        done
    done
    wait $writers
    echo 3 >/proc/sys/vm/drop_caches
    for disk in vda vdb; do
        [ "$(dd if=/dev/$disk bs=64k count=64 2>/dev/null | digest)" = "$(digest </tmp/data)" ] ||
            say trouble $disk data in round $rounds
    done
done
say rounds $rounds
say last "$(digest </tmp/data)"
sync
say errors "$(dmesg | grep -c 'I/O error')"
poweroff -f
sleep 60
"#;

const HOST: &str = r#"
rm -f /tmp/split /tmp/packed /tmp/hvc /tmp/done
serve() {
    rm -f /tmp/split /tmp/packed
    vmm serve --disk path=/second --socket /tmp/split -v 2>>/tmp/served &
    own=$!
    vmm serve --disk path=/third --socket /tmp/packed -v 2>>/tmp/served &
    own="$own $!"
    while [ ! -S /tmp/split ] || [ ! -S /tmp/packed ]; do usleep 10000; done
}
serve
(
    while ! grep -q working /tmp/hvc 2>/dev/null; do usleep 100000; done
    kills=0
    while :; do
        usleep 700000
        [ -e /tmp/done ] && break
        kill -9 $own && kills=$((kills + 1))
        serve
        # The VMM looks once a second.
        usleep 1500000
    done
    echo "@host kills $kills"
) &
killer=$!
vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory 256M --cpus boot=2 --console file=/tmp/hvc \
    --cmdline 'console=ttyS0 quiet loglevel=1 panic=-1' \
    --disk vhost_user=on,socket=/tmp/split,num_queues=1,reconnect=1 \
    vhost_user=on,socket=/tmp/packed,num_queues=1,reconnect=1,packed=on -v 2>/tmp/said
echo "@host status $?"
touch /tmp/done
cat /tmp/said
wait $killer
for queue in split packed; do
    echo "@host back-$queue $(grep -c "/tmp/$queue: another back end goes on" /tmp/said)"
done
echo "@host image-split $(sha256sum </second | cut -d' ' -f1)"
echo "@host image-packed $(sha256sum </third | cut -d' ' -f1)"
"#;

#[test]
fn nothing_is_lost_when_the_process_that_serves_a_disk_is_killed_while_linux_writes() {
    let kernel = Kernel::fetch().unwrap();
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs
        .file("/init", 0o755, INIT)
        .modules(&kernel, &["virtio_pci", "virtio_blk", "virtio_console"])
        .unwrap();
    let report = Host::new()
        .memory_mib(2048)
        .time_out(Duration::from_secs(600))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(vec![0; 4 << 20], "/second", 0o644)
        .data(vec![0; 4 << 20], "/third", 0o644)
        .run(&[HOST])
        .unwrap();
    let text = report.commands[0].text();
    let (guest, host) = (said(&text, "@test "), said(&text, "@host "));
    let number = |from: &std::collections::BTreeMap<&str, &str>, key: &str| {
        let number = from.get(key).and_then(|text| text.parse::<u32>().ok());
        number.unwrap_or_else(|| panic!("no {key} in\n{text}"))
    };
    assert!(!text.contains("@test trouble"), "{text}");
    assert_eq!(host["status"], "0", "{text}");
    assert_eq!(guest["disk"], "8192 8192", "{text}");
    assert_eq!(guest["packed"], "0 1", "{text}");
    assert_eq!(guest["errors"], "0", "{text}");
    assert!(number(&guest, "rounds") > 0, "{text}");
    // Killed in the middle of it, and gone on with.
    assert!(number(&host, "kills") >= 3, "{text}");
    for queue in ["split", "packed"] {
        assert!(number(&host, &format!("back-{queue}")) >= 3, "{text}");
        let image = format!("image-{queue}");
        assert_eq!(host[image.as_str()], guest["last"], "{text}");
    }
}
