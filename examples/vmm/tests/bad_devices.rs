// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user can get wrong about devices: one line that names it, and an exit status of its own.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
mod support;

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;

use elf::kernel;
use kvm::has_kvm;
use support::{Folder, run, vmm};

/// `vmm` with a kernel that exists and an option; it must end with `status` and one line that has all of `parts`.
fn refused(folder: &Folder, options: &[&str], status: i32, parts: &[&str]) {
    let path = folder.file("kernel", &kernel(&[0xfa, 0xf4, 0xeb, 0xfd]));
    let mut command = vmm();
    command
        .arg("--kernel")
        .arg(path)
        .args(["--serial", "null"])
        .args(options);
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!(code, Some(status), "{options:?}\n{stderr}");
    assert_eq!(stdout, "", "{options:?}");
    assert_eq!(stderr.lines().count(), 1, "more than a line:\n{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "'{part}' is not in: {stderr}");
    }
}

#[test]
fn keys_and_values_that_there_are_not() {
    let folder = Folder::new();
    for (option, value, part) in [
        ("--balloon", "target=1M", "--balloon: unknown key 'target'"),
        ("--balloon", "size=much", "size=much is not a size"),
        (
            "--balloon",
            "deflate_on_oom=1",
            "deflate_on_oom=1 is not on or off",
        ),
        ("--vsock", "cid=3", "--vsock: key 'socket' is missing"),
        ("--vsock", "port=3", "--vsock: unknown key 'port'"),
        ("--pmem", "size=2M", "--pmem: unknown key 'size'"),
        (
            "--disk",
            "d,image_type=vhdx",
            "image_type=vhdx is not raw or qcow2",
        ),
        ("--disk", "d,backing=yes", "backing=yes is not on or off"),
        ("--disk", "d,direct=1", "direct=1 is not on or off"),
        (
            "--net",
            "mac=52:54:00:00:00:01",
            "one of 'tap' and 'socket' must be given, not neither",
        ),
        ("--net", "tap=a,socket=b", "must be given, not both"),
        ("--fs", "tag=a", "--fs: key 'socket' is missing"),
        (
            "--disk",
            "vhost_user=on,socket=s,serial=x",
            "--disk: unknown key 'serial' (known: socket, vhost_user",
        ),
    ] {
        refused(&folder, &[option, value], 2, &[part]);
    }
}

#[test]
fn sockets_that_cannot_be_had() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let absent = folder.path("absent");
    let absent = absent.to_str().unwrap();
    let parts = ["--net: cannot connect to ", absent];
    refused(&folder, &["--net", &format!("socket={absent}")], 56, &parts);
    let file = folder.file("file", b"precious");
    let name = file.to_str().unwrap();
    let vsock = format!("cid=3,socket={name}");
    refused(
        &folder,
        &["--vsock", &vsock],
        71,
        &["--vsock: ", name, "not a socket"],
    );
    let balloon = format!("socket={name}");
    refused(&folder, &["--balloon", &balloon], 70, &["--balloon", name]);
    let image = folder.file("image", &[0; 512]);
    let disk = format!("path={},control={name}", image.display());
    let parts = ["--disk control=", name, "in use, or no socket"];
    refused(&folder, &["--disk", &disk], 54, &parts);
    let log = format!("socket={name}");
    refused(&folder, &["--dirty-log", &log], 76, &["--dirty-log", name]);
    let log = format!("socket={absent},bitmap={name}/bits");
    let parts = ["--dirty-log", name, "Not a directory"];
    refused(&folder, &["--dirty-log", &log], 76, &parts);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
    let parts = ["--vsock: context identifier 2;"];
    refused(
        &folder,
        &["--vsock", &format!("cid=2,socket={absent}")],
        71,
        &parts,
    );
}

#[test]
fn processes_that_do_not_serve_a_device() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let absent = folder.path("absent");
    let absent = absent.to_str().unwrap();
    for (option, keys) in [
        ("disk", "vhost_user=on"),
        ("net", "vhost_user=on"),
        ("fs", "tag=a"),
    ] {
        let value = format!("{keys},socket={absent}");
        let said = format!("--{option}: cannot connect to {absent}: No such file");
        refused(&folder, &[&format!("--{option}"), &value], 74, &[&said]);
    }
    let value = format!("vhost_user=on,socket={absent},iommu=on");
    let line = "iommu=on, which needs --vtd caching=on";
    refused(&folder, &["--disk", &value, "--vtd"], 2, &[line, absent]);
    // One that hangs up at once.
    let path = folder.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let hanging_up = thread::spawn(move || drop(listener.accept().unwrap()));
    let name = path.to_str().unwrap();
    let value = format!("vhost_user=on,socket={name}");
    let parts = [
        "--disk: socket ",
        name,
        "the back end is gone: it was asked for GET_FEATURES",
    ];
    refused(&folder, &["--disk", &value], 74, &parts);
    hanging_up.join().unwrap();
}

#[test]
fn processes_that_do_not_serve_a_pci_device() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let absent = folder.path("absent");
    let absent = absent.to_str().unwrap();
    let option = |keys: &str| format!("socket={absent}{keys}");
    for (options, status, part) in [
        (
            vec![option("")],
            74,
            format!("--user-device: cannot connect to {absent}: No such file"),
        ),
        (
            vec![option(""), option("")],
            74,
            format!("--user-device: {absent} is given twice"),
        ),
        (
            vec![option(",iommu=on")],
            2,
            "there is no remapping unit: add --vtd".to_owned(),
        ),
        (
            vec![option(",iommu=on"), "--vtd".to_owned()],
            2,
            format!("--user-device: {absent} has iommu=on, which needs --vtd caching=on"),
        ),
        (
            vec![option(""), "--vtd=caching=on".to_owned()],
            2,
            "is translated: add iommu=on".to_owned(),
        ),
        (
            vec![option(""), "--snapshot".to_owned(), "/tmp/none".to_owned()],
            2,
            "another process serves it".to_owned(),
        ),
    ] {
        let options: Vec<&str> = std::iter::once("--user-device")
            .chain(options.iter().map(String::as_str))
            .collect();
        refused(&folder, &options, status, &[&part]);
    }
    // One that hangs up at once.
    let path = folder.path("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let hanging_up = thread::spawn(move || drop(listener.accept().unwrap()));
    let name = path.to_str().unwrap();
    let parts = ["--user-device: ", name, "this is no vfio-user server: "];
    refused(&folder, &["--user-device", name], 74, &parts);
    hanging_up.join().unwrap();
}

#[test]
fn machines_that_cannot_serve_another() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let file = folder.file("file", b"precious");
    let (file, absent) = (file.to_str().unwrap(), folder.path("absent/socket"));
    for (value, also, status, part) in [
        (
            file.to_owned(),
            &[][..],
            75,
            "--vhost-user-backend: {file} is in use, or no socket",
        ),
        (
            format!("socket={}", absent.display()),
            &[],
            75,
            "--vhost-user-backend: cannot listen at ",
        ),
        (
            folder.path("socket").display().to_string(),
            &["--transport", "mmio"],
            2,
            "--vhost-user-backend: another machine's memory is shown by PCI only",
        ),
        ("socket=s,iommu=on".to_owned(), &[], 2, "iommu=on"),
    ] {
        let arguments = [&["--vhost-user-backend", &value], also].concat();
        refused(
            &folder,
            &arguments,
            status,
            &[&part.replace("{file}", file)],
        );
    }
    assert_eq!(fs::read(file).unwrap(), b"precious");
    // In the guest: a device that is none, and both ways at once.
    for (arguments, status, part) in [
        (
            vec!["--device", "/nowhere"],
            75,
            "serve: --device: /nowhere: ",
        ),
        (
            vec!["--device", "/d", "--socket", "/s"],
            2,
            "cannot be used with",
        ),
        (vec![], 2, "--socket <PATH>"),
    ] {
        let disk = format!("path={}", folder.file("disk", &[0; 4096]).display());
        let mut command = vmm();
        command.args(["serve", "--disk", &disk]).args(arguments);
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!((code, stdout.as_str()), (Some(status), ""), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn disks_that_cannot_be_served() {
    let folder = Folder::new();
    let absent = folder.path("absent");
    let disk = folder.file("disk", &[0; 4096]);
    let (absent, disk) = (absent.to_str().unwrap(), disk.to_str().unwrap());
    for (path, socket, status, part) in [
        (absent, "socket", 50, absent),
        (disk, disk, 74, "serve: cannot listen at "),
        ("", "socket", 2, "--disk: path= is not a file's name"),
    ] {
        let mut command = vmm();
        let value = format!("path={path}");
        command.args(["serve", "--disk", &value, "--socket", socket]);
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!((code, stdout.as_str()), (Some(status), ""), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "more than a line:\n{stderr}");
        assert!(stderr.contains(part), "{stderr}");
    }
}

#[test]
fn files_that_are_no_memory_and_no_image() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let absent = folder.path("absent");
    let absent = absent.to_str().unwrap();
    refused(
        &folder,
        &["--pmem", absent],
        72,
        &[absent, "cannot be opened"],
    );
    refused(&folder, &["--pmem", "/tmp"], 72, &["/tmp: not a file"]);
    let odd = folder.file("odd", &[0; 4096]);
    let name = odd.to_str().unwrap();
    refused(
        &folder,
        &["--pmem", name],
        72,
        &[name, "not a multiple of 2 MiB"],
    );
    let twice = folder.file("twice", &[0; 2 << 20]);
    let name = twice.to_str().unwrap();
    let locked = format!("{name}: in use by another VMM");
    refused(&folder, &["--pmem", name, name], 72, &[&locked]);
    refused(&folder, &["--pmem", name, "--disk", name], 53, &[&locked]);
    let name = odd.to_str().unwrap();
    let disk = format!("{name},image_type=qcow2");
    refused(
        &folder,
        &["--disk", &disk],
        54,
        &[name, "not a qcow2 image"],
    );
}
