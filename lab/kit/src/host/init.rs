// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The init script of the host: mounts, modules, the commands one by one, then power-off.

use crate::initramfs::MODULE_LIST;

/// The name of the virtio-serial port that carries the commands' output and our marks.
pub(super) const OUTPUT_PORT: &str = "lab.out";
/// The name of the port over which the files in `/out` come back.
pub(super) const FILES_PORT: &str = "lab.files";
/// Where the commands lie in the initramfs, by index.
pub(super) const COMMANDS: &str = "/lab/commands";

/// What every init of ours does first.
fn preparation() -> String {
    format!(
        "#!/bin/sh
export PATH=/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /out
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ifconfig lo up
while read -r module; do
    insmod $module || echo \"lab: cannot insert $module\"
done < {MODULE_LIST}
"
    )
}

/// The init that runs `count` commands and reports with `token`.
pub(super) fn batch(token: &str, count: usize) -> String {
    let mut script = preparation();
    script.push_str(&format!(
        "for port in /sys/class/virtio-ports/*; do
    read -r name < $port/name
    case $name in
        {OUTPUT_PORT}) exec 3> /dev/${{port##*/}} ;;
        {FILES_PORT}) files=/dev/${{port##*/}} ;;
    esac
done
index=0
while [ $index -lt {count} ]; do
    echo \"{token} begin $index\" >&3
    (exec sh {COMMANDS}/$index < /dev/null >&3 2>&1 3>&-)
    echo \"{token} end $index $?\" >&3
    index=$((index + 1))
done
cd /out
find . -type f | cpio -o -H newc > $files 2> /dev/null
echo \"{token} done\" >&3
poweroff -f
"
    ));
    script
}

/// The init that runs one command on the console.
pub(super) fn on_terminal() -> String {
    let mut script = preparation();
    script.push_str(&format!(
        "setsid cttyhack sh {COMMANDS}/0
poweroff -f
"
    ));
    script
}
