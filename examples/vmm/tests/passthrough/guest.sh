#!/bin/sh
# The guest of the pass-through tests. What it does is a word of the kernel's command line.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
say() { echo "@test $*"; }
at=/sys/bus/pci/devices/0000:00:01.0
disk=/dev/nvme0n1

# Waits up to ten seconds for a file.
await() {
    for _ in $(seq 100); do [ -e "$1" ] && return; usleep 100000; done
    say missing "$1"
    poweroff -f
}
# Digest of $2 MiB of the disk from MiB $1 on.
digest() { dd if=$disk bs=1M skip=$1 count=$2 iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1; }
# Kind of interrupt, and how often it came.
interrupts() {
    sed -n "s/^ *[0-9]*: *\([0-9]*\) .*\(IO-APIC\|PCI-MSI\) .* \($1[^ ]*\)$/\3 \2 \1/p" /proc/interrupts
}
# Writes 32 bits of configuration space.
config() {
    printf "$(printf '\\x%02x\\x%02x\\x%02x\\x%02x' $(($2 & 255)) $(($2 >> 8 & 255)) $(($2 >> 16 & 255)) $(($2 >> 24 & 255)))" |
        dd of=$at/config bs=4 seek=$(($1 / 4)) conv=notrunc 2>/dev/null
}

nvme() {
    await $disk
    say functions $(ls /sys/bus/pci/devices)
    say digest "$(digest 0 8)"
    [ -e $at/iommu_group ] && say group "$(cat $at/iommu_group/type) $(dmesg | grep -c 'DMAR:.*fault')"
    dd if=/written of=$disk bs=1M seek=8 conv=fsync 2>/dev/null
    say vector $(interrupts nvme0q)
    say capabilities $(od -A n -t x1 -j 52 -N 1 $at/config) $(od -A n -t x4 -j 256 -N 4 $at/config)
    echo 0000:00:01.0 >/sys/bus/pci/drivers/nvme/unbind
    # The one that its driver finds when it comes back.
    [ -e $at/iommu_group ] && echo DMA >$at/iommu_group/type && say domain "$(cat $at/iommu_group/type)"
    say methods $(cat $at/reset_method)
    echo 1 >$at/reset && say reset done
    echo 0000:00:01.0 >/sys/bus/pci/drivers/nvme/bind
    await $disk
    say again "$(digest 8 1)"
    say after $(interrupts nvme0q)
}

# Reads until somebody ends it.
busy() {
    await $disk
    say ready
    while :; do digest 0 8 >/dev/null; done
}

# Reads until the disk is pulled out, and is well.
lost() {
    await $disk
    read -r bar _ <$at/resource
    say ready
    # The driver gives up what it waits for when it finds nothing in the registers.
    while dd if=$disk of=/dev/null bs=1M count=8 iflag=direct 2>/dev/null; do :; done
    say nothing $(od -A n -t x4 -N 8 $at/config) $(devmem $((bar)) 32)
    for _ in $(seq 100); do [ -e $disk ] || break; usleep 100000; done
    say disks $(ls /sys/class/nvme)
    say well "$(sha256sum </written | cut -d' ' -f1)"
}

# edu: identification at 0, its complement at 4, raise at 0x60; DMA at 0x80 source, 0x88 destination,
# 0x90 count, 0x98 command (1 start, 2 to memory); a buffer at 0x40000. A QEMU specification.
poke() { devmem $((bar + $1)) ${3:-64} $2; }
peek() { devmem $((bar + $1)) ${2:-64}; }
dma() {
    poke 0x80 $1; poke 0x88 $2; poke 0x90 $3; poke 0x98 $4
    for _ in $(seq 100); do
        [ $(($(peek 0x98) & 1)) = 0 ] && return
        usleep 20000
    done
    say stuck dma "$*"
}

# Its registers, which answer, and DMA, which is on.
enable() {
    read -r bar _ <$at/resource
    bar=$((bar))
    # Memory space and bus master.
    config 4 6
}

edu() {
    victim=$(sed 's/.*victim=\([^ ]*\).*/\1/' /proc/cmdline)
    enable
    say identity $(peek 0 32)
    poke 4 0x12345678 32
    say complement $(peek 4 32)
    # A round trip through memory that is the guest's, and that its kernel leaves alone.
    for i in 0 1 2 3 4 5 6 7; do devmem $((0xf000000 + 8 * i)) 64 $((0x1122334400000000 + i)); done
    dma 0xf000000 0x40000 64 1
    dma 0x40000 0xf001000 64 3
    say trip $(for i in 0 7; do devmem $((0xf001000 + 8 * i)) 64; done)

    # MSI with a vector that Linux has no handler for: it says which one came.
    msi=$(($(od -A n -t u1 -j 52 -N 1 $at/config)))
    config $((msi + 4)) 0xfee00000
    config $((msi + 8)) 0
    config $((msi + 12)) 0x77
    config $msi $(($(od -A n -t u4 -j $msi -N 4 $at/config) | 0x10000))
    poke 0x60 1 32
    usleep 200000
    poke 0x64 1 32
    say stray $(dmesg | sed -n 's/.* 0\.\([0-9]*\) No irq handler.*/\1/p')

    # Outside the guest's memory: to be written, and to be read.
    dma 0x40000 $victim 64 3
    dma $victim 0x40000 64 1
    dma 0x40000 0xf002000 64 3
    say stolen $(for i in 0 7; do devmem $((0xf002000 + 8 * i)) 64; done)
    # The guest is well, and so is the device.
    dma 0xf001000 0x40000 64 1
    dma 0x40000 0xf004000 64 3
    say well $(devmem 0xf004000 64)
}

# edu behind the guest's own remapping unit: what it reaches follows its domain.
switch() {
    edu
    type=$at/iommu_group/type
    say rogue $(dmesg | grep -c "INTR-REMAP.*${at##*/0000:}.*fault reason 0x25")
    say first $(cat $type)
    # Pattern in its buffer, then to memory: to be stopped, and then not.
    dma 0xf000000 0x40000 64 1
    echo DMA >$type
    say second $(cat $type)
    devmem 0xf005000 64 0x77
    dma 0x40000 0xf005000 64 3
    say kept $(devmem 0xf005000 64)
    echo identity >$type
    say third $(cat $type)
    dma 0xf000000 0x40000 64 1
    dma 0x40000 0xf006000 64 3
    say back $(devmem 0xf006000 64)
}

# edu assigned by this guest to a program of its own, twice.
assign() {
    while read -r module; do insmod $module || say trouble $module; done </lab/modules/order
    name=${at##*/}
    echo vfio-pci >$at/driver_override
    echo $name >/sys/bus/pci/drivers_probe
    HVKIT_DEVICE=$at /bin/nested --exact nested::drives_edu --nocapture
    say first $?
    echo $name >$at/driver/unbind
    # The program's page was mapped to its end.
    enable
    dma $((0x70000000)) 0x40000 64 1
    echo $name >/sys/bus/pci/drivers_probe
    say driver "$(basename "$(readlink $at/driver)")"
    HVKIT_THEN=unmap HVKIT_DEVICE=$at /bin/nested --exact nested::drives_edu --nocapture
    say second $?
    echo $name >$at/driver/unbind
    say faults "$(cat $at/iommu_group/type) $(dmesg | grep -c 'DMAR:.*fault')"
}

# A disk, and edu after it.
both() {
    nvme
    at=/sys/bus/pci/devices/0000:00:02.0
    $1
}

case "$(cat /proc/cmdline)" in
*do=both_switch*) both switch ;;
*do=both*) both edu ;;
*do=switch*) switch ;;
*do=assign*) assign ;;
*do=nvme*) nvme ;;
*do=busy*) busy ;;
*do=lost*) lost ;;
*do=edu*) edu ;;
esac
poweroff -f
sleep 60
