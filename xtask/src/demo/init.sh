#!/bin/sh
# The guest's init in `cargo xtask demo`: says what it was given, one "@hvkit KEY VALUE..." a line.
# It judges nothing; the host, which knows what it gave, does.

export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
say() { echo "@hvkit $*"; }
digest() { sha256sum | cut -d' ' -f1; }

say init "$(cut -d' ' -f1 /proc/uptime)"
while read -r module; do
    insmod "$module" || say trouble "module $module"
done </lab/modules/order

say cpus "$(grep -c ^processor /proc/cpuinfo)"
say memory-kib "$(sed -n 's/^MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo)"
for device in /sys/bus/pci/devices/*; do
    say pci "${device##*/}" "$(cat "$device/vendor")" "$(cat "$device/device")" "$(cat "$device/class")"
done

tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 50 ]; do
    tries=$((tries + 1))
    usleep 100000
done
if [ -b /dev/vda ]; then
    say disk-sectors "$(cat /sys/block/vda/size)"
    # The first MiB is the host's, to be read; one at 4 MiB is ours, to be written.
    say disk-read "$(dd if=/dev/vda bs=1M count=1 2>/dev/null | digest)"
    dd if=/dev/urandom of=/tmp/ours bs=1M count=1 2>/dev/null
    say disk-wrote "$(digest </tmp/ours)"
    dd if=/tmp/ours of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null || say trouble "write to /dev/vda"
    echo 3 >/proc/sys/vm/drop_caches
    say disk-reread "$(dd if=/dev/vda bs=1M skip=4 count=1 2>/dev/null | digest)"
else
    say trouble "no /dev/vda after 5 s"
fi
# Sum of what each vCPU counted on the disk's request vectors.
say disk-interrupts "$(awk '/virtio.*-req/ { for (i = 2; $i ~ /^[0-9]+$/; i++) n += $i } END { print n + 0 }' /proc/interrupts)"
say disk-vector-kind "$(awk '/virtio.*-req/ { for (i = 2; i <= NF; i++) if ($i ~ /MSI|IO-APIC/) { print $i; exit } }' /proc/interrupts)"

say rng "$(cat /sys/class/misc/hw_random/rng_current 2>/dev/null) $(dd if=/dev/hwrng bs=512 count=1 2>/dev/null | wc -c)"
# The line is the host's to see: it is on no other console.
[ -c /dev/hvc0 ] && cat /proc/sys/kernel/random/boot_id >/dev/hvc0
say console-wrote "$(cat /proc/sys/kernel/random/boot_id)"

if grep -qw hvkit.shell /proc/cmdline; then
    echo
    echo "A shell in the guest. 'poweroff -f' or Ctrl-D ends the machine; Ctrl-A x ends the VMM."
    setsid cttyhack sh
fi
say end "$(cut -d' ' -f1 /proc/uptime)"
sync
poweroff -f
