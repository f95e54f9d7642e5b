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
    esac
done
for _ in $(seq 100); do [ -b /dev/$disk ] && break; usleep 50000; done
echo none >/sys/block/$disk/queue/scheduler
# A virtio disk stands below its PCI function; one of NVMe names it.
for function in /sys/block/$disk/device/.. /sys/block/$disk/device/device; do
    [ -e $function/iommu_group ] && group=$function/iommu_group
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
        *) io-load disk $job /dev/$disk ${job%%-*} 16 $requests ;;
    esac || say "trouble $job"
done
say done
poweroff -f
sleep 60
