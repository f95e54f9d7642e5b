// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel on the real `vmm`, in the laboratory's host: a disk that QEMU's storage daemon serves, and files
//! that virtiofsd does; then both are killed while the guest uses them. And a disk that another process of ours serves, by a packed queue.

use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
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
say disk "$(cat /sys/block/vda/size) $(ls /sys/block/vda/mq | wc -w)"
say read "$(dd if=/dev/vda bs=64k count=32 2>/dev/null | digest)"
dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
say written "$(digest </tmp/data)"
dd if=/tmp/data of=/dev/vda bs=64k seek=32 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
say reread "$(dd if=/dev/vda bs=64k skip=32 count=16 2>/dev/null | digest)"
say own-size "$(cat /sys/block/vdb/size)"
# VIRTIO_F_RING_PACKED is bit 34, and the first is bit 0.
say packed "$(cut -c35 /sys/block/vda/device/features) $(cut -c35 /sys/block/vdb/device/features)"
dd if=/tmp/data of=/dev/vdb bs=64k 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
say own "$(dd if=/dev/vdb bs=64k count=16 2>/dev/null | digest)"
mkdir /files
mount -t virtiofs host /files && say mounted yes
say file "$(digest </files/data)"
cp /tmp/data /files/from-guest
sync
# By drivers bound anew, which is a reset.
umount /files
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind
say bound "$(dd if=/dev/vda bs=64k skip=32 count=16 2>/dev/null | digest)"
mount -t virtiofs host /files
say again "$(digest </files/from-guest)"
# Now the other processes are killed, in the middle of it.
(
    while dd if=/dev/zero of=/dev/vda bs=4k count=16 oflag=direct 2>/tmp/why; do :; done
    say failed "$(grep -c 'nput/output error' /tmp/why)"
) &
writer=$!
echo kill >/dev/hvc0
wait $writer
dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && say later worked || say later refused
cat /files/data >/dev/null 2>/tmp/why; ls /files >/dev/null 2>>/tmp/why
say files "$(grep -c 'not connected' /tmp/why)"
poweroff -f
sleep 60
"#;

const HOST: &str = r#"
rm -f /tmp/blk /tmp/fs /tmp/own /tmp/hvc; mkdir -p /files && cp /data /files/data
qemu-storage-daemon --blockdev driver=file,node-name=disk,filename=/data \
    --export type=vhost-user-blk,id=disk,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path=/tmp/blk &
disk=$!
virtiofsd --socket-path=/tmp/fs -o source=/files -o sandbox=chroot -o log_level=err -f &
files=$!
vmm serve --disk path=/second --socket /tmp/own -v &
own=$!
while [ ! -S /tmp/blk ] || [ ! -S /tmp/fs ] || [ ! -S /tmp/own ]; do usleep 100000; done
(
    while ! grep -q kill /tmp/hvc 2>/dev/null; do usleep 100000; done
    usleep 300000
    kill -9 $disk $files
) &
vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory 256M --console file=/tmp/hvc \
    --cmdline 'console=ttyS0 quiet loglevel=1 panic=-1' \
    --disk vhost_user=on,socket=/tmp/blk,num_queues=2 vhost_user=on,socket=/tmp/own,packed=on \
    --fs tag=host,socket=/tmp/fs -v 2>/tmp/said
echo "@host status $?"
cat /tmp/said
wait $own
echo "@host serve $?"
echo "@host own $(dd if=/second bs=64k count=16 2>/dev/null | sha256sum | cut -d' ' -f1)"
echo "@host image $(dd if=/data bs=64k skip=32 count=16 2>/dev/null | sha256sum | cut -d' ' -f1)"
echo "@host file $(sha256sum </files/from-guest | cut -d' ' -f1)"
echo "@host served $(sha256sum </files/data | cut -d' ' -f1)"
"#;

/// What was said under a mark, by word.
pub(crate) fn said<'a>(text: &'a str, mark: &str) -> BTreeMap<&'a str, &'a str> {
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix(mark))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .collect()
}

/// The digest of `bytes`, as a guest says it.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn linux_uses_what_other_processes_serve_and_outlives_them() {
    lab_kit::skip_if!(lab_kit::skip::missing(&[
        "/usr/bin/qemu-storage-daemon",
        "/usr/lib/qemu/virtiofsd",
    ]));
    let kernel = Kernel::fetch().unwrap();
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs
        .file("/init", 0o755, INIT)
        .modules(
            &kernel,
            &["virtio_pci", "virtio_blk", "virtio_console", "virtiofs"],
        )
        .unwrap();
    // No two equal blocks.
    let data: Vec<u8> = (0..1u32 << 20).flat_map(u32::to_le_bytes).collect();
    let first_half = hex(&data[..2 << 20]);
    let report = Host::new()
        .memory_mib(2048)
        .time_out(Duration::from_secs(300))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .program("/usr/bin/qemu-storage-daemon", "/bin/qemu-storage-daemon")
        .program("/usr/lib/qemu/virtiofsd", "/bin/virtiofsd")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(data, "/data", 0o644)
        .data(vec![0; 2 << 20], "/second", 0o644)
        .run(&[HOST])
        .unwrap();
    let text = report.commands[0].text();
    let (guest, host) = (said(&text, "@test "), said(&text, "@host "));
    let get = |key: &str| {
        *guest
            .get(key)
            .unwrap_or_else(|| panic!("no {key} in\n{text}"))
    };
    assert!(!guest.contains_key("trouble"), "{text}");
    assert_eq!(host["status"], "0", "{text}");
    // Two queues, of which one processor needs one.
    assert_eq!(get("disk"), "8192 1", "{text}");
    // 2 MiB of what the host has in its file, by the disk; all of it, as a file.
    assert_eq!(get("read"), first_half, "{text}");
    assert_eq!(get("file"), host["served"], "{text}");
    for (key, what) in [
        ("reread", "disk"),
        ("bound", "disk bound anew"),
        ("again", "file"),
        ("own", "our own disk"),
    ] {
        assert_eq!(get(key), get("written"), "{what}\n{text}");
    }
    assert_eq!(host["image"], get("written"), "{text}");
    assert_eq!(host["file"], get("written"), "{text}");
    // The one that `vmm serve` serves, which has ended with the machine.
    assert_eq!(get("own-size"), "4096", "{text}");
    // Its queue is packed, and that of QEMU's daemon is not.
    assert_eq!(get("packed"), "0 1", "{text}");
    assert_eq!(
        (host["own"], host["serve"]),
        (get("written"), "0"),
        "{text}"
    );
    assert_eq!(get("mounted"), "yes", "{text}");
    // Errors, and a machine that goes on to its end.
    assert_ne!(get("failed"), "0", "{text}");
    assert_eq!(get("later"), "refused", "{text}");
    assert_eq!(get("files"), "2", "{text}");
    assert!(text.contains("the back end is gone"), "{text}");
    assert!(text.contains("is shared with /tmp/blk"), "{text}");
}
