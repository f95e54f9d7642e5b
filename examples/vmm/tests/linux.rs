// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Linux in the machine, in the laboratory's host: what `cargo xtask demo` does not show. It resets
//! with several processors, and uses its disk without message-signalled interrupts.

use std::time::Duration;
use xtask::lab::host::Host;
use xtask::lab::initramfs::Initramfs;
use xtask::lab::kernel::Kernel;

const INIT: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs devtmpfs /dev
grep -qw hvkit.reset /proc/cmdline && reboot -f
while read -r module; do insmod "$module"; done </lab/modules/order
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 50 ]; do tries=$((tries + 1)); usleep 100000; done
echo "@disk $(sha256sum </dev/vda | cut -d' ' -f1)"
sed -n 's/.* \(IO-APIC\|PCI-MSI\) .* \(virtio[^ ]*\)$/@vector \1 \2/p' /proc/interrupts
poweroff -f
"#;

#[test]
fn linux_resets_and_does_without_messages() {
    let kernel = Kernel::fetch().unwrap();
    let mut initramfs = Initramfs::with_busybox().unwrap();
    initramfs.file("/init", 0o755, INIT);
    initramfs
        .modules(&kernel, &["virtio_pci", "virtio_blk"])
        .unwrap();
    let vmm = |arguments: &str| {
        format!(
            "vmm --kernel /guest/bzImage --initramfs /guest/initramfs --memory size=256M \
             {arguments} </dev/null 2>&1"
        )
    };
    let options = "console=ttyS0 quiet panic=-1";
    let report = Host::new()
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.bzimage(), "/guest/bzImage", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .time_out(Duration::from_secs(300))
        .run(&[
            "head -c 1000448 /dev/urandom >/guest/disk && sha256sum </guest/disk",
            &vmm(&format!("--cpus boot=2 --cmdline '{options} hvkit.reset'")),
            &vmm(&format!(
                "--cpus boot=1 --cmdline '{options} pci=nomsi' --disk path=/guest/disk,readonly=on"
            )),
        ])
        .unwrap();
    let [disk, reset, pin] = &report.commands[..] else {
        panic!("{report:#?}");
    };
    assert_eq!(reset.status, 3, "{}", reset.text());
    assert_eq!(pin.status, 0, "{}", pin.text());
    let text = pin.text();
    let said = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.unwrap_or_else(|| panic!("no {key}in {text}")).trim()
    };
    let digest = disk.text();
    assert_eq!(Some(said("@disk ")), digest.split_whitespace().next());
    assert_eq!(said("@vector "), "IO-APIC virtio0");
}
