// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Images that cannot be used: each has an error of its own, which names the path.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use hvkit_virtio_devices::block::{Access, Block, OpenError, Options};
use tempfile::tempdir;

use crate::support::image;

fn refused(options: Options) -> OpenError {
    Block::open(options).expect_err("opened")
}

/// The message is one line that names the path.
fn names(error: &OpenError, path: &Path) {
    let text = error.to_string();
    assert!(
        text.contains(path.to_str().unwrap()) && !text.contains('\n'),
        "{text}"
    );
}

#[test]
fn nothing_there() {
    let folder = tempdir().unwrap();
    for path in [
        folder.path().join("absent.img"),
        folder.path().join("absent/disk.img"),
    ] {
        let error = refused(Options::new(&path));
        assert!(
            matches!(&error, OpenError::Missing { path: p } if *p == path),
            "{error:?}"
        );
        names(&error, &path);
    }
}

#[test]
fn a_directory() {
    let folder = tempdir().unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let error = refused(Options::new(folder.path()).with_access(access));
        assert!(matches!(error, OpenError::Directory { .. }), "{error:?}");
        names(&error, folder.path());
    }
}

#[test]
fn neither_a_file_nor_a_disk() {
    let folder = tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for path in [
        socket.as_path(),
        Path::new("/dev/null"),
        Path::new("/dev/zero"),
    ] {
        let error = refused(Options::new(path));
        assert!(matches!(error, OpenError::NotADisk { .. }), "{error:?}");
        names(&error, path);
    }
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo")
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    assert!(matches!(
        refused(Options::new(&path)),
        OpenError::NotADisk { .. }
    ));
}

#[test]
fn read_only_while_writing_was_asked_for() {
    let file = image(8);
    fs::set_permissions(file.path(), Permissions::from_mode(0o444)).unwrap();
    let error = refused(Options::new(file.path()));
    assert!(matches!(error, OpenError::ReadOnly { .. }), "{error:?}");
    names(&error, file.path());
    Block::open(Options::new(file.path()).with_access(Access::ReadOnly)).unwrap();
}

#[test]
fn locked_by_another() {
    let file = image(8);
    let open = |access| Block::open(Options::new(file.path()).with_access(access));
    let writer = open(Access::ReadWrite).unwrap();
    for access in [Access::ReadWrite, Access::ReadOnly] {
        let error = open(access).unwrap_err();
        assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
        names(&error, file.path());
    }
    drop(writer);
    // Readers share; a writer waits for none of them.
    let readers = [
        open(Access::ReadOnly).unwrap(),
        open(Access::ReadOnly).unwrap(),
    ];
    assert!(matches!(
        open(Access::ReadWrite).unwrap_err(),
        OpenError::Locked { .. }
    ));
    drop(readers);
    open(Access::ReadWrite).unwrap();
}

#[test]
fn a_length_that_is_not_whole_sectors() {
    for length in [0, 1, 511, 513, 1023] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0; length as usize]).unwrap();
        let error = refused(Options::new(file.path()));
        assert!(
            matches!(error, OpenError::Length { length: l, .. } if l == length),
            "{error:?}"
        );
        names(&error, file.path());
        assert_eq!(
            fs::metadata(file.path()).unwrap().len(),
            length,
            "the image was changed"
        );
    }
}

#[test]
fn options_that_no_disk_has() {
    let file = image(8);
    let options = || Options::new(file.path());
    for count in [0, 257, u16::MAX] {
        let error = refused(options().with_queues(count));
        assert!(matches!(error, OpenError::Queues { count: c } if c == count));
    }
    for size in [0, 1, 2, 3, 5, 0x8001, u16::MAX] {
        let error = refused(options().with_queue_size(size));
        assert!(matches!(error, OpenError::QueueSize { size: s } if s == size));
    }
    for serial in [&b"123456789012345678901"[..], b"a\nb", b"\xff", b"\0"] {
        let error = refused(options().with_serial(serial));
        assert!(matches!(&error, OpenError::Serial { serial: s } if s == serial));
        assert!(error.to_string().is_ascii() && !error.to_string().contains('\n'));
    }
    let good = options()
        .with_queues(256)
        .with_queue_size(4)
        .with_serial("12345678901234567890");
    Block::open(good).unwrap();
}

#[test]
fn no_permission_is_said_as_it_is() {
    // Root may open anything, so only another user sees this one; a name that is too long stands in for the
    // errors that have no name here.
    let error = refused(Options::new("/".repeat(2) + &"x".repeat(300)));
    assert!(matches!(error, OpenError::Host { .. }), "{error:?}");
}
