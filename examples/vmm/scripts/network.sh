#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# Tap interfaces for `vmm --net tap=NAME`, in the two ways that need root once and a user afterwards.
#
#   network.sh host-only TAP ADDRESS/PREFIX [USER]   guest and host reach each other, and nobody else
#   network.sh bridged TAP BRIDGE [UPLINK] [USER]    the guest is on the network of UPLINK; the bridge is made if it is
#                                                    not there, and an uplink's own addresses and routes (IPv4) move to it
#   network.sh remove TAP                            takes the interface away again; a bridge stays
#   network.sh unbridge BRIDGE UPLINK                takes a bridge without taps away again: addresses and routes move back
#
# With MULTI_QUEUE=1 before it, the interface is one for `--net tap=NAME,num_queue_pairs=N`.
#
# USER may then use the interface; without one, who runs this (through sudo: who called that).
set -eu

fail() {
    echo "network.sh: $*" >&2
    exit 2
}

usage() {
    sed -n 's/^#   //p' "$0" >&2
    exit 2
}

is_there() { ip link show dev "$1" >/dev/null 2>&1; }

tap() {
    is_there "$1" && fail "there is an interface $1 already"
    ip tuntap add dev "$1" mode tap ${MULTI_QUEUE:+multi_queue} user "$2"
    ip link set dev "$1" up
}

# Addresses of $1, and routes by it, become those of $2.
move() {
    addresses=$(ip -o -4 address show dev "$1" scope global | awk '{print $4}')
    # The kernel makes those of the addresses themselves.
    routes=$(ip -4 route show dev "$1" | grep -v 'proto kernel' | sed 's/ linkdown//; s/ dead//' || true)
    for address in $addresses; do
        ip address delete "$address" dev "$1"
        ip address add "$address" dev "$2"
    done
    # Gateways are reached by the others.
    for kind in '-v' '-e'; do
        printf '%s\n' "$routes" | grep $kind ' via ' | while read -r route; do
            # A route is several words.
            [ -z "$route" ] || ip route replace $route dev "$2"
        done
    done
}

[ $# -ge 2 ] || usage
way=$1 tap=$2
shift 2
me=${SUDO_USER:-$(id -un)}
case $way in
host-only)
    [ $# -ge 1 ] || usage
    case $1 in */*) ;; *) fail "$1 has no prefix, as 10.0.0.1/24 has" ;; esac
    tap "$tap" "${2:-$me}"
    # An address that cannot be had leaves nothing behind.
    ip address add "$1" dev "$tap" || { ip link delete dev "$tap"; exit 1; }
    echo "host-only: $tap has $1; run vmm --net tap=$tap"
    ;;
bridged)
    [ $# -ge 1 ] || usage
    bridge=$1 uplink=${2:-}
    [ -z "$uplink" ] || is_there "$uplink" || fail "there is no interface $uplink"
    is_there "$bridge" || ip link add dev "$bridge" type bridge
    [ -n "$(ip -o link show dev "$bridge" type bridge 2>/dev/null)" ] || fail "$bridge is no bridge"
    ip link set dev "$bridge" up
    if [ -n "$uplink" ] && ! ip -o link show master "$bridge" | grep -q " $uplink[:@]"; then
        ip link set dev "$uplink" master "$bridge"
        move "$uplink" "$bridge"
    fi
    tap "$tap" "${3:-$me}"
    ip link set dev "$tap" master "$bridge"
    echo "bridged: $tap is on $bridge; run vmm --net tap=$tap"
    ;;
remove)
    is_there "$tap" || fail "there is no interface $tap"
    ip link delete dev "$tap"
    ;;
unbridge)
    [ $# -ge 1 ] || usage
    bridge=$tap uplink=$1
    [ -n "$(ip -o link show dev "$bridge" type bridge 2>/dev/null)" ] || fail "$bridge is no bridge"
    ip -o link show master "$bridge" | grep -q " $uplink[:@]" || fail "$uplink is not on $bridge"
    others=$(ip -o link show master "$bridge" | awk -F': ' '{print $2}' | grep -v "^$uplink\(@\|$\)" || true)
    [ -z "$others" ] || fail "still on $bridge:" $others
    ip link set dev "$uplink" nomaster
    move "$bridge" "$uplink"
    ip link delete dev "$bridge"
    ;;
*) usage ;;
esac
