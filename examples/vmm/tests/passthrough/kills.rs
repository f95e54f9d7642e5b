// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The VMM killed right after each request by which it takes hold of a device: whatever it has done by then, the host has the
//! device back, by its own driver, and the data is as it was.
//!
//! The points are found, not chosen: `strace` lists what the VMM asks of VFIO and of KVM's VFIO device until the guest runs, and
//! then kills it at the request behind each of those that change something.

use std::fs;

use lab_kit::kernel::Kernel;
use tempfile::NamedTempFile;

use crate::evidence::*;
use crate::lab::*;

/// Requests that tell, and change nothing.
const TELLING: &str = "INFO|CHECK_EXTENSION|API_VERSION|GET_STATUS";

/// `traced OPTION...` runs the VMM under `strace`. `points FILE` lists, of the first thread in a trace and until the guest runs,
/// the number of the request behind each that changes something, and that one's name.
const SCRIPT: &str = r#"
traced() {
    strace -f -qq -e trace=ioctl -e signal=none "$@" vmm --kernel /guest/vmlinux --initramfs /guest/initramfs \
        --memory size=256M --cmdline 'console=ttyS0 quiet panic=-1' --device path=$sys/$nvme </dev/null >/log 2>&1
}
points() {
    awk -v telling="$telling" '
        NR == 1 { main = $1 }
        /KVM_RUN/ { exit }
        $1 == main && $2 ~ /^ioctl\(/ {
            number++
            if ($0 ~ /VFIO_|KVM_SET_DEVICE_ATTR/ && $0 !~ telling) {
                sub(/^[^,]*, /, ""); sub(/[,)].*/, ""); print number + 1, $0
            }
        }' $1
}
"#;

#[test]
fn killed_at_every_step_it_leaves_the_device_to_the_host() {
    lab_kit::skip_if!(lab_kit::skip::missing(&["/usr/bin/strace"]));
    let kernel = Kernel::fetch().unwrap();
    let content = pattern(4 * MIB, 0x5a5a);
    let disk = NamedTempFile::new().unwrap();
    fs::write(disk.path(), &content).unwrap();
    let host = || {
        host(&kernel, &[])
            .program("/usr/bin/strace", "/bin/strace")
            .data(SCRIPT, "/points.sh", 0o644)
            .qemu_args([
                "-drive".to_owned(),
                format!("file={},if=none,id=disk,format=raw", disk.path().display()),
                "-device".to_owned(),
                "nvme,serial=hvkit,drive=disk,addr=5".to_owned(),
            ])
    };
    let setup = format!(". /points.sh; nvme={NVME}; telling='{TELLING}'");
    let report = run(
        host,
        &[
            // All of them: the guest powers off at once.
            &format!(
                "{setup}; give {NVME} vfio-pci; traced -o /trace; status=$?
                 points /trace | tee /points; exit $status"
            ),
            &format!(
                "{setup}; while read -r number name; do
                     give {NVME} vfio-pci >/dev/null
                     traced -o /killed -e inject=ioctl:signal=KILL:when=$number; status=$?
                     echo \"$name $status $(give {NVME} nvme) $(digest /dev/nvme0n1 0 4)\"
                 done </points"
            ),
        ],
    );
    report.check().unwrap();
    let [points, killed] = [0, 1].map(|index| report.commands[index].text());
    let names: Vec<&str> = points
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(_, name)| name)
        .collect();
    // What taking hold of a device cannot do without.
    for name in [
        "VFIO_GROUP_SET_CONTAINER",
        "VFIO_SET_IOMMU",
        "VFIO_IOMMU_MAP_DMA",
        "VFIO_GROUP_GET_DEVICE_FD",
        "VFIO_DEVICE_RESET",
        "KVM_SET_DEVICE_ATTR",
    ] {
        // One number may have two names, of which strace gives both.
        let found = names.iter().any(|found| found.contains(name));
        assert!(found, "no {name}: {points}");
    }
    let expected: Vec<String> = names
        .iter()
        .map(|name| format!("{name} 137 nvme {}", hex(&content)))
        .collect();
    let lines: Vec<&str> = killed.lines().collect();
    assert_eq!(lines, expected, "{points}");
    assert!(fs::read(disk.path()).unwrap() == content);
}
