// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU 11.1's client and Debian's kernel, on the disk that `vmm serve` serves.

use crate::support::Folder;
use crate::their_client::Serving;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use lab_kit::models::Model;
use lab_kit::process::{Tethered, tether};
use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module" || echo "@test trouble $module"; done </lab/modules/order
echo "@test size $(cat /sys/block/vda/size)"
echo "@test messages $(grep -c 'MSI.*virtio0' /proc/interrupts)"
echo "@test first $(head -c 5 /dev/vda)"
dd if=/dev/zero bs=512 count=8 2>/dev/null | tr '\0' 'q' >/tmp/data
dd if=/tmp/data of=/dev/vda bs=512 seek=8 2>/dev/null
sync
echo 3 >/proc/sys/vm/drop_caches
cmp -n 4096 -s /tmp/data /dev/vda 0 4096 && echo "@test same yes"
# By drivers bound anew, which is a reset.
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind
cmp -n 4096 -s /tmp/data /dev/vda 0 4096 && echo "@test again yes"
poweroff -f
sleep 60
"#;

#[test]
fn qemu_and_linux_use_a_disk_that_we_serve() {
    let model = Model::Qemu11.fetch();
    lab_kit::skip_if!(
        model
            .as_ref()
            .err()
            .map(|error| format!("QEMU 11.1: {error}"))
    );
    let model = model.unwrap();
    let kernel = Kernel::fetch().unwrap();
    let folder = Folder::new();
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs
        .file("/init", 0o755, INIT)
        .modules(&kernel, &["virtio_pci", "virtio_blk"])
        .unwrap();
    let initramfs = folder.file("initramfs", &initramfs.build().unwrap());
    let mut contents = vec![0; 1 << 20];
    contents[..5].copy_from_slice(b"hello");
    let (image, socket) = (folder.file("image", &contents), folder.path("socket"));
    let serving = Serving::start(&image, &socket);
    let mut qemu = tether(model.program());
    let device = format!(
        r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{}"}}}}"#,
        socket.display()
    );
    qemu.args(["-accel", "tcg", "-M", "q35,memory-backend=ram", "-m", "256"])
        .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
        .args([
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ])
        .args([
            "-device",
            &device,
            "-append",
            "console=ttyS0 quiet panic=-1 no_timer_check",
        ])
        .arg("-kernel")
        .arg(kernel.bzimage())
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut qemu = Tethered::spawn(qemu).unwrap();
    let mut text = Vec::new();
    let mut output = qemu.stdout().unwrap();
    let reader = std::thread::spawn(move || {
        // Ends when QEMU does.
        let _ = output.read_to_end(&mut text);
        text
    });
    let ended = qemu.wait(Duration::from_secs(240));
    qemu.kill();
    let text = String::from_utf8_lossy(&reader.join().unwrap()).into_owned();
    assert!(
        ended.is_some_and(|status| status.success()),
        "{ended:?} {text}"
    );
    for line in [
        "size 2048",
        "messages 2",
        "first hello",
        "same yes",
        "again yes",
    ] {
        assert!(text.contains(&format!("@test {line}")), "{line}: {text}");
    }
    assert_eq!(fs::read(&image).unwrap()[4096..8192], [b'q'; 4096]);
    assert_eq!(serving.status(), Some(0));
}
