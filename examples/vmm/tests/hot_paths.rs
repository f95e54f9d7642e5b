// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel takes each virtio device's driver away while it is at work, and gives it back: what was written is
//! there, and the device goes on. On PCI and in windows of registers, with split and with packed queues, with every device;
//! then the guest reboots, and finds its disks as it left them.

#[path = "support/images.rs"]
mod images;
#[path = "support/marks.rs"]
mod marks;

use images::{qcow2, tools};
use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use marks::said;
use std::path::Path;
use std::time::Duration;

const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module" || echo "@test trouble $module"; done </lab/modules/order
say() { echo "@test $*"; echo "@clock $1 $(cut -d' ' -f1 /proc/uptime)"; }
digest() { sha256sum | cut -d' ' -f1; }
# The second machine looks at what the first left, and is done.
if grep -q second /proc/cmdline || [ "$(dd if=/dev/vda bs=512 count=1 2>/dev/null | head -c 8)" = rebooted ]; then
    for disk in vda vdb; do
        say "after-$disk" "$(dd if=/dev/$disk bs=64k skip=1 count=16 iflag=direct 2>/dev/null | digest)"
    done
    poweroff -f
    sleep 60
fi
for device in /sys/bus/virtio/devices/*; do
    say "features-$(cat $device/device)" "$(cat $device/features)"
done
say devices "$(ls -d /sys/bus/platform/devices/LNRO0005*/virtio* 2>/dev/null | wc -l) $(ls -d /sys/bus/virtio/devices/* | wc -l)"
# People's own tools, from a disk of theirs.
mkdir /tools && mount -t ext4 -o ro /dev/vdc /tools && mount --bind /dev /tools/dev
mount -t tmpfs tmp /tools/tmp && mount -t proc proc /tools/proc
bound() { basename $(ls -d /sys/bus/virtio/drivers/$1/virtio* | head -n 1); }
go() { echo $2 >/sys/bus/virtio/drivers/$1/unbind; }
come() { echo $2 >/sys/bus/virtio/drivers/$1/bind || say trouble bind $1; }

# Disks: fio's own comparison; four that write when the driver goes; every block that was acknowledged is there.
dd if=/dev/urandom of=/tmp/data bs=64k count=128 2>/dev/null
verify() {
    chroot /tools /usr/bin/fio --thread --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1 --filename=/dev/$1 \
        --name=random --rw=randwrite --bs=4k --iodepth=8 --size=1M \
        --name=sequence --stonewall --rw=write --bs=64k --iodepth=4 --offset=1M --size=1M >/tmp/fio 2>&1
    say fio-$2-$1 "$? $(sed -n 's/.*issued rwts: total=\([0-9]*,[0-9]*\),.*/\1/p' /tmp/fio | tr '\n' ' ')"
}
for disk in vda vdb; do
    verify $disk first
    device=$(basename $(readlink -f /sys/block/$disk/device))
    before=$(awk '{print $5}' /sys/block/$disk/stat)
    writers=
    for part in 0 1 2 3; do
        dd if=/tmp/data of=/dev/$disk bs=4k skip=$((part * 512)) seek=$((1024 + part * 512)) count=512 oflag=direct \
            2>/tmp/dd-$part & writers="$writers $!"
    done
    while [ $(awk '{print $5}' /sys/block/$disk/stat) -lt $((before + 100)) ]; do usleep 10000; done
    go virtio_blk $device
    failed=0
    for writer in $writers; do wait $writer || failed=$((failed + 1)); done
    come virtio_blk $device
    same=0 blocks=0
    for part in 0 1 2 3; do
        count=$(sed -n 's/^\([0-9]*\)+.*records out.*/\1/p' /tmp/dd-$part)
        blocks=$((blocks + count))
        # At least those: what was under way may be there too.
        [ "$(dd if=/dev/$disk bs=4k skip=$((1024 + part * 512)) count=$count iflag=direct 2>/dev/null | digest)" = \
            "$(dd if=/tmp/data bs=4k skip=$((part * 512)) count=$count 2>/dev/null | digest)" ] && same=$((same + 1))
    done
    say moved-$disk "$failed $same $((blocks >= 90))"
    verify $disk again
done

# The card: a stream is on when the driver goes.
up() { ip link set lo up; ip link set eth0 up; ip address add 10.0.0.2/24 dev eth0; }
echoed() { socat -t 30 - TCP:10.0.0.1:7000 </tmp/small | digest; }
dd if=/dev/urandom of=/tmp/small bs=64k count=8 2>/dev/null
say small "$(digest </tmp/small)"
up
say ping "$(ping -c 3 -W 10 10.0.0.1 | sed -n 's/.*, \([0-9]*\) packets received.*/\1/p')"
chroot /tools /usr/bin/iperf3 -c 10.0.0.1 -p 5202 -t 100 >/dev/null 2>&1 & stream=$!
while [ $(cat /sys/class/net/eth0/statistics/tx_bytes) -lt 1000000 ]; do usleep 20000; done
device=$(bound virtio_net)
go virtio_net $device
say card "$(ls /sys/class/net | grep -c eth)"
come virtio_net $device
kill $stream; wait $stream
up
for way in send receive; do
    [ $way = receive ] && back=-R
    chroot /tools /usr/bin/iperf3 -c 10.0.0.1 -n 2M $back >/tmp/iperf 2>&1
    say iperf-$way "$? $(sed -n 's/.* \([0-9.]* [KM]Bytes\) .*sender.*/\1/p' /tmp/iperf)"
done
say net "$(echoed)"

# Sockets: likewise.
vsock() { socat -t 30 - VSOCK-CONNECT:2:700 </tmp/small | digest; }
say vsock-first "$(vsock)"
socat -u OPEN:/dev/zero VSOCK-CONNECT:2:701 2>/dev/null & stream=$!
sleep 1
device=$(bound vmw_vsock_virtio_transport)
go vmw_vsock_virtio_transport $device
wait $stream
come vmw_vsock_virtio_transport $device
say vsock-again "$(vsock)"

# Random bytes: a reader is there.
dd if=/dev/hwrng of=/dev/null bs=4k 2>/dev/null & reader=$!
usleep 300000
device=$(bound virtio_rng)
go virtio_rng $device
wait $reader
come virtio_rng $device
say rng "$(dd if=/dev/hwrng bs=1000 count=1 2>/dev/null | wc -c)"

# Persistent memory: what was there is.
e2mk -F -q -t ext4 -b 4096 /dev/pmem0 && mkdir /pmem && mount -t ext4 -o dax /dev/pmem0 /pmem
cp /tmp/small /pmem/data && sync && umount /pmem
device=$(bound virtio_pmem)
go virtio_pmem $device
come virtio_pmem $device
# Linux finds it in its own time, and may number it anew.
for _ in $(seq 100); do
    for node in /dev/pmem*; do mount -t ext4 -o dax $node /pmem 2>/dev/null && break 2; done
    usleep 100000
done
say pmem "$(digest </pmem/data) $(grep -c 'pmem.*dax' /proc/mounts)"
umount /pmem

# The console: a writer is there, and is hung up.
yes through >/dev/hvc0 2>/dev/null & writer=$!
usleep 300000
device=$(bound virtio_console)
go virtio_console $device
kill $writer 2>/dev/null; wait $writer
come virtio_console $device
until echo "once more" >/dev/hvc0 2>/dev/null; do usleep 50000; done

# The balloon: on its way up when the driver goes, which takes everything back; then all the way.
meminfo() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }
rm /tmp/data
before=$(meminfo MemFree)
echo inflate >/dev/hvc0
while [ $(meminfo MemFree) -gt $((before - 4000)) ]; do usleep 1000; done
device=$(bound virtio_balloon)
go virtio_balloon $device
say emptied "$(($(meminfo MemFree) > before - 20000))"
come virtio_balloon $device
while [ $(meminfo MemFree) -gt $((before - 40000)) ]; do usleep 100000; done
say inflated yes
echo deflate >/dev/hvc0
while [ $(meminfo MemFree) -lt $((before - 20000)) ]; do usleep 100000; done
say deflated yes

# What the machine after this one finds.
dd if=/dev/urandom of=/tmp/last bs=64k count=16 2>/dev/null
for disk in vda vdb; do dd if=/tmp/last of=/dev/$disk bs=64k seek=1 oflag=direct 2>/dev/null; done
say last "$(digest </tmp/last)"
printf rebooted | dd of=/dev/vda bs=512 conv=sync 2>/dev/null
sync
reboot -f
sleep 60
"#;

/// Runs one machine after the other, and is the other end of everything.
const HOST: &str = r#"
rm -f /tmp/vsock* /tmp/balloon /tmp/hvc /tmp/counters /tmp/told
dd if=/dev/zero of=/disk bs=512 count=1 conv=notrunc 2>/dev/null
/usr/bin/ip tuntap add dev t0 mode tap; ip link set t0 up; ip address add 10.0.0.1/24 dev t0
# Another for the stream that is cut, whose end it does not hear of.
iperf3 -s >/dev/null & iperf=$!
iperf3 -s -p 5202 >/dev/null & cut=$!
socat TCP-LISTEN:7000,reuseaddr,fork EXEC:cat & echoes=$!
socat UNIX-LISTEN:/tmp/vsock_700,fork EXEC:cat & sockets=$!
socat -u UNIX-LISTEN:/tmp/vsock_701,fork OPEN:/dev/null & sink=$!
wait_for() { while ! grep -q "$1" /tmp/hvc 2>/dev/null; do usleep 100000; done; }
ask() { echo "$1" | socat -t 30 - UNIX-CONNECT:/tmp/balloon; }
(
    wait_for inflate
    echo "counters" | socat -t 30 - UNIX-CONNECT:/tmp/counters >/tmp/told
    ask 'target 64M' >/dev/null
    wait_for deflate
    ask 'target 0' >/dev/null
) &
vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --cpus 2 --memory 256M --on-reboot restart \
    --cmdline 'console=ttyS0 quiet panic=-1' --counters /tmp/counters \
    --disk path=/disk,num_queues=2PACKED path=/qcow2,image_type=qcow2PACKED path=/tools,readonly=onPACKED \
    --net tap=t0,mac=52:54:00:12:34:56PACKED --rng src=/dev/urandomPACKED --console file=/tmp/hvcPACKED \
    --balloon socket=/tmp/balloon,deflate_on_oom=onPACKED --vsock cid=3,socket=/tmp/vsockPACKED --pmem path=/pmemPACKED MORE
echo "@host status $?"
kill $iperf $cut $echoes $sockets $sink
echo "@host hvc $(grep -c 'once more' /tmp/hvc) $(($(grep -c through /tmp/hvc) > 0))"
echo "@host counters $(cat /tmp/told)"
ip link delete t0
"#;

/// Network, block, console, entropy, balloon, vsock and pmem.
const DEVICES: [&str; 7] = [
    "0x0001", "0x0002", "0x0003", "0x0004", "0x0005", "0x0013", "0x001b",
];

fn guest(kernel: &Kernel) -> Vec<u8> {
    let mut guest = Initramfs::with_busybox().unwrap();
    let modules = [
        "virtio_pci",
        "virtio_mmio",
        "virtio_blk",
        "virtio_net",
        "virtio_rng",
        "virtio_console",
        "virtio_balloon",
        "vmw_vsock_virtio_transport",
        "virtio_pmem",
        "nd_pmem",
    ];
    guest
        .file("/init", 0o755, INIT)
        .modules(kernel, &modules)
        .unwrap()
        .program(Path::new("/usr/sbin/mke2fs"), "/bin/e2mk")
        .unwrap();
    guest
        .program(Path::new("/usr/bin/socat"), "/bin/socat")
        .unwrap();
    guest.build().unwrap()
}

/// Runs Debian's kernel with every device, in each of `ways`: what is added to each option, and further options.
fn moved(ways: &[(&str, &str)]) -> Vec<String> {
    let kernel = Kernel::fetch().unwrap();
    let commands: Vec<String> = ways
        .iter()
        .map(|(packed, more)| HOST.replace("PACKED", packed).replace("MORE", more))
        .collect();
    let report = Host::new()
        .module("tun")
        .memory_mib(2048)
        .time_out(Duration::from_secs(1800))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .program("/usr/bin/socat", "/usr/bin/socat")
        .program("/usr/bin/iperf3", "/usr/bin/iperf3")
        .program("/usr/bin/ip", "/usr/bin/ip")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(guest(&kernel), "/guest/initramfs", 0o644)
        .data(vec![0; 16 << 20], "/disk", 0o644)
        .data(qcow2(16 << 20), "/qcow2", 0o644)
        .data(tools(), "/tools", 0o644)
        .data(vec![0; 32 << 20], "/pmem", 0o644)
        .run(&commands)
        .unwrap();
    report.commands.iter().map(|run| run.text()).collect()
}

/// Looks at a run of [`HOST`], with packed queues or without.
fn look(text: &str, packed: bool, windows: usize) {
    let (guest, host) = (said(text, "@test "), said(text, "@host "));
    let get = |key: &str| {
        *guest
            .get(key)
            .unwrap_or_else(|| panic!("no {key} in\n{text}"))
    };
    assert!(!guest.contains_key("trouble"), "{text}");
    assert_eq!(get("devices"), format!("{windows} 9"), "{text}");
    for device in DEVICES {
        let features = get(&format!("features-{device}")).as_bytes();
        // VIRTIO_F_VERSION_1 and VIRTIO_F_RING_PACKED.
        assert_eq!(features[32], b'1', "{device}\n{text}");
        assert_eq!(features[34] == b'1', packed, "{device}\n{text}");
    }
    for disk in ["vda", "vdb"] {
        for when in ["first", "again"] {
            let key = format!("fio-{when}-{disk}");
            assert_eq!(get(&key), "0 256,256 16,16", "{text}");
        }
        // Some were cut off, and of all of them everything acknowledged was there.
        let (failed, rest) = get(&format!("moved-{disk}")).split_once(' ').unwrap();
        assert_ne!(failed, "0", "nothing was under way: {disk}\n{text}");
        assert_eq!(rest, "4 1", "{disk}\n{text}");
        assert_eq!(get(&format!("after-{disk}")), get("last"), "{disk}\n{text}");
    }
    assert_eq!((get("ping"), get("card")), ("3", "0"), "{text}");
    for way in ["iperf-send", "iperf-receive"] {
        assert!(get(way).starts_with("0 2."), "{text}");
    }
    for echo in ["net", "vsock-first", "vsock-again"] {
        assert_eq!(get(echo), get("small"), "{echo}\n{text}");
    }
    assert_eq!(get("rng"), "1000", "{text}");
    assert_eq!(get("pmem"), format!("{} 1", get("small")), "{text}");
    for word in ["emptied", "inflated", "deflated"] {
        assert!(["1", "yes"].contains(&get(word)), "{word}\n{text}");
    }
    // Both machines wrote to it, and the first one's words are still there.
    assert_eq!(host["hvc"], "1 1", "{text}");
    assert_eq!(host["status"], "0", "{text}");
    let told: serde_json::Value = serde_json::from_str(host["counters"]).unwrap();
    let devices = told["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 9, "{text}");
    for (device, queue) in [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0)] {
        let queue = &devices[device]["queues"][queue];
        assert!(
            queue["chains"].as_u64().unwrap() > 0,
            "{queue} of {device}\n{text}"
        );
    }
}

#[test]
fn split_queues_on_pci() {
    let texts = moved(&[(",packed=off", "")]);
    look(&texts[0], false, 0);
}

#[test]
fn packed_and_split_queues_in_windows() {
    let texts = moved(&[
        ("", "--transport mmio"),
        (",packed=off", "--transport mmio"),
    ]);
    look(&texts[0], true, 9);
    look(&texts[1], false, 9);
}
