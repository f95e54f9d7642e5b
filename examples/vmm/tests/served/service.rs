// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A service VM: one machine's guest serves a disk to another machine, both on the real `vmm` in the laboratory's host. The
//! guest that serves assigns the device which carries vhost-user to `vmm serve` by VFIO, behind the emulated remapping unit.
//! Each machine is killed under the other.

use super::linux::{hex, said};
use hvkit_vmm::peer::program::Function;
use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use std::time::Duration;

/// Of both guests.
const BEGIN: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module" || echo "@trouble $module"; done </lab/modules/order
digest() { sha256sum | cut -d' ' -f1; }
"#;

/// The guest that serves: one machine after the other.
const SERVICE: &str = r#"
say() { echo "@service $*"; }
for at in /sys/bus/pci/devices/*; do [ "$(cat $at/device)" = 0x106b ] && break; done
name=$(basename $at)
echo $name >$at/driver/unbind
echo vfio-pci >$at/driver_override
echo $name >/sys/bus/pci/drivers_probe
say driver "$(basename "$(readlink $at/driver)")"
faults() { dmesg | grep 'DMAR: \[DMA' | sed 's/.* DMAR: //' | head -1; }
# First whether the device reaches what was mapped for it, and not what was unmapped.
say before "$(faults)"
HVKIT_DEVICE=$at /bin/served --exact service::reaches_what_is_mapped --nocapture
say reaches $?
say fault "$(faults)"
dmesg -c >/dev/null
round=0
while [ $round -lt 5 ]; do
    round=$((round + 1))
    vmm serve --disk path=/dev/vda --device $at -v
    say ended-$round $?
    say faults-$round "$(dmesg | grep -c 'DMAR:.*fault')"
    say interrupts-$round "$(grep -c 'IR-PCI-MSI.*vfio-msix' /proc/interrupts)"
done
poweroff -f
sleep 60
"#;

/// The guest that is served: `do=first` reads until its machine is killed; `do=second` reads, writes and reads again, and then
/// works until nobody serves it any more.
const USER: &str = r#"
grep -qw do=first /proc/cmdline && me=first || me=second
say() { echo "@$me $*"; }
say disk "$(cat /sys/block/vda/size)"
if [ $me = first ]; then
    while :; do dd if=/dev/vda of=/dev/null bs=64k count=16 iflag=direct 2>/dev/null; done
fi
say read "$(dd if=/dev/vda bs=64k count=32 2>/dev/null | digest)"
dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null
say written "$(digest </tmp/data)"
# What is not flushed is lost with the machine that serves.
dd if=/tmp/data of=/dev/vda bs=64k seek=32 oflag=direct conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches
say reread "$(dd if=/dev/vda bs=64k skip=32 count=16 2>/dev/null | digest)"
say working
while dd if=/dev/zero of=/dev/vda bs=4k seek=768 count=16 oflag=direct 2>/tmp/why; do :; done
say failed "$(grep -c 'nput/output error' /tmp/why)"
dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && say later worked || say later refused
poweroff -f
sleep 60
"#;

const HOST: &str = r#"
# Waits until file $1 has line $2 so many ($3) times.
until_said() {
    for _ in $(seq 600); do
        [ -e $1 ] && [ "$(grep -c "$2" $1)" -ge $3 ] && return
        sleep 0.5
    done
    echo "@host trouble nobody said $2"
}
vmm --kernel /guest/vmlinux --initramfs /guest/service --memory 384M --serial file=/tmp/service -v \
    --cmdline 'console=ttyS0 quiet loglevel=1 panic=-1 intel_iommu=on' --vtd --disk path=/data \
    --vhost-user-backend socket=/tmp/peer,memory=256M,iommu=on </dev/null 2>/tmp/service.vmm &
service=$!
user() {
    vmm --kernel /guest/vmlinux --initramfs /guest/user --memory 256M --serial file=/tmp/$1 -v \
        --cmdline "console=ttyS0 quiet loglevel=1 panic=-1 do=$1" \
        --disk vhost_user=on,socket=/tmp/peer </dev/null 2>/tmp/$1.vmm
}
until_said /tmp/service 'is served by' 1
user first &
user=$!
until_said /tmp/first '@first disk' 1
usleep 300000
# The shell that runs it, and it.
kill -9 $(pidof vmm | tr ' ' '\n' | grep -vx $service)
wait $user
until_said /tmp/service 'is served by' 2
user second &
user=$!
until_said /tmp/second '@second working' 1
usleep 300000
kill -9 $service
wait $user
echo "@host status $?"
echo "@host image $(dd if=/data bs=64k skip=32 count=16 2>/dev/null | sha256sum | cut -d' ' -f1)"
echo "@host socket $([ -e /tmp/peer ] && echo left)"
for name in service first second; do
    sed 's/^/ /' /tmp/$name.vmm
    cat /tmp/$name
done
"#;

/// The guest of the test below runs it too, as root, with a device by which it can serve another machine: nobody is connected,
/// so what is sent is taken and dropped.
#[test]
fn reaches_what_is_mapped() {
    let Some(path) = std::env::var_os("HVKIT_DEVICE") else {
        let error = Function::open("/nowhere".as_ref()).unwrap_err();
        assert!(error.to_string().starts_with("--device: /nowhere: "));
        return;
    };
    let mut function = Function::open(path.as_ref()).unwrap();
    for message in [&b"one"[..], b"another"] {
        function.send(message).unwrap();
    }
    function.unmap().unwrap();
    // The memory is ours still: the device does not reach it.
    let error = function.send(b"a third").unwrap_err();
    assert_eq!(
        error.to_string(),
        "--device: it has failed, and needs a reset"
    );
    // The next to open it finds it well.
    drop(function);
    Function::open(path.as_ref()).unwrap().send(b"one").unwrap();
}

#[test]
fn a_guest_serves_a_disk_to_another_machine_and_each_outlives_the_other() {
    lab_kit::skip_if!(lab_kit::skip::missing(&["/usr/bin/strip"]));
    let kernel = Kernel::fetch().unwrap();
    let ourselves = std::env::current_exe().unwrap();
    let guest = |script: &str, modules: &[&str], program: bool| {
        let mut initramfs = Initramfs::with_busybox().unwrap();
        let init = format!("{BEGIN}{script}");
        initramfs.file("/init", 0o755, init.as_str());
        if program {
            let vmm = env!("CARGO_BIN_EXE_vmm").as_ref();
            initramfs.stripped(vmm, "/bin/vmm").unwrap();
            initramfs.stripped(&ourselves, "/bin/served").unwrap();
        }
        initramfs.modules(&kernel, modules).unwrap();
        initramfs.build().unwrap()
    };
    // No two equal blocks.
    let data: Vec<u8> = (0..1u32 << 20).flat_map(u32::to_le_bytes).collect();
    let expected = hex(&data[..2 << 20]);
    let service = ["virtio_pci", "virtio_blk", "vfio-pci", "vfio_iommu_type1"];
    let report = Host::new()
        .memory_mib(2048)
        .time_out(Duration::from_secs(400))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(guest(SERVICE, &service, true), "/guest/service", 0o644)
        .data(
            guest(USER, &["virtio_pci", "virtio_blk"], false),
            "/guest/user",
            0o644,
        )
        .data(data, "/data", 0o644)
        .run(&[HOST])
        .unwrap();
    let text = report.commands[0].text();
    assert!(!text.contains("trouble"), "{text}");
    let [service, first, second, host] =
        ["@service ", "@first ", "@second ", "@host "].map(|mark| said(&text, mark));
    // Assigned by VFIO behind the unit: the device reaches what a program maps, and is stopped and told of where it
    // tries what that has unmapped: a read of the queue's index, by the second function of the bus.
    assert_eq!(service["driver"], "vfio-pci", "{text}");
    assert_eq!((service["before"], service["reaches"]), ("", "0"), "{text}");
    let fault = service["fault"];
    assert!(fault.starts_with("[DMA Read"), "{text}");
    assert!(
        fault.contains("Request device [00:02.0] fault addr 0x111000"),
        "{text}"
    );
    // What is in the file of the machine that serves, seen by the one that is served, and what that wrote.
    assert_eq!((first["disk"], second["disk"]), ("8192", "8192"), "{text}");
    assert_eq!(second["read"], expected, "{text}");
    assert_eq!(second["reread"], second["written"], "{text}");
    assert_eq!(host["image"], second["written"], "{text}");
    // The first was killed: the guest that serves went on, and served the next.
    assert_eq!(service["ended-1"], "0", "{text}");
    assert_eq!(service["faults-1"], "0", "{text}");
    assert!(!text.contains("panicked"), "{text}");
    // Nothing of it remains; what it had were remapped interrupts.
    assert_eq!(service["interrupts-1"], "0", "{text}");
    assert!(
        text.contains("the other machine is disconnected: it has hung up"),
        "{text}"
    );
    // Then that was killed: errors, and a machine that goes on to its end.
    assert_eq!(second["failed"], "1", "{text}");
    assert_eq!(second["later"], "refused", "{text}");
    assert_eq!(host["status"], "0", "{text}");
    assert!(text.contains("the back end is gone"), "{text}");
}
