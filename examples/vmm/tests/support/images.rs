// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disks for a guest.

use lab_kit::initramfs::Initramfs;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

/// An empty qcow2 image of `length` bytes, as `qemu-img` makes it.
pub(crate) fn qcow2(length: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&path)
        .arg(length.to_string())
        .status();
    assert!(made.expect("Debian package qemu-utils").success());
    fs::read(path).unwrap()
}

/// A file system with Debian's `fio` and `iperf3` and all that they need, for a guest to mount.
pub(crate) fn tools() -> Vec<u8> {
    let mut archive = Initramfs::new();
    for folder in ["/dev", "/tmp", "/proc"] {
        archive.folder(folder);
    }
    for program in ["/usr/bin/fio", "/usr/bin/iperf3"] {
        archive.program(Path::new(program), program).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let (packed, image) = (folder.path().join("cpio"), folder.path().join("image"));
    archive.write(&packed).unwrap();
    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let unpacked = Command::new("cpio")
        .args(["-idm", "--quiet", "--no-absolute-filenames", "-D"])
        .arg(&root)
        .stdin(File::open(&packed).unwrap())
        .status();
    assert!(unpacked.unwrap().success());
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
        .args([&root, &image])
        .arg("128M")
        .stdout(Stdio::null())
        .status();
    assert!(made.unwrap().success());
    fs::read(image).unwrap()
}
