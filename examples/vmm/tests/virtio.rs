// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Debian's kernel and the virtio devices of the real `vmm`, in the laboratory's host: a disk of several queues, a
//! network card on a tap interface, random bytes, a console, a balloon, sockets, persistent memory and a watchdog; by
//! messages and by interrupt pins.

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
# What another machine left there, before this one writes.
say before "$(dd if=/dev/vda bs=64k count=16 2>/dev/null | digest)"
# People's own tools, from a disk of theirs: fio writes, reads back and compares; iperf3 later.
mkdir /tools && mount -t ext4 -o ro /dev/vdc /tools && mount --bind /dev /tools/dev
mount -t tmpfs tmp /tools/tmp && mount -t proc proc /tools/proc
verify() {
    fio="chroot /tools /usr/bin/fio --thread --ioengine=libaio --direct=1 --verify=crc32c --verify_fatal=1"
    $fio --filename=/dev/$1 --name=random --rw=randwrite --bs=4k --iodepth=8 --size=1M \
        --name=sequence --stonewall --rw=write --bs=64k --iodepth=4 --offset=1M --size=1M >/tmp/fio 2>&1
    say fio-$1 "$? $(sed -n 's/.*issued rwts: total=\([0-9]*,[0-9]*\),.*/\1/p' /tmp/fio | tr '\n' ' ')"
}
if [ -e /tools/usr/bin/fio ] && ! grep -q nomsi /proc/cmdline; then verify vda; verify vdb; fi
say disk "$(cat /sys/block/vda/serial) $(ls /sys/block/vda/mq | wc -w) $(cat /sys/block/vda/queue/nr_requests)"
say hwrng "$(cat /sys/class/misc/hw_random/rng_current)" "$(dd if=/dev/hwrng bs=1000 count=1 2>/dev/null | wc -c)"
say card "$(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth0/mtu) $(cat /sys/class/net/eth0/carrier_changes)"
# A pair of queues for each processor.
say pairs "$(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up
ping -c 3 -W 10 10.0.0.1 >/tmp/ping
say ping "$(sed -n 's/.*, \([0-9]*\) packets received.*/\1/p' /tmp/ping)"
say speed "$(cat /sys/class/net/eth0/speed) $(cat /sys/class/net/eth0/duplex)"
if ! grep -q nomsi /proc/cmdline; then
    for way in send receive; do
        [ $way = receive ] && back=-R
        chroot /tools /usr/bin/iperf3 -c 10.0.0.1 -n 4M $back >/tmp/iperf 2>&1
        say iperf-$way "$? $(sed -n 's/.* \([0-9.]* [KM]Bytes\) .*sender.*/\1/p' /tmp/iperf)"
    done
fi
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
# A driver goes while its requests are under way, and comes back.
device=$(basename $(readlink -f /sys/block/vdb/device))
dd if=/dev/vdb of=/dev/null bs=64k 2>/dev/null & reader=$!
usleep 100000
echo $device >/sys/bus/virtio/drivers/virtio_blk/unbind
wait $reader
echo $device >/sys/bus/virtio/drivers/virtio_blk/bind
say rebound "$(cat /sys/block/vdb/size)"
# Sockets, either way: the guest connects, then the host does.
say vsock-out "$(socat -t 20 - VSOCK-CONNECT:2:700 </tmp/data | digest)"
socat -t 20 VSOCK-LISTEN:800 EXEC:cat &
listener=$!
usleep 500000
echo ready-800 >/dev/hvc0
wait $listener
# Persistent memory: a file system that goes around the page cache.
e2mk -F -q -t ext4 -b 4096 /dev/pmem0 && mkdir /pmem && mount -t ext4 -o dax /dev/pmem0 /pmem
say dax "$(grep -c 'pmem.*dax' /proc/mounts)"
cp /tmp/data /pmem/data && sync
say pmem "$(digest </pmem/data)"
umount /pmem
# The balloon, as the host moves it.
meminfo() { sed -n "s/^$1: *\([0-9]*\) kB/\1/p" /proc/meminfo; }
# Only memory that was touched is the host's to get back: more than is free beside the balloon.
dd if=/dev/zero of=/tmp/touched bs=64k count=$(($(meminfo MemFree) * 3 / 4 / 64)) 2>/dev/null
rm /tmp/touched
before=$(meminfo MemFree)
echo inflate >/dev/hvc0
while [ $(meminfo MemFree) -gt $((before - 40000)) ]; do usleep 100000; done
say inflated yes
echo deflate >/dev/hvc0
while [ $(meminfo MemFree) -lt $((before - 20000)) ]; do usleep 100000; done
say deflated yes
# The watchdog: fed for longer than it waits, asked, and stopped.
say watchdog "$(cat /sys/class/watchdog/watchdog0/identity)"
watchdog -T 4 -t 1 -F /dev/watchdog0 & fed=$!
sleep 6
kill $fed
usleep 500000
say watchdog-state "$(cat /sys/class/watchdog/watchdog0/state)"
# An image in a format of its own.
e2mk -F -q -t ext4 /dev/vdb && mkdir /second && mount -t ext4 /dev/vdb /second
cp /tmp/data /second/data && umount /second
mount -t ext4 /dev/vdb /second
say qcow2 "$(digest </second/data) $(cat /sys/block/vdb/size)"
umount /second
# The disk becomes larger while it is used, and its cache is taken away.
through() { echo "$1" >/sys/block/vda/cache_type; cat /sys/block/vda/queue/write_cache; }
say cache "$(cat /sys/block/vda/queue/write_cache), $(through 'write through'), $(through 'write back')"
small=$(cat /sys/block/vda/size)
echo grow >/dev/hvc0
while [ $(cat /sys/block/vda/size) = $small ]; do usleep 100000; done
dd if=/tmp/data of=/dev/vda bs=512 seek=$small count=2048 conv=fsync 2>/dev/null
say grown "$small $(cat /sys/block/vda/size)" "$(dd if=/dev/vda bs=512 skip=$small count=2048 iflag=direct 2>/dev/null | digest)"
# A card by another address, which the device goes by when it filters.
ip link set eth0 address 52:54:00:12:34:57
ping -c 2 -W 10 10.0.0.1 >/tmp/ping
say moved "$(cat /sys/class/net/eth0/address) $(sed -n 's/.*, \([0-9]*\) packets received.*/\1/p' /tmp/ping)"
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
iperf3 -s >/dev/null & serving=$!
rm -f /tmp/vsock* /tmp/balloon /tmp/control
socat -t 20 UNIX-LISTEN:/tmp/vsock_700 EXEC:cat &
# What the guest says on its console is followed.
wait_for() { while ! grep -q "$1" /tmp/hvc 2>/dev/null; do usleep 100000; done; }
ask() { echo "$1" | socat -t 30 - UNIX-CONNECT:/tmp/balloon; }
# What is resident, and the most that ever was: RSS, HWM.
memory() { sed -n "s/^Vm$1:[^0-9]*\([0-9]*\) kB/\1/p" /proc/$(pidof vmm)/status; }
(
    wait_for ready-800
    echo "@host queues $(ls -d /sys/class/net/t0/queues/rx-* | wc -l)"
    # Until the guest's end listens; nothing comes from one that does not.
    for _ in $(seq 100); do
        (printf 'CONNECT 800\n'; cat /served) | socat -t 20 - UNIX-CONNECT:/tmp/vsock >/tmp/echo
        [ -s /tmp/echo ] && break
        usleep 300000
    done
    wait_for inflate
    echo "@host stats $(ask stats)"
    echo "@host target $(ask 'target 64M')"
    wait_for deflate
    # The driver is still at it, on a machine that has much else to do.
    for _ in $(seq 300); do
        case "$(ask target)" in *actual=67108864*) break;; esac
        usleep 100000
    done
    echo "@host actual $(ask target)"
    echo "@host freed $(($(memory HWM) - $(memory RSS)))"
    ask 'target 0' >/dev/null
    wait_for grow
    dd if=/dev/null of=/disk bs=1 seek=$(($(stat -c %s /disk) + 4194304)) 2>/dev/null
    echo "@host resize $(echo resize | socat -t 30 - UNIX-CONNECT:/tmp/control) $(stat -c %s /disk)"
) &
vmm VMM
echo "@host status $?"
kill $serving
echo "@host sent $(sha256sum </tmp/sent | cut -d' ' -f1)"
echo "@host length $(wc -c </tmp/sent)"
echo "@host served $(sha256sum </served | cut -d' ' -f1)"
echo "@host hvc $(head -n 1 /tmp/hvc | tr -d '\r')"
echo "@host echo $(tail -c 524288 /tmp/echo | sha256sum | cut -d' ' -f1)"
echo "@host line $(head -c 13 /tmp/echo | head -n 1)"
"#;

/// A guest whose devices are not on PCI, and which stops feeding its watchdog.
const LATE: &str = r#"#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </lab/modules/order
say() { echo "@test $*"; }
digest() { sha256sum | cut -d' ' -f1; }
say devices "$(ls -d /sys/bus/platform/devices/LNRO0005*/virtio* | wc -l) $(ls /sys/bus/pci/devices | wc -l)"
say interrupts "$(grep -c 'IO-APIC.*virtio' /proc/interrupts)"
dd if=/dev/hwrng of=/data bs=4k count=4 2>/dev/null
say sent "$(wc -c </data) $(digest </data)"
cp /data /dev/vda
sync
echo 3 >/proc/sys/vm/drop_caches
say reread "$(dd if=/dev/vda bs=4k count=4 2>/dev/null | digest)"
exec 3<>/dev/hvc0
say size "$(stty size <&3)"
echo "what do you say?" >&3
read -r typed <&3
say typed "$typed"
watchdog -T 3 -t 1 -F /dev/watchdog0 & fed=$!
sleep 3
kill -STOP $fed
echo "@test late"
sleep 60
poweroff -f
"#;

/// The late guest's machine, whose terminal has a size.
const IN_A_TERMINAL: &str = "#!/bin/sh
stty rows 33 cols 111
vmm --kernel /guest/vmlinux --initramfs /guest/late --memory 128M --watchdog \\
    --transport mmio --disk path=/disk --rng --balloon free_page_hints=on,socket=/tmp/hints --console tty \\
    --serial file=/tmp/serial --cmdline 'console=ttyS0 quiet'
echo $? >/tmp/status
";

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
        "virtio_balloon",
        "vmw_vsock_virtio_transport",
        "virtio_pmem",
        "nd_pmem",
        "wdat_wdt",
    ];
    initramfs
        .file("/init", 0o755, INIT)
        .modules(&kernel, &modules)
        .unwrap()
        .program(Path::new("/usr/bin/socat"), "/bin/socat")
        .unwrap()
        .program(Path::new("/usr/sbin/mke2fs"), "/bin/e2mk")
        .unwrap();
    let mut late = Initramfs::with_busybox().unwrap();
    late.file("/init", 0o755, LATE)
        .modules(
            &kernel,
            &[
                "virtio_mmio",
                "virtio_blk",
                "virtio_rng",
                "virtio_console",
                "virtio_balloon",
                "wdat_wdt",
            ],
        )
        .unwrap();
    let command = |more: &str| {
        let vmm = format!(
            "--kernel /guest/vmlinux --initramfs /guest/initramfs --cpus 2 --memory 256M \
             --cmdline 'console=ttyS0 quiet panic=-1 {more}' \
             --disk path=/disk,num_queues=2,queue_size=128,serial=hvkit-disk,bw_size=64M,control=/tmp/control path=/qcow2,image_type=qcow2 path=/tools,readonly=on \
             --net tap=t0,mac=52:54:00:12:34:56,mtu=1400,speed=25000,num_queue_pairs=2 --rng --console file=/tmp/hvc \
             --balloon deflate_on_oom=on,free_page_reporting=on,free_page_hints=on,socket=/tmp/balloon \
             --vsock cid=3,socket=/tmp/vsock --pmem path=/pmem --watchdog"
        );
        HOST.replace("VMM", &vmm)
    };
    // Whatever has no two equal blocks.
    let served: Vec<u8> = (0..1u32 << 17).flat_map(u32::to_le_bytes).collect();
    let report = Host::new()
        .module("tun")
        .memory_mib(2048)
        .time_out(Duration::from_secs(600))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(initramfs.build().unwrap(), "/guest/initramfs", 0o644)
        .data(vec![0; 4 << 20], "/disk", 0o644)
        .data(served, "/served", 0o644)
        .program("/usr/bin/socat", "/bin/socat")
        .data(vec![0; 32 << 20], "/pmem", 0o644)
        .data(qcow2(64 << 20), "/qcow2", 0o644)
        .data(tools(), "/tools", 0o644)
        .program("/usr/bin/iperf3", "/bin/iperf3")
        .data(IN_A_TERMINAL.as_bytes().to_vec(), "/late", 0o755)
        .data(late.build().unwrap(), "/guest/late", 0o644)
        .run(&[
            command(""),
            command("pci=nomsi"),
            "(while ! grep -q 'do you say' /tmp/out 2>/dev/null; do usleep 100000; done; \
             echo hints | socat -t 30 - UNIX-CONNECT:/tmp/hints >/tmp/hinted; echo by hand) | \
             socat -t 300 - EXEC:/late,pty,raw,echo=0 >/tmp/out; \
             echo \"@host status $(cat /tmp/status)\"; echo \"@host hints $(cat /tmp/hinted)\"; tr -d '\\r' </tmp/serial"
                .to_owned(),
        ])
        .unwrap();
    let mut before = None;
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
            "features-0x0005",
            "features-0x0013",
            "features-0x001b",
        ] {
            assert!(
                has(get(device), 32) && has(get(device), 34),
                "{device}\n{text}"
            );
        }
        // Checksums and segmentation, either way; merged buffers; MTU, MAC, STATUS; several pairs; filters of addresses and VLANs,
        // another address, the speed.
        for bit in [0, 1, 7, 8, 11, 12, 15, 3, 5, 16, 17, 22, 18, 19, 23, 63] {
            assert!(
                has(get("features-0x0001"), bit),
                "bit {bit} of the card\n{text}"
            );
        }
        assert!(get("disk").starts_with("hvkit-disk 2 "), "{text}");
        assert_eq!(get("hwrng"), "virtio_rng.0 1000", "{text}");
        assert!(get("card").starts_with("52:54:00:12:34:56 1400 "), "{text}");
        assert_eq!(get("speed"), "25000 full", "{text}");
        // The driver asked for both pairs, and the interface has two queues attached.
        assert_eq!((get("pairs"), host["queues"]), ("2", "2"), "{text}");
        assert_eq!(get("ping"), "3", "{text}");
        assert_eq!(host["length"], "1048576", "guest to host\n{text}");
        assert_eq!(get("length"), "524288", "host to guest\n{text}");
        assert_eq!(get("sent"), host["sent"], "guest to host\n{text}");
        assert_eq!(get("got"), host["served"], "host to guest\n{text}");
        assert_eq!(host["hvc"], "through hvc0", "{text}");
        assert_eq!(get("reread"), get("sent"), "disk\n{text}");
        assert_eq!(get("rebound"), "131072", "{text}");
        if let Some(before) = before.replace(get("sent").to_owned()) {
            assert_eq!(get("before"), before, "disk, over a restart\n{text}");
        }
        // Statistics, deflate on OOM, hints, reporting; the poison only where the kernel poisons.
        for bit in [1, 2, 3, 5] {
            assert!(
                has(get("features-0x0005"), bit),
                "bit {bit} of the balloon\n{text}"
            );
        }
        assert_eq!(get("vsock-out"), get("sent"), "echo on the host\n{text}");
        assert_eq!(host["echo"], host["served"], "echo in the guest\n{text}");
        assert!(host["line"].starts_with("OK "), "{text}");
        assert_eq!(get("dax"), "1", "{text}");
        assert_eq!(get("pmem"), get("sent"), "{text}");
        let free = host["stats"]
            .split(' ')
            .any(|word| word.starts_with("free="));
        assert!(free && host["stats"].contains(" total="), "{text}");
        assert_eq!(host["target"], "ok", "{text}");
        assert_eq!(host["actual"], "target=67108864 actual=67108864", "{text}");
        let freed: i64 = host["freed"].parse().unwrap();
        // The balloon has 64 MiB, and what was never touched is far less than that.
        assert!(freed > 10_000, "only {freed} KiB came back\n{text}");
        assert_eq!((get("inflated"), get("deflated")), ("yes", "yes"), "{text}");
        assert_eq!(get("qcow2"), format!("{} 131072", get("sent")), "{text}");
        let caches = "write back, write through, write back";
        assert_eq!(get("cache"), caches, "{text}");
        let sectors = if by_messages { 8192 } else { 16384 };
        let grown = format!("{sectors} {} {}", sectors + 8192, get("sent"));
        assert_eq!(get("grown"), grown, "{text}");
        let bytes = (sectors + 8192) * 512;
        assert_eq!(host["resize"], format!("size={bytes} {bytes}"), "{text}");
        assert_eq!(get("moved"), "52:54:00:12:34:57 2", "{text}");
        assert_eq!(get("watchdog"), "wdat_wdt", "{text}");
        assert_eq!(get("watchdog-state"), "inactive", "{text}");
        if by_messages {
            // A mebibyte each by 4 and by 64 KiB: all written, all read back, nothing different.
            for disk in ["fio-vda", "fio-vdb"] {
                assert_eq!(get(disk), "0 256,256 16,16", "{text}");
            }
            for way in ["iperf-send", "iperf-receive"] {
                assert!(get(way).starts_with("0 4."), "{text}");
            }
        }
        let (messages, pins) = get("vectors").split_once(' ').unwrap();
        if by_messages {
            // A vector for each queue and each configuration, at least.
            assert!(
                messages.parse::<u32>().unwrap() >= 11 && pins == "0",
                "{text}"
            );
        } else {
            assert_eq!(messages, "0", "{text}");
            assert_ne!(pins, "0", "{text}");
        }
    }
    let late = report.commands[2].text();
    let guest = said(&late, "@test ");
    assert_eq!(
        guest["devices"], "4 1",
        "four, and PCI's host bridge\n{late}"
    );
    assert!(guest["interrupts"].parse::<u32>().unwrap() >= 3, "{late}");
    let (length, sent) = guest["sent"].split_once(' ').unwrap();
    assert_eq!((length, guest["reread"]), ("16384", sent), "{late}");
    assert_eq!(guest["size"], "33 111", "hvc0, {late}");
    assert_eq!(guest["typed"], "by hand", "{late}");
    // The guest sat still while it was asked.
    let hints = said(&late, "@host ")["hints"].strip_prefix("bytes=");
    let bytes = hints.and_then(|hints| hints.split_once(' ')?.0.parse::<u64>().ok());
    let bytes = bytes.unwrap_or_else(|| panic!("no hints in\n{late}"));
    assert!((4 << 20..128 << 20).contains(&bytes), "{late}");
    assert!(late.contains("@test late"), "{late}");
    assert_eq!(said(&late, "@host ")["status"], "15", "{late}");
    assert!(
        late.contains("did not reset its watchdog in time"),
        "{late}"
    );
}
