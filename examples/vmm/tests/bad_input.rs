// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user can get wrong: one clear line, an exit status of its own, and nothing harmed.

#[path = "support/bzimage.rs"]
mod bzimage;
#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
mod support;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use bzimage::bzimage;
use elf::{elf, kernel};
use kvm::has_kvm;
use support::{Folder, run, vmm};

/// CLI; HLT; a jump back. No test here gets so far.
const STOP: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// Runs `command`, which must end with `status` and one line that contains each of `parts`.
fn refused(command: &mut Command, status: i32, parts: &[&str]) {
    let (code, stdout, stderr) = run(command);
    assert_eq!(code, Some(status), "{command:?}\n{stderr}");
    assert_eq!(stdout, "", "{command:?}");
    assert_eq!(stderr.lines().count(), 1, "more than a line:\n{stderr}");
    assert!(stderr.starts_with("vmm: "), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "'{part}' is not in: {stderr}");
    }
}

/// `vmm` with a kernel that exists and would run.
fn with_kernel(folder: &Folder) -> Command {
    let path = folder.file("kernel", &kernel(STOP));
    let mut command = vmm();
    command.arg("--kernel").arg(path).args(["--serial", "null"]);
    command
}

/// Copies the program to where any user can run it.
fn public_vmm(folder: &Folder) -> PathBuf {
    let path = folder.path("vmm");
    // In a process of its own: a child that another test starts meanwhile would inherit a file open
    // for writing, and the copy could not be executed.
    let (copied, _, stderr) = run(Command::new("cp").arg(env!("CARGO_BIN_EXE_vmm")).arg(&path));
    assert_eq!(copied, Some(0), "{stderr}");
    path
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

#[test]
fn no_kvm() {
    let folder = Folder::new();
    refused(
        with_kernel(&folder).args(["--kvm", "/nonexistent/kvm"]),
        10,
        &["/nonexistent/kvm does not exist"],
    );
    refused(
        vmm().args(["--guest", "hello", "--kvm", "/nonexistent/kvm"]),
        10,
        &["/nonexistent/kvm does not exist"],
    );
}

#[test]
fn no_permission_on_kvm() {
    let folder = Folder::new();
    let device = folder.file("kvm", &[]);
    fs::set_permissions(&device, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = Command::new(public_vmm(&folder));
    command.args(["--guest", "hello", "--kvm"]).arg(&device);
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    refused(&mut command, 11, &["no permission to open", "group kvm"]);
}

#[test]
fn something_else_than_kvm() {
    let folder = Folder::new();
    refused(
        with_kernel(&folder).args(["--kvm", "/dev/null"]),
        12,
        &["/dev/null is not a KVM device"],
    );
}

/// Runs `vmm` with `bytes` as its kernel.
fn refused_kernel(bytes: &[u8], status: i32, part: &str) {
    let folder = Folder::new();
    let path = folder.file("image", bytes);
    refused(
        vmm().args(["--memory", "size=64M", "--kernel"]).arg(&path),
        status,
        &[part, path.to_str().unwrap()],
    );
    assert_eq!(fs::read(&path).unwrap(), bytes, "the kernel was changed");
}

#[test]
fn kernel_missing_or_a_directory() {
    if !has_kvm() {
        return;
    }
    refused(
        vmm().args(["--kernel", "/nonexistent/vmlinux"]),
        20,
        &["cannot read kernel /nonexistent/vmlinux"],
    );
    let parts = &["cannot read kernel /tmp", "directory"];
    refused(vmm().args(["--kernel", "/tmp"]), 20, parts);
}

#[test]
fn kernel_empty() {
    if has_kvm() {
        refused_kernel(&[], 21, "is empty");
    }
}

#[test]
fn kernel_truncated() {
    if !has_kvm() {
        return;
    }
    let whole = kernel(&[0xf4; 4096]);
    // In the ELF header, in the program headers, in the note, in the segment.
    for length in [6, 40, 100, 150, 190, whole.len() - 1] {
        refused_kernel(&whole[..length], 22, "is truncated");
    }
    let whole = bzimage(256, 1 << 20);
    for length in [0x206, 0x240, 0x300, whole.len() - 1] {
        refused_kernel(&whole[..length], 22, "is truncated");
    }
}

#[test]
fn not_a_kernel() {
    if !has_kvm() {
        return;
    }
    refused_kernel(b"#!/bin/sh\n", 23, "is not a kernel");
    refused_kernel(&[0; 8192], 23, "is not a kernel");
    let mut big_endian = kernel(STOP);
    big_endian[5] = 2;
    refused_kernel(&big_endian, 23, "big-endian");
}

#[test]
fn kernel_without_an_entry() {
    if !has_kvm() {
        return;
    }
    refused_kernel(&elf(STOP, None), 24, "has no PVH note");
    let mut old = bzimage(16, 1 << 20);
    old[0x236] = 0;
    refused_kernel(&old, 24, "no 64-bit entry");
}

#[test]
fn kernel_larger_than_memory() {
    if !has_kvm() {
        return;
    }
    refused_kernel(
        &bzimage(16, 0x7000_0000),
        25,
        "needs memory up to 0x71000000",
    );
    // 64 MiB and a page, of which the file holds the first bytes: the rest is to be zero.
    let mut large = kernel(STOP);
    let memory_size = 64 + 56 + 40;
    large[memory_size..memory_size + 8].copy_from_slice(&0x400_1000u64.to_le_bytes());
    refused_kernel(&large, 25, "needs memory up to 0x4101000");
}

#[test]
fn command_line_too_long() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let line = "x".repeat(2048);
    let parts = &["2048 bytes, and 2047 are possible"];
    refused(with_kernel(&folder).args(["--cmdline", &line]), 26, parts);
}

#[test]
fn initramfs_missing_or_larger_than_memory() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    refused(
        with_kernel(&folder).args(["--initramfs", "/nonexistent/initrd"]),
        30,
        &["cannot read initramfs /nonexistent/initrd"],
    );
    let path = folder.file("initramfs", &[]);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    refused(
        with_kernel(&folder)
            .args(["--memory", "size=64M", "--initramfs"])
            .arg(&path),
        31,
        &["1073741824 bytes does not fit"],
    );
}

#[test]
fn memory_that_no_machine_has() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let with = |size: &str, status, part: &str| {
        refused(
            with_kernel(&folder).args(["--memory", size]),
            status,
            &[part],
        );
    };
    with("size=0", 40, "size is 0");
    with("size=4097", 41, "4097 is not a multiple of the page size");
    with("size=1000T", 42, "larger than this host's");
    with("size=4K", 45, "memory too small");
    with("size=lots", 2, "size=lots is not a size such as 512M");
}

#[test]
fn processors_that_no_machine_has() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let with = |count: &str, status, part: &str| {
        refused(
            with_kernel(&folder).args(["--cpus", count]),
            status,
            &[part],
        );
    };
    with("boot=0", 43, "boot is 0");
    with("boot=255", 44, "255 processors");
    with("boot=100000", 44, "100000 processors are too many");
    with("boot=-1", 2, "boot=-1 is not a number of processors");
}

fn disk_refused(folder: &Folder, option: &str, status: i32, parts: &[&str]) {
    refused(with_kernel(folder).args(["--disk", option]), status, parts);
}

#[test]
fn disk_missing_or_a_directory() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    disk_refused(
        &folder,
        "path=/nonexistent/disk",
        50,
        &["/nonexistent/disk"],
    );
    disk_refused(&folder, "path=/tmp", 51, &["/tmp", "directory"]);
}

#[test]
fn disk_read_only() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let disk = folder.file("disk", &[7; 4096]);
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o444)).unwrap();
    let option = format!("path={}", disk.display());
    let mut command = with_kernel(&folder);
    if is_root() {
        // To root no file is read-only. A user who may use KVM is one with a device of their own.
        let device = folder.path("kvm");
        let made = Command::new("mknod")
            .args(["-m", "666"])
            .arg(&device)
            .args(["c", "10", "232"])
            .status();
        assert!(made.unwrap().success(), "mknod");
        command = Command::new(public_vmm(&folder));
        command
            .args(["--serial", "null", "--kernel"])
            .arg(folder.path("kernel"))
            .arg("--kvm")
            .arg(&device)
            .uid(NOBODY)
            .gid(NOBODY);
        folder.file("kernel", &kernel(STOP));
    }
    refused(command.args(["--disk", &option]), 52, &["read-only"]);
    assert_eq!(fs::read(&disk).unwrap(), [7; 4096]);
}

#[test]
fn disk_in_use() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let disk = folder.file("disk", &[7; 4096]);
    let other = File::options().read(true).write(true).open(&disk).unwrap();
    other.lock().unwrap();
    let option = format!("path={}", disk.display());
    disk_refused(&folder, &option, 53, &["in use by another VMM"]);
    // Twice in one machine is no better.
    drop(other);
    let again = format!("path={}", disk.display());
    refused(
        with_kernel(&folder).args(["--disk", &option, &again]),
        53,
        &["in use by another VMM"],
    );
    assert_eq!(fs::read(&disk).unwrap(), [7; 4096]);
}

#[test]
fn unknown_keys_are_named() {
    let folder = Folder::new();
    let with = |option: &str, value: &str, parts: &[&str]| {
        refused(with_kernel(&folder).args([option, value]), 2, parts);
    };
    with(
        "--cpus",
        "boot=1,max=2",
        &["--cpus", "unknown key 'max'", "boot"],
    );
    with(
        "--memory",
        "sise=1G",
        &["--memory", "unknown key 'sise'", "size"],
    );
    with(
        "--disk",
        "path=x,ro=on",
        &["--disk", "unknown key 'ro'", "readonly"],
    );
    let serial = |value: &str, part: &str| {
        let mut command = vmm();
        command.args(["--kernel", "k", "--serial", value]);
        refused(&mut command, 2, &["--serial", part]);
    };
    serial("pipe=x", "unknown key 'pipe'");
    serial("pty", "tty, null, off or file=PATH");
}

#[test]
fn serial_file_in_no_folder_and_one_that_survives() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let path = folder.file("kernel", &kernel(STOP));
    refused(
        vmm()
            .args(["--serial", "file=/nonexistent/log", "--kernel"])
            .arg(&path),
        55,
        &["cannot write serial output to /nonexistent/log"],
    );
    // A machine that never starts leaves what the one before it wrote.
    let logs = ["serial", "console", "bitmap"].map(|name| folder.file(name, b"yesterday's\n"));
    let [serial, console, bitmap] = logs.each_ref().map(|log| log.display());
    let socket = folder.path("socket");
    refused(
        vmm()
            .args(["--serial", &format!("file={serial}")])
            .args(["--console", &format!("file={console}")])
            .arg(format!(
                "--dirty-log=socket={},bitmap={bitmap}",
                socket.display()
            ))
            .args(["--kernel", "/nonexistent/vmlinux"]),
        20,
        &["cannot read kernel"],
    );
    for log in &logs {
        assert_eq!(fs::read(log).unwrap(), b"yesterday's\n", "{log:?}");
    }
}

#[test]
fn remapping_units_that_contradict() {
    let folder = Folder::new();
    let disk = folder.file("disk", &[0; 512]);
    let disk = format!("path={},iommu=on", disk.display());
    let with = |options: &[&str], part: &str| {
        refused(with_kernel(&folder).args(options), 2, &[part]);
    };
    with(&["--disk", &disk], "no remapping unit: add --vtd");
    with(
        &["--console", "null,iommu=on"],
        "--console: the console has iommu=on",
    );
    with(&["--vtd", "aw=64"], "aw=64 is not 39, 48 or 57");
    with(&["--vtd", "--vtd", "aw=39"], "two units have PCI segment 0");
    with(
        &["--vtd", "id=b", "--rng", "iommu=c"],
        "--rng: /dev/urandom has iommu=c",
    );
    with(
        &["--vtd", "pci_segment=1"],
        "and --platform num_pci_segments=1",
    );
    with(
        &["--platform", "17"],
        "--platform: num_pci_segments=17 is not 1 to 16",
    );
    with(&["--vtd", "caching=on", "--device", "/sys"], "add iommu=on");
    with(
        &["--vtd", "--device", "/sys,iommu=on"],
        "needs --vtd caching=on",
    );
    if has_kvm() {
        with(&["--vtd", "39,scalable=on"], "aw=39 is too narrow");
    }
}
