// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks as people know them, with Debian's kernel in the real `vmm` on the laboratory's host: one that needs no
//! privilege (`--net user`, by passt), and what `scripts/network.sh` makes, host-only and bridged.

#[path = "support/marks.rs"]
mod marks;

use lab_kit::host::Host;
use lab_kit::initramfs::Initramfs;
use lab_kit::kernel::Kernel;
use marks::said;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// The guest's init: it takes an address, reaches whom the command line names, and is reached.
const INIT: &str = r#"#!/bin/sh
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
while read -r module; do insmod "$module" || echo "@test trouble $module"; done </lab/modules/order
for word in $(cat /proc/cmdline); do case $word in *=*) eval "lab_$word" 2>/dev/null;; esac; done
say() { echo "@$lab_name $*"; }
digest() { sha256sum | cut -d' ' -f1; }
ip link set lo up
ip link set eth0 up
case $lab_address in
dhcp)
    udhcpc -i eth0 -n -q -t 20 -T 1 -s /dhcp >/dev/null 2>&1
    say lease "$(cat /tmp/lease)"
    ;;
*) ip address add "$lab_address" dev eth0;;
esac
reached() { ping -c 3 -W 10 "$1" | sed -n 's/.*, \([0-9]*\) packets received.*/\1/p'; }
for peer in $(echo $lab_pings | tr , ' '); do say "ping-$peer" "$(reached $peer)"; done
if [ "$lab_server" ]; then
    for way in send receive; do
        [ $way = receive ] && back=-R
        iperf3 -c "$lab_server" -n 4M $back >/tmp/iperf 2>&1
        say "iperf-$way" "$? $(sed -n 's/.* \([0-9.]* [KM]Bytes\) .*sender.*/\1/p' /tmp/iperf)"
    done
fi
if [ "$lab_echo" ]; then
    dd if=/dev/urandom of=/tmp/data bs=64k count=${lab_blocks:-16} 2>/dev/null
    say sent "$(digest </tmp/data)"
    for _ in $(seq ${lab_tries:-1}); do
        socat -t 30 - TCP:$lab_echo:7000 </tmp/data >/tmp/back
        cmp -s /tmp/data /tmp/back && break
    done
    say echoed "$(digest </tmp/back)"
    say length "$(wc -c </tmp/back)"
    say asked "$(wc -c </tmp/data)"
fi
if [ "$lab_peer" ]; then
    iperf3 -c "$lab_peer" -n 4M >/tmp/iperf 2>&1
    say iperf-peer "$? $(sed -n 's/.* \([0-9.]* [KM]Bytes\) .*sender.*/\1/p' /tmp/iperf)"
fi
[ "$lab_closed" ] && say closed "$(socat -T 5 - TCP:$lab_closed,connect-timeout=5 </dev/null >/dev/null 2>&1; echo $?)"
# Serves until the host has had enough: what comes goes back.
[ "$lab_serve" ] && socat TCP-LISTEN:22,reuseaddr,fork EXEC:cat &
# Others may ask, too.
[ "$lab_iperf" ] && iperf3 -s >/dev/null 2>&1 &
say ready
[ "$lab_wait" = link ] && {
    while [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do usleep 100000; done
    say link down
}
[ "$lab_wait" = told ] && read -r _
poweroff -f
sleep 60
"#;

/// What `udhcpc` does with what it was given.
const DHCP: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/${mask:-24}" dev eth0
ip route add default via "$router"
echo "$ip $router $dns" >/tmp/lease
"#;

/// The laboratory's host with `vmm`, the guest, and what both speak to each other by.
fn host(modules: &[&str]) -> Host {
    let kernel = Kernel::fetch().unwrap();
    let mut guest = Initramfs::with_busybox().unwrap();
    guest
        .file("/init", 0o755, INIT)
        .file("/dhcp", 0o755, DHCP)
        .modules(&kernel, &["virtio_pci", "virtio_net"])
        .unwrap();
    for program in ["/usr/bin/socat", "/usr/bin/iperf3"] {
        guest.program(Path::new(program), program).unwrap();
    }
    let host = Host::new()
        .memory_mib(2048)
        .time_out(Duration::from_secs(600))
        .program(env!("CARGO_BIN_EXE_vmm"), "/bin/vmm")
        .program("/usr/bin/socat", "/bin/socat")
        .program("/usr/bin/iperf3", "/bin/iperf3")
        .file(kernel.vmlinux().unwrap(), "/guest/vmlinux", 0o644)
        .data(guest.build().unwrap(), "/guest/initramfs", 0o644)
        .data(
            "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
            "/etc/passwd",
            0o644,
        )
        .data("nobody:x:65534:\nuser:x:1000:\n", "/etc/group", 0o644);
    modules
        .iter()
        .fold(host, |host, module| host.module(module))
}

/// A guest that reached the server it was to reach, both ways.
fn reached<'a>(text: &'a str, name: &str) -> BTreeMap<&'a str, &'a str> {
    let guest = said(text, &format!("@{name} "));
    for way in ["iperf-send", "iperf-receive"] {
        let end = guest.get(way);
        assert!(
            end.is_some_and(|end| end.starts_with("0 4.")),
            "{way}\n{text}"
        );
    }
    guest
}

/// And whose bytes came back as it sent them.
fn echoed<'a>(text: &'a str, name: &str) -> BTreeMap<&'a str, &'a str> {
    let guest = reached(text, name);
    let echo = (guest["echoed"], guest["length"]);
    assert_eq!(echo, (guest["sent"], guest["asked"]), "{text}");
    assert!(["131072", "1048576"].contains(&guest["asked"]), "{text}");
    guest
}

/// passt takes another root for itself, and the laboratory's own is one that nobody can leave: the host's programs are
/// put on another first. `vmm` is a user's, with nothing but KVM.
const USER: &str = r#"
mount --bind / /mnt && cd /mnt && mount --move . / && exec chroot . sh -c '
mount -t proc proc /proc; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp; chmod 1777 /tmp
chmod 666 /dev/kvm
echo 0 65536 >/proc/sys/net/ipv4/ping_group_range
# A host with a way out: where it leads does not matter.
ip link set dummy0 up
ip address add 192.0.2.1/24 dev dummy0; ip route add default via 192.0.2.254
iperf3 -s >/dev/null & served=$!
socat TCP-LISTEN:7000,reuseaddr,fork EXEC:cat & echoes=$!
as_user() { su user -s /bin/sh -c "$*"; }
run() {
    as_user "exec vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory 256M $1 \
        --cmdline \"console=ttyS0 quiet panic=-1 name=test address=dhcp $2\"" >/tmp/out 2>/tmp/err
    echo "@host status-$3 $?"; cat /tmp/err; tr -d "\r" </tmp/out
}
ready() { for _ in $(seq 3000); do grep -q "@test ready" /tmp/out 2>/dev/null && break; usleep 100000; done; }
(
    ready
    dd if=/dev/urandom of=/tmp/data bs=64k count=${lab_blocks:-16} 2>/dev/null
    echo "@host sent $(sha256sum </tmp/data | cut -d" " -f1)"
    # Until the guest listens; nothing comes from one that does not. And again where passt gives something twice.
    for _ in $(seq 50); do
        socat -t 30 - TCP:127.0.0.1:2222 </tmp/data >/tmp/back 2>/dev/null
        cmp -s /tmp/data /tmp/back && break
        usleep 200000
    done
    echo "@host echoed $(sha256sum </tmp/back | cut -d" " -f1) $(wc -c </tmp/back)"
    echo "@host owner $(stat -c %U /proc/$(pidof vmm)) $(stat -c %U /proc/$(pidof passt | cut -d" " -f1))"
    kill $(pidof passt)
) &
# The passt of Debian 12 gives some bytes of a mebibyte twice now and then, by the loopback address each time: no echo there, and
# several elsewhere, of which one must come back as it was sent. The connections of the guest end in it, so that what it puts into
# those of the host is its own doing: a frame that was lost or came twice would not lengthen a stream.
run "--net user,mac=52:54:00:12:34:56,tcp=2222:22,host_loopback=on" \
    "pings=192.0.2.1 server=10.0.2.2 serve=yes wait=link" open
# The host by its own address, but not what only the host itself is to reach. The VMM is killed.
sleep 1; rm /tmp/out
run "--net user" "pings=192.0.2.1 server=192.0.2.1 echo=192.0.2.1 tries=8 blocks=2 closed=10.0.2.2:7000 wait=told" closed & run=$!
ready
echo "@host serving $(pidof passt | wc -w)"
kill -KILL $(pidof vmm)
wait $run
for _ in $(seq 50); do pidof passt >/dev/null || break; usleep 100000; done
echo "@host left $(pidof passt | wc -w)"
run "--net user,tcp=7000" "" taken
run "--net user,tcp=99999999" "" wrong
mkdir /tmp/none; mv /usr/bin/passt* /tmp/none; run "--net user" "" missing
kill $served $echoes'
"#;

/// Host-only, then bridged: two guests, the host, and who is behind the host's uplink.
const SCRIPTED: &str = r#"
export PATH=/usr/bin:/bin
run() {
    su user -s /bin/sh -c "exec vmm --kernel /guest/vmlinux --initramfs /guest/initramfs --memory 256M $2 \
        --cmdline 'console=ttyS0 quiet panic=-1 name=$1 $3'" >/tmp/$1 2>&1
    echo "@host status-$1 $?"; tr -d '\r' </tmp/$1
}
ready() { for _ in $(seq 3000); do grep -q "ready" /tmp/$1 2>/dev/null && break; usleep 100000; done; }
chmod 666 /dev/kvm /dev/net/tun
network() { dash /usr/bin/network.sh "$@"; }
network host-only t0 10.0.0.1/24 user
iperf3 -s >/dev/null & served=$!
socat TCP-LISTEN:7000,reuseaddr,fork EXEC:cat & echoes=$!
run alone "--net tap=t0" "address=10.0.0.2/24 pings=10.0.0.1 server=10.0.0.1 echo=10.0.0.1"
kill $served $echoes
# What this user may not have, and what is not as it is asked for.
ip tuntap add dev others mode tap user nobody
run absent "--net tap=nobodys"
run others "--net tap=others"
run pairs "--cpus boot=2 --net tap=t0,num_queue_pairs=2"
ip link delete others
network host-only t0 10.0.1.1/24; echo "@host twice $?"
network remove t0
echo "@host removed $(ip link show dev t0 2>&1 | grep -c 'does not exist')"

# Another machine at the other end of the host's only cable.
ip link add up0 type veth peer name far
ip netns add outside && ip link set far netns outside
outside() { ip netns exec outside "$@"; }
outside ip link set far up; outside ip address add 192.0.2.254/24 dev far
ip link set up0 up; ip address add 192.0.2.1/24 dev up0
ip route add default via 192.0.2.254; ip route add 198.51.100.0/24 via 192.0.2.254 metric 7
state() { ip -4 -o address show dev up0 | sed 's/^[0-9]*//'; ip -4 route show; }
state >/tmp/before
outside iperf3 -s >/dev/null & served=$!
outside socat TCP-LISTEN:7000,reuseaddr,fork EXEC:cat & echoes=$!
network bridged t0 br0 up0 user && network bridged t1 br0 "" user
echo "@host bridge $(ip -4 -o address show dev br0 | grep -c 192.0.2.1/24) $(ip -4 route | grep -c 'dev br0') $(ip -4 -o address show dev up0 | wc -l)"
run second "--net tap=t1,mac=52:54:00:00:00:02" "address=192.0.2.12/24 serve=yes iperf=yes wait=told" & second=$!
ready second
run busy "--net tap=t1"
run first "--net tap=t0,mac=52:54:00:00:00:01" \
    "address=192.0.2.11/24 pings=192.0.2.254,192.0.2.1,192.0.2.12 server=192.0.2.254 echo=192.0.2.254 peer=192.0.2.12"
kill $(pidof vmm); wait $second
echo "@host still $(ping -c 1 -W 10 192.0.2.254 | sed -n 's/.*, \([0-9]*\) packets received.*/\1/p')"
network unbridge br0 up0; echo "@host early $?"
network remove t0; network remove t1
network unbridge br0 up0; echo "@host undone $?"
state >/tmp/after
cmp /tmp/before /tmp/after && echo "@host restored $(wc -l </tmp/after)" || cat /tmp/before /tmp/after
echo "@host bridges $(ip link show type bridge | wc -l)"
kill $served $echoes
"#;

#[test]
fn a_network_without_privilege() {
    lab_kit::skip_if!(lab_kit::skip::missing(&["/usr/bin/passt"]));
    let report = host(&["dummy"])
        .program("/usr/bin/passt", "/usr/bin/passt")
        .data("nameserver 192.0.2.53\n", "/etc/resolv.conf", 0o644)
        .data("", "/mnt/.keep", 0o644)
        .run(&[USER])
        .unwrap();
    let text = report.commands[0].text();
    let host = said(&text, "@host ");
    assert!(!text.contains("@test trouble"), "{text}");
    // The first machine, and the second, which was killed.
    let (open, closed) = text
        .split_once("@host status-closed 137")
        .unwrap_or_else(|| panic!("{text}"));
    let guest = reached(open, "test");
    assert_eq!(guest["lease"], "10.0.2.15 10.0.2.2 192.0.2.53", "{text}");
    assert_eq!(guest["ping-192.0.2.1"], "3", "{text}");
    // passt was killed: the guest has seen that, and has switched itself off.
    assert_eq!(guest["link"], "down", "{text}");
    assert_eq!(host["status-open"], "0", "{text}");
    assert_eq!(
        host["echoed"],
        format!("{} 1048576", host["sent"]),
        "{text}"
    );
    assert_eq!(host["owner"], "user user", "{text}");
    let guest = echoed(closed, "test");
    assert_eq!(guest["ping-192.0.2.1"], "3", "{text}");
    assert_ne!(guest["closed"], "0", "the host's loopback address\n{text}");
    assert_eq!((host["serving"], host["left"]), ("1", "0"), "{text}");
    for (end, part) in [
        ("taken", "passt refused (exit status: 1): Failed to bind"),
        (
            "wrong",
            "passt refused (exit status: 1): Invalid port specifier",
        ),
        ("missing", "there is no passt in PATH; install it"),
    ] {
        assert_eq!(host[&*format!("status-{end}")], "56", "{text}");
        assert!(text.contains(&format!("vmm: --net user: {part}")), "{text}");
    }
}

#[test]
fn host_only_and_bridged_as_the_script_makes_them() {
    lab_kit::skip_if!(lab_kit::skip::missing(&["/usr/bin/ip"]));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/network.sh");
    let report = host(&["tun", "veth", "bridge"])
        .program("/usr/bin/ip", "/usr/bin/ip")
        .file(script, "/usr/bin/network.sh", 0o755)
        // busybox's own shell prefers its own ip.
        .program("/bin/dash", "/usr/bin/dash")
        .data(SCRIPTED, "/scripted", 0o644)
        .data("", "/run/.keep", 0o644)
        .run(&["dash /scripted"])
        .unwrap();
    let text = report.commands[0].text();
    let host = said(&text, "@host ");
    let guest = echoed(&text, "alone");
    assert_eq!(guest["ping-10.0.0.1"], "3", "{text}");
    assert_eq!(
        (host["status-alone"], host["status-first"]),
        ("0", "0"),
        "{text}"
    );
    assert_eq!((host["twice"], host["removed"]), ("2", "1"), "{text}");
    for (end, status, said) in [
        (
            "absent",
            "57",
            "vmm: tap nobodys: not permitted; it must be made for this user (ip tuntap add), or run with CAP_NET_ADMIN",
        ),
        (
            "others",
            "57",
            "vmm: tap others: not permitted; it must be made for this user (ip tuntap add), or run with CAP_NET_ADMIN",
        ),
        (
            "pairs",
            "56",
            "vmm: tap t0: made for one queue, or for several (ip tuntap add ... multi_queue), and not for as many as are asked for",
        ),
        ("busy", "56", "vmm: tap t1: in use by another process"),
    ] {
        assert_eq!(host[&*format!("status-{end}")], status, "{end}\n{text}");
        assert!(text.lines().any(|line| line == said), "{end}\n{text}");
    }
    // The bridge has the address, its network's route and both others; the uplink has none.
    assert_eq!(host["bridge"], "1 3 0", "{text}");
    let guest = echoed(&text, "first");
    for peer in ["192.0.2.254", "192.0.2.1", "192.0.2.12"] {
        assert_eq!(guest[&*format!("ping-{peer}")], "3", "{text}");
    }
    assert!(guest["iperf-peer"].starts_with("0 4."), "{text}");
    assert_eq!(host["still"], "1", "the host's own way out\n{text}");
    assert_eq!((host["early"], host["undone"]), ("2", "0"), "{text}");
    // An address, its network's route, and two more.
    assert_eq!((host["restored"], host["bridges"]), ("4", "0"), "{text}");
}
