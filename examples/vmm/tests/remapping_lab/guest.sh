#!/bin/sh
# The guest of the remapping tests: says what it finds of the unit, and moves bytes through the disks.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module" || echo "@test trouble $module"; done </lab/modules/order
say() { echo "@test $*"; }
digest() { sha256sum | cut -d' ' -f1; }
# Writes and reads both disks, round after round, until somebody types; then a few rounds more.
work() {
    (read -r _ </dev/ttyS0; touch /told) &
    known=$(dd if=/written bs=64k count=16 2>/dev/null | digest)
    rounds=0 bad=0 more=4
    say working
    while [ $more -gt 0 ]; do
        [ -e /told ] && more=$((more - 1))
        at=$((64 + rounds % 2 * 16))
        for disk in vda vdb; do
            dd if=/written of=/dev/$disk bs=64k count=16 seek=$at oflag=direct 2>/dev/null
            [ "$(dd if=/dev/$disk bs=64k count=16 skip=$at iflag=direct 2>/dev/null | digest)" = "$known" ] || bad=$((bad + 1))
        done
        rounds=$((rounds + 1))
    done
    say rounds $rounds
    say bad $bad
    for disk in vda vdb; do
        say $disk "$(dd if=/dev/$disk bs=64k iflag=direct 2>/dev/null | digest)"
    done
    say random "$(dd if=/dev/hwrng bs=1000 count=1 2>/dev/null | wc -c)"
    say lost "$(dmesg | grep -ci 'dmar:.*fault\|i/o error')"
    poweroff -f
    sleep 60
}
grep -qw do=work /proc/cmdline && work
say enabled "$(dmesg | grep -c 'DMAR: Intel(R) Virtualization Technology for Directed')"
say units $(for unit in /sys/class/iommu/dmar*; do echo "${unit##*/}=$(cat $unit/intel-iommu/address)"; done)
say groups $(ls /sys/kernel/iommu_groups | wc -l)
for at in /sys/bus/virtio/devices/*; do
    function=$(readlink -f $at/..)
    say "$(cat $at/device)-$(basename $function)" "$(cut -c34 $at/features) $(cat $function/iommu_group/type) $(basename $(readlink -f $function/iommu))"
done
for disk in vda vdb; do
    say $disk "$(dd if=/dev/$disk bs=64k iflag=direct 2>/dev/null | digest)"
    dd if=/written of=/dev/$disk bs=256k seek=8 oflag=direct 2>/dev/null
    sync
    say $disk-again "$(dd if=/dev/$disk bs=256k skip=8 count=8 iflag=direct 2>/dev/null | digest)"
done
say remapping "$(dmesg | sed -n 's/.*DMAR-IR: Enabled IRQ remapping in \(.*\) mode/\1/p')"
say online "$(cat /sys/devices/system/cpu/online)"
say random "$(dd if=/dev/hwrng bs=1000 count=1 2>/dev/null | wc -c)"
# Kind, name and how often it came, of each interrupt that should have come.
say vector $(awk 'NR == 1 { cpus = NF }
    /IO-APIC|PCI-MSI/ && $NF ~ /^(ttyS0|virtio[0-9]*(-[ri].*)?)$/ {
        for (i = 2; i <= cpus + 1; i++) sum += $i
        print $(cpus + 2), $NF, sum ","; sum = 0
    }' /proc/interrupts)
say lost "$(dmesg | grep -ci 'dmar:.*fault\|i/o error')"
poweroff -f
sleep 60
