#!/bin/sh
# The guest's init: what the words of the kernel's command line say, one after another.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module"; done </lab/modules/order
for word in $(cat /proc/cmdline); do
    case $word in
        disk=*) disk=${word#*=} ;;
        jobs=*) jobs=${word#*=} ;;
        requests=*) requests=${word#*=} ;;
        chunks=*) chunks=${word#*=} ;;
        pairs=*) pairs=${word#*=} ;;
    esac
done
for _ in $(seq 100); do [ -b /dev/$disk ] && break; usleep 50000; done
echo none >/sys/block/$disk/queue/scheduler
# A virtio disk stands below its PCI function; one of NVMe names it.
for function in /sys/block/$disk/device/.. /sys/block/$disk/device/device; do
    [ -e $function/iommu_group ] || continue
    group=$function/iommu_group
    device=$(basename $(readlink -f $function))
done
say() { echo "@say $*"; }
say "kernel $(uname -r)"
[ -n "$group" ] && say "group $(cat $group/type)"
for job in $(echo $jobs | tr , ' '); do
    case $job in
        send)
            ifconfig eth0 10.0.0.2 netmask 255.255.255.0 up
            io-load send send 10.0.0.1:5000 $chunks
            ;;
        take) io-load take take 10.0.0.1:5001 $chunks ;; # after send, which sets the address
        lazy)
            echo DMA-FQ >$group/type
            say "group $(cat $group/type)"
            ;;
        map | map-lazy)
            [ -d /sys/module/map_load ] || insmod /map_load.ko device=$device
            io-load map $job /sys/module/map_load/parameters/pairs $pairs
            ;;
        *) io-load disk $job /dev/$disk ${job%%-*} 16 $requests ;;
    esac || say "trouble $job"
done
say done
poweroff -f
sleep 60
