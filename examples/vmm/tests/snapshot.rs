// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Machines that are saved and restored: kernels of a few instructions on this machine's own KVM, and what is refused.

#[path = "support/elf.rs"]
mod elf;
#[path = "support/kvm.rs"]
mod kvm;
#[path = "support/signal.rs"]
mod signal;
mod support;

use elf::kernel;
use kvm::has_kvm;
use signal::{Signalled, signalled};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Folder, run, vmm};

/// MOV DX, port; MOV AL, value; OUT DX, AL.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Says `verdict`, switches off, and spins.
fn end(verdict: u8) -> Vec<u8> {
    let off = out(0x600, 0x34);
    [out(0x3f8, verdict), off, vec![0xeb, 0xfe]].concat()
}

/// A kernel that puts words into a register and into memory, says that it is ready, and counts until a byte is typed. It
/// answers with the byte that follows, and whether all is as it left it: `k`, or `n`.
fn waiting() -> Vec<u8> {
    let mut code = vec![0xbe, 0x78, 0x56, 0x34, 0x12]; // MOV ESI, 0x12345678
    code.extend([0xc7, 0x05, 0, 0, 0x20, 0, 0xef, 0xbe, 0xad, 0xde]); // MOV [0x200000], 0xdeadbeef
    code.extend(out(0x3f8, b'r'));
    code.extend(out(0x3f8, b'\n'));
    code.extend([0x41, 0x66, 0xba, 0xfd, 0x03, 0xec]); // INC ECX; MOV DX, 0x3fd; IN AL, DX
    code.extend([0xa8, 0x01, 0x74, 0xf6]); // TEST AL, 1; JZ to INC
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xfe, 0xc0, 0xee]); // MOV DX, 0x3f8; IN; INC AL; OUT
    let (good, bad) = (end(b'k'), end(b'n'));
    let to_bad = good.len() as u8;
    let memory = [
        0x81, 0x3d, 0, 0, 0x20, 0, 0xef, 0xbe, 0xad, 0xde, 0x75, to_bad,
    ]; // CMP [0x200000]; JNE
    let register = [0x81, 0xfe, 0x78, 0x56, 0x34, 0x12, 0x75, to_bad + 12]; // CMP ESI; JNE
    code.extend([0x85, 0xc9, 0x74, to_bad + 20]); // TEST ECX, ECX; JZ
    code.extend(register);
    code.extend(memory);
    [code, good, bad].concat()
}

/// `vmm` with 4 MiB, and what the kernel is in.
fn machine(folder: &Folder, cpus: u32) -> Command {
    let path = folder.file("kernel", &kernel(&waiting()));
    let mut command = vmm();
    let cpus = format!("boot={cpus}");
    command
        .args(["--memory", "size=4M", "--cpus", &cpus, "--kernel"])
        .arg(path);
    command
}

/// Starts `command`, waits for the guest's first line, and asks for a snapshot; its end, and what it complained of.
fn save(command: &mut Command) -> (Option<i32>, String) {
    let Signalled {
        line,
        status,
        stderr,
    } = signalled(command, "USR1", Duration::from_secs(60));
    assert_eq!(line, "r\n");
    (status, stderr)
}

/// `vmm` that goes on with what is in `saved`, a byte typed.
fn restored(folder: &Folder, saved: &Path, cpus: u32) -> Command {
    let input = folder.file("input", b"x");
    let mut command = vmm();
    let cpus = format!("boot={cpus}");
    command
        .args(["--memory", "size=4M", "--cpus", &cpus, "--restore"])
        .arg(saved);
    command.stdin(fs::File::open(input).unwrap());
    command
}

#[test]
fn a_machine_goes_on_where_it_was_saved_as_often_as_one_likes() {
    if !has_kvm() {
        return;
    }
    for cpus in [1, 2] {
        let folder = Folder::new();
        let saved = folder.path("saved");
        let (status, stderr) = save(machine(&folder, cpus).arg("--snapshot").arg(&saved));
        assert_eq!((status, stderr.as_str()), (Some(16), ""));
        // The guest's memory, of which next to nothing is used; none but the user may read it.
        let memory = fs::metadata(saved.join("memory")).unwrap();
        assert_eq!(memory.len(), 4 << 20);
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        assert!(memory.blocks() * 512 < 1 << 20, "{memory:?}");
        assert_eq!(memory.permissions().mode() & 0o777, 0o600);
        for _ in 0..2 {
            let (status, stdout, stderr) = run(&mut restored(&folder, &saved, cpus));
            assert_eq!((status, stdout.as_str()), (Some(0), "yk"), "{stderr}");
            assert_eq!(stderr, "");
        }
    }
}

/// What `command` says when it is refused: one line, and the status.
fn refused(command: &mut Command) -> (Option<i32>, String) {
    let (status, stdout, stderr) = run(command);
    assert_eq!(stdout, "");
    let line = stderr
        .strip_prefix("vmm: ")
        .and_then(|s| s.strip_suffix('\n'));
    (
        status,
        line.unwrap_or_else(|| panic!("{stderr}")).to_owned(),
    )
}

#[test]
fn what_cannot_be_saved_is_refused_before_the_guest_runs() {
    let folder = Folder::new();
    let saved = folder.path("saved");
    let device = "path=/sys/bus/pci/devices/0000:00:03.0,id=disk";
    let pmem = folder.file("pmem", &[0; 4096]);
    let discarded = format!("path={},discard_writes=on", pmem.display());
    for (arguments, device, why) in [
        (
            ["--device", device],
            "disk",
            "it is a device of the host, whose state no one can read",
        ),
        (
            ["--disk", "vhost_user=on,socket=/nowhere"],
            "/nowhere",
            "another process serves it, whose state no one can read",
        ),
        (
            ["--vhost-user-backend", "socket=/run/peer"],
            "/run/peer",
            "another machine is at the other end",
        ),
        (
            ["--fs", "tag=files,socket=/run/files"],
            "/run/files",
            "another process serves it, whose state no one can read",
        ),
        (
            ["--pmem", &discarded],
            pmem.to_str().unwrap(),
            "with discard_writes=on, what the guest wrote to it is kept nowhere",
        ),
    ] {
        for option in ["snapshot", "restore"] {
            let mut command = vmm();
            command
                .arg(format!("--{option}"))
                .arg(&saved)
                .args(arguments);
            if option == "snapshot" {
                command.args(["--kernel", "/nowhere"]);
            }
            let expected = format!("--{option}: {device} cannot be saved: {why}");
            assert_eq!(refused(&mut command), (Some(2), expected));
        }
    }
    assert!(!saved.exists());
}

#[test]
fn folders_without_a_machine_are_refused_by_name() {
    let folder = Folder::new();
    let saved = folder.path("saved");
    let refused = || refused(vmm().arg("--restore").arg(&saved));
    let manifest = saved.join("manifest.json");
    let none = format!(
        "cannot read {}: No such file or directory (os error 2)",
        manifest.display()
    );
    assert_eq!(refused(), (Some(73), none));
    fs::create_dir(&saved).unwrap();
    for (bytes, why) in [
        (
            &b""[..],
            "it is empty: no machine was saved there, or not to the end",
        ),
        (b"{", "EOF while parsing an object at line 1 column 1"),
        (b"[2]", "invalid length 1, expected struct Manifest"),
        (
            b"{\"version\":3,\"new\":[]}",
            "it is of version 3; this VMM reads version 2",
        ),
        (b"{\"version\":2}", "missing field `machine`"),
        (
            b"{\"version\":2,\"machine\":7}",
            "invalid type: integer `7`, expected struct Description",
        ),
        (
            b"{\"version\":2,\"kernel\":\"/etc/shadow\"}",
            "unknown field `kernel`",
        ),
    ] {
        fs::write(&manifest, bytes).unwrap();
        let (status, line) = refused();
        assert_eq!(status, Some(73), "{line}");
        let start = format!("--restore: {}: ", manifest.display());
        assert!(
            line.strip_prefix(&start).unwrap().starts_with(why),
            "{line}"
        );
    }
    fs::File::create(&manifest)
        .unwrap()
        .set_len((64 << 20) + 1)
        .unwrap();
    let (status, line) = refused();
    assert_eq!(status, Some(73));
    assert!(
        line.ends_with("it has 67108865 bytes, and no machine has more than 67108864"),
        "{line}"
    );
}

/// Whatever somebody changed in a snapshot, or in the options, is named; nothing runs.
#[test]
fn a_snapshot_is_not_believed() {
    use serde_json::{Value, json};
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let saved = folder.path("saved");
    let (status, stderr) = save(machine(&folder, 1).arg("--snapshot").arg(&saved));
    assert_eq!(status, Some(16), "{stderr}");
    let taken = format!(
        "--snapshot: {} has a machine in it: give another folder, or remove that one",
        saved.display()
    );
    let again = refused(machine(&folder, 1).arg("--snapshot").arg(&saved));
    assert_eq!(again, (Some(73), taken));

    // Options that are others than then.
    let (_, line) = refused(&mut restored(&folder, &saved, 2));
    assert_eq!(
        line,
        "--restore: the machine was saved with 1 processors, and the options say 2"
    );
    for (arguments, what) in [
        (&["--watchdog"][..], "a watchdog is only in the options"),
        (
            &["--vtd", "intremap=off"],
            "the machine was saved with 0 remapping units, and the options say 1",
        ),
        (
            &["--serial", "off"],
            "a serial line is only in the snapshot",
        ),
        (
            &["--rng"],
            "the machine was saved with 0 devices on the PCI bus, and the options say 1",
        ),
    ] {
        let (status, line) = refused(restored(&folder, &saved, 1).args(arguments));
        assert_eq!((status, line), (Some(73), format!("--restore: {what}")));
    }

    let path = saved.join("manifest.json");
    let good: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 9] = [
        (
            |m| m["machine"]["memory"] = json!(1u64 << 40),
            "1099511627776 bytes of memory, and the options say 4194304",
        ),
        (
            |m| m["machine"]["features"][0]["registers"][3] = json!(1),
            "another one: CPUID 0x1.0x0 EDX was 0x1",
        ),
        (
            |m| m["processors"] = json!([]),
            "saved with 0 vCPUs, and the options say 1",
        ),
        (
            |m| m["processors"][0]["model_specific"] = json!([[0x1234_5678, 9]]),
            "vCPU 0: KVM does not take 0x9 in the model-specific register 0x12345678",
        ),
        (
            |m| m["processors"][0]["registers"] = json!([256]),
            "invalid value: integer `256`, expected u8",
        ),
        (
            |m| m["interrupts"] = json!({"Ours": {"select": 0, "id": 0, "entries": vec![0; 24]}}),
            "interrupt remapping is only in the snapshot",
        ),
        (
            |m| m["serial"]["received"] = json!(vec![7; 65]),
            "has 65 bytes waiting; it has room for 64",
        ),
        (
            |m| m["devices"] = json!([{"segment": 0, "at": 8}]),
            "missing field `state`",
        ),
        (
            |m| m["clock"] = Value::Null,
            "invalid type: null, expected a byte array",
        ),
    ];
    for (change, what) in changes {
        let mut forged = good.clone();
        change(&mut forged);
        fs::write(&path, forged.to_string()).unwrap();
        let (status, line) = refused(&mut restored(&folder, &saved, 1));
        assert_eq!(status, Some(73), "{line}");
        assert!(line.contains(what), "'{what}' is not in: {line}");
    }
    fs::write(&path, good.to_string()).unwrap();
    let memory: PathBuf = saved.join("memory");
    fs::File::options()
        .write(true)
        .open(&memory)
        .unwrap()
        .set_len(77)
        .unwrap();
    let (status, line) = refused(&mut restored(&folder, &saved, 1));
    assert_eq!(status, Some(73));
    assert!(
        line.ends_with("has 77 bytes, and the guest has 4194304 bytes of memory"),
        "{line}"
    );
}

#[test]
fn a_disk_must_be_the_one_that_was_saved() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let saved = folder.path("saved");
    let content: Vec<u8> = (0..1u32 << 16).flat_map(u32::to_le_bytes).collect();
    let disk = folder.file("disk", &content);
    let (status, stderr) = save(
        machine(&folder, 1)
            .arg("--disk")
            .arg(&disk)
            .arg("--snapshot")
            .arg(&saved),
    );
    assert_eq!(status, Some(16), "{stderr}");
    let with_disk = || {
        let mut command = restored(&folder, &saved, 1);
        command.arg("--disk").arg(&disk);
        command
    };
    let (status, stdout, stderr) = run(&mut with_disk());
    assert_eq!(status, Some(0), "{stdout}{stderr}");
    let name = disk.display();
    fs::write(&disk, &content[..1024]).unwrap();
    let shorter =
        format!("--restore: {name} has 1024 bytes, and had 262144 when the machine was saved");
    assert_eq!(refused(&mut with_disk()), (Some(73), shorter));
    fs::write(&disk, vec![0; content.len()]).unwrap();
    let other = format!("--restore: {name} is not what it was when the machine was saved");
    assert_eq!(refused(&mut with_disk()), (Some(73), other));
    let (status, line) = refused(&mut restored(&folder, &saved, 1));
    assert_eq!(
        (status, line.as_str()),
        (
            Some(73),
            "--restore: the machine was saved with 1 disks, and the options say 0"
        )
    );
}

/// What disks and memory of each kind are put on stable storage by is a thread that is confined.
#[test]
fn a_machine_with_disks_of_each_kind_is_saved() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let saved = folder.path("saved");
    let raw = folder.file("raw", &[7; 8192]);
    let qcow2 = folder.path("qcow2");
    let (made, _, stderr) = run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&qcow2)
        .arg("1M"));
    assert_eq!(made, Some(0), "{stderr}");
    let pmem = folder.file("pmem", &[7; 2 << 20]);
    let devices = [
        format!("--disk={}", raw.display()),
        format!("--disk={},image_type=qcow2", qcow2.display()),
        format!("--pmem={}", pmem.display()),
    ];
    let command = &mut machine(&folder, 1);
    let (status, stderr) = save(command.args(&devices).arg("--snapshot").arg(&saved));
    assert_eq!((status, stderr.as_str()), (Some(16), ""));
    let (status, stdout, stderr) = run(restored(&folder, &saved, 1).args(&devices));
    assert_eq!(
        (status, stdout.as_str(), stderr.as_str()),
        (Some(0), "yk", "")
    );
}

/// What the VMM made for the time that it runs is gone when it has ended, although no path is open to it any more.
#[test]
fn sockets_and_folders_without_a_machine_are_taken_away() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let [balloon, vsock, saved] = ["balloon", "vsock", "saved"].map(|name| folder.path(name));
    let path = folder.file("kernel", &kernel(&end(b'k')));
    let (status, stdout, stderr) = run(vmm()
        .args(["--memory", "size=4M", "--kernel"])
        .arg(path)
        .arg(format!("--balloon=socket={}", balloon.display()))
        .arg(format!("--vsock=cid=3,socket={}", vsock.display()))
        .arg("--snapshot")
        .arg(&saved));
    assert_eq!(
        (status, stdout.as_str(), stderr.as_str()),
        (Some(0), "k", "")
    );
    assert!(!balloon.exists() && !vsock.exists());
    assert_eq!(fs::read_dir(&saved).unwrap().count(), 0);
}

/// A folder is one machine's, until that machine is no more; what is not a snapshot in it is not written over.
#[test]
fn a_folder_is_one_machines_and_what_is_in_it_is_kept() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let saved = folder.path("saved");
    fs::create_dir(&saved).unwrap();
    let manifest = fs::File::create(saved.join("manifest.json")).unwrap();
    // As another VMM holds it, of which this test need not wait to be there.
    rustix::fs::flock(&manifest, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let (status, line) = refused(machine(&folder, 1).arg("--snapshot").arg(&saved));
    let in_use = format!(
        "--snapshot: {} is another running machine's: give another folder",
        saved.display()
    );
    assert_eq!(status, Some(73), "{line}");
    assert!(line.ends_with(&in_use), "{line}");
    assert!(saved.join("manifest.json").exists());
    drop(manifest);

    fs::write(saved.join("memory"), "of the years at sea").unwrap();
    let (status, line) = refused(machine(&folder, 1).arg("--snapshot").arg(&saved));
    assert_eq!(status, Some(73), "{line}");
    let foreign = format!(
        "--snapshot: {} has something in it, and no machine beside it: give another folder, or remove it",
        saved.join("memory").display()
    );
    assert!(line.ends_with(&foreign), "{line}");
    assert_eq!(
        fs::read(saved.join("memory")).unwrap(),
        b"of the years at sea"
    );
}
