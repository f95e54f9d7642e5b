# What every command in the host begins with.
[ -d /sys/kernel/debug/kvm ] || mount -t debugfs debugfs /sys/kernel/debug
sys=/sys/bus/pci/devices
# A disk in memory, written once so that all of it is there.
disk() { dd if=/dev/zero of=/dev/shm/disk bs=1M count=64 2>/dev/null; }
# The other ends of a stream each way.
ends() {
    io-load source 0.0.0.0:5001 &
    io-load sink 0.0.0.0:5000 &
}
# The other ends of the guest's network, when the VMM has made the interface.
sink() {
    (
        while ! ifconfig t0 10.0.0.1 netmask 255.255.255.0 up 2>/dev/null; do usleep 50000; done
        ends
        wait
    ) &
}
# The network's jobs without a guest; they need $chunks.
alone() {
    usleep 200000
    io-load send send 127.0.0.1:5000 $chunks && io-load take take 127.0.0.1:5001 $chunks && echo @say done
}
# The disk served by a process of its own, whose number is then in $server.
served() {
    disk
    vmm serve --disk path=/dev/shm/disk --socket /tmp/disk &
    server=$!
    while [ ! -S /tmp/disk ]; do usleep 50000; done
}
# Gives device $1 to driver $2.
give() {
    echo $2 >$sys/$1/driver_override
    [ -e $sys/$1/driver ] && echo $1 >$sys/$1/driver/unbind
    echo $1 >/sys/bus/pci/drivers_probe
}
