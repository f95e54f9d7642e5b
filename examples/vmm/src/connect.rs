// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Connecting to a process that may be there and let nobody in: `connect(2)` waits without end where as many wait already as
//! the owner of a socket allows.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use hvkit_virtio_devices::patience::end_of;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// How long one waits to be let in when the machine is made.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries: nothing tells when there is room.
const INTERVAL: Duration = Duration::from_millis(20);

/// Connects to the socket at `path`, within `patience`.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`]: the one who listens there does not get to accepting; and the host's.
pub(crate) fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let end = end_of(patience);
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // unix(7), "ERRORS": EAGAIN, the backlog is full.
    while let Err(error) = rustix::net::connect(&socket, &address) {
        match error {
            Errno::INTR => {}
            Errno::AGAIN if Instant::now() < end => thread::sleep(INTERVAL),
            Errno::AGAIN => {
                let why = format!("it let nobody in for {patience:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            other => return Err(other.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;

    /// Somebody who listens, with nobody allowed to wait but one, who does.
    fn full(path: &Path) -> (UnixListener, UnixStream) {
        let address = SocketAddrUnix::new(path.as_os_str().as_bytes()).unwrap();
        let flags = SocketFlags::CLOEXEC;
        let owner =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&owner, &address).unwrap();
        rustix::net::listen(&owner, 0).unwrap();
        let first = connect(path, Duration::ZERO).unwrap();
        (owner.into(), first)
    }

    #[test]
    fn nobody_is_waited_for_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let error = |path: &Path, patience| connect(path, patience).unwrap_err().kind();
        assert_eq!(error(&path, PATIENCE), ErrorKind::NotFound);
        let (owner, _first) = full(&path);
        let (done, is_done) = channel();
        let asked = path.clone();
        thread::spawn(move || {
            let began = Instant::now();
            let kind = error(&asked, Duration::from_millis(200));
            done.send((kind, began.elapsed())).unwrap();
        });
        let (kind, took) = is_done.recv_timeout(PATIENCE).unwrap();
        assert_eq!(kind, ErrorKind::TimedOut);
        assert!(took >= Duration::from_millis(200), "{took:?}");
        drop(owner);
        assert_eq!(error(&path, PATIENCE), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn who_is_let_in_late_is_let_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (owner, _first) = full(&path);
        let accepting = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            let _first = owner.accept().unwrap();
            let (mut second, _) = owner.accept().unwrap();
            // Who reads waits: the other end is as any stream.
            thread::sleep(Duration::from_millis(100));
            second.write_all(b"x").unwrap();
        });
        let mut stream = connect(&path, PATIENCE).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        accepting.join().unwrap();
    }
}
