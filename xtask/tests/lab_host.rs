// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The laboratory's host, as a test uses it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab_kit::host::{Host, HostError};

#[test]
fn runs_commands_in_a_host_with_kvm_and_vfio() {
    lab_kit::skip_if!(lab_kit::host::missing());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watched = Arc::clone(&seen);
    let report = Host::new()
        .data("given\n", "/etc/given", 0o644)
        .program("/usr/bin/xz", "/bin/real-xz")
        .program(env!("CARGO_BIN_EXE_xtask"), "/bin/xtask")
        .qemu_args(["-device", "edu"])
        .watch(move |bytes| watched.lock().unwrap().extend_from_slice(bytes))
        .run(&[
            "cat /etc/given; printf 'no end of line'",
            "exit 3",
            "kill -9 $$",
            // A dynamically linked program of this machine, with its libraries.
            "/bin/real-xz --version",
            "test -c /dev/kvm && test -c /dev/vfio/vfio && ls /sys/class/iommu",
            // The edu device is in an IOMMU group, and VFIO takes it.
            "echo 1234 11e8 > /sys/bus/pci/drivers/vfio-pci/new_id && ls /dev/vfio",
            "mkdir -p /out/deep; head -c 300000 /dev/urandom > /out/deep/noise
             sha256sum < /out/deep/noise; : > /out/empty",
            // The host's KVM can run Linux; without it, the probe says what is missing.
            "xtask lab probe",
            "rm /dev/kvm; xtask lab probe",
            "mknod /dev/kvm c 10 232; rmmod kvm_amd kvm; xtask lab probe",
        ])
        .unwrap();

    let statuses: Vec<i32> = report.commands.iter().map(|c| c.status).collect();
    assert_eq!(
        statuses,
        [0, 3, 128 + 9, 0, 0, 0, 0, 0, 0, 0],
        "{report:#?}"
    );
    assert!(report.check().unwrap_err().to_string().contains("`exit 3`"));
    let text: Vec<String> = report.commands.iter().map(|c| c.text()).collect();
    assert_eq!(text[0], "given\nno end of line");
    assert!(text[3].starts_with("xz (XZ Utils)"), "{}", text[3]);
    assert_eq!(text[4], "dmar0\n");
    let groups: Vec<&str> = text[5].lines().filter(|name| *name != "vfio").collect();
    assert!(
        matches!(groups[..], [group] if group.parse::<u32>().is_ok()),
        "{groups:?}"
    );

    assert_eq!(text[7], "direct\n");
    assert_eq!(text[8], "lab: no /dev/kvm\n");
    assert_eq!(
        text[9],
        "lab: /dev/kvm refuses to be opened: No such device (os error 19)\n"
    );

    assert_eq!(report.files["empty"], b"");
    let sum = sha256(&report.files["deep/noise"]);
    assert_eq!(text[6].split(' ').next(), Some(sum.as_str()));
    assert_eq!(report.files.len(), 2);

    let all: Vec<u8> = report
        .commands
        .iter()
        .flat_map(|c| c.output.clone())
        .collect();
    assert_eq!(*seen.lock().unwrap(), all, "what was watched");
    assert!(
        !text.concat().contains("Power down"),
        "the console is apart"
    );
    assert!(report.console.contains("Power down"), "{}", report.console);
}

#[test]
fn a_panic_of_the_host_is_told_from_other_ends() {
    lab_kit::skip_if!(lab_kit::host::missing());
    let error = Host::new()
        .run(&["echo before; echo c > /proc/sysrq-trigger; sleep 100"])
        .unwrap_err();
    match error.downcast_ref() {
        Some(HostError::Panicked { message, .. }) => {
            assert_eq!(message, "sysrq triggered crash");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_that_takes_too_long_is_ended() {
    lab_kit::skip_if!(lab_kit::host::missing());
    let error = Host::new()
        .time_out(Duration::from_secs(1))
        .run(&["true"])
        .unwrap_err();
    match error.downcast_ref() {
        Some(HostError::TimedOut {
            during, seconds: 1, ..
        }) => assert_eq!(during, "booting"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_qemu_says_when_it_refuses_is_passed_on() {
    lab_kit::skip_if!(lab_kit::host::missing());
    let error = Host::new()
        .qemu_args(["-device", "no-such-device"])
        .run(&["true"])
        .unwrap_err();
    match error.downcast_ref() {
        Some(HostError::Ended { qemu, during, .. }) => {
            assert!(qemu.contains("no-such-device"), "{qemu}");
            assert_eq!(during, "booting");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn too_little_memory_is_said_before_the_start() {
    lab_kit::skip_if!(lab_kit::host::missing());
    let error = Host::new()
        .memory_mib(256)
        .data(vec![0; 100 << 20], "/large", 0o644)
        .run(&["true"])
        .unwrap_err();
    match error.downcast_ref() {
        Some(HostError::Memory {
            initramfs_mib,
            memory_mib: 256,
            ..
        }) => {
            assert!((100..120).contains(initramfs_mib), "{initramfs_mib}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_payload_that_is_not_there_is_named() {
    lab_kit::skip_if!(lab_kit::host::missing());
    let error = Host::new()
        .program("/no/such/program", "/bin/x")
        .run(&["true"])
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("/no/such/program"),
        "{error:#}"
    );
}

/// This machine's own tool: an opinion apart from the host's busybox.
fn sha256(data: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), data).unwrap();
    let output = std::process::Command::new("sha256sum")
        .arg(file.path())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split(' ').next().unwrap().to_owned()
}
