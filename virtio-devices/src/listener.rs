// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A socket at a path, for as long as a value lives.
//!
//! ```text
//!   the folder is locked --> nothing there, or abandoned and removed --> bind, listen --> unlocked
//! ```
//!
//! Between `bind` and `listen` a socket refuses connections, as one does that was abandoned. Two processes that start at once
//! could take that for each other's; so they do all of it one after the other.
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

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::patience::end_of;

/// How long a folder may be locked by another before it is gone on without: who locks it for longer makes no socket there.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two looks at a folder that is locked.
const INTERVAL: Duration = Duration::from_millis(1);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody listens there, or it is another kind of file.
    #[error("in use, or no socket")]
    InUse,
    /// The host.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// A socket that does not block, removed with the value.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Which file it is: of which device, and its number there.
    identity: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`, in place of a socket that nobody listens at any more: one that a process left which was killed. Of several that
    /// do so at once, one does. They keep out of each other's way by a lock of the folder (`flock`), for which one second is
    /// waited, and which is done without where the folder cannot be read.
    ///
    /// # Errors
    ///
    /// [`ListenError::InUse`]: another's socket, or a file that is none, which stays as it is; and the host's.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        // Unlocked when it is closed.
        let _locked = locked(path);
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let kind = path.symlink_metadata()?.file_type();
                // Never a file that is none of ours, and never another VMM's.
                if !kind.is_socket() || !is_abandoned(path)? {
                    return Err(ListenError::InUse);
                }
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            result => result,
        }?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_path_buf(),
            identity: identity(path).ok(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

/// The folder that `path` is in, locked; nothing if it cannot be.
fn locked(path: &Path) -> Option<File> {
    let folder = path.parent()?;
    let folder = match folder.as_os_str().is_empty() {
        true => Path::new("."),
        false => folder,
    };
    let folder = File::open(folder).ok()?;
    let end = end_of(PATIENCE);
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(folder),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < end => {
                std::thread::sleep(INTERVAL);
            }
            Err(_) => return None,
        }
    }
}

/// Which file is at `path`: of which device, and its number there.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let there = path.symlink_metadata()?;
    Ok((there.dev(), there.ino()))
}

/// Whether nobody has the socket at `path` open. One that cannot be reached, or has too many that wait, is somebody's.
///
/// The kernel looks for who has it open before it sees that a socket of this kind cannot be connected to theirs (EPROTOTYPE),
/// so that nobody who accepts streams takes us for the one client that is waited for.
fn is_abandoned(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let address = SocketAddrUnix::new(path.as_os_str().as_bytes())?;
    Ok(rustix::net::connect(&socket, &address) == Err(Errno::CONNREFUSED))
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If it is gone already, that is as well; and what another has put in its place is the other's. A confined process cannot look,
        // but nobody who binds as we do puts anything in the place of a socket that is listened on.
        let is_anothers = identity(&self.path).is_ok_and(|there| self.identity != Some(there));
        if !is_anothers {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn what_a_killed_process_left_is_taken_over_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // Dropped without being removed, as after SIGKILL.
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
        drop(listener.socket().accept().unwrap());
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse)));
        // Who looked is no client.
        let kind = listener.socket().accept().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::WouldBlock);
        drop(listener);
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse)));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        std::fs::remove_file(&path).unwrap();
        // Of another kind, to which no stream can be connected: it is somebody's all the same.
        let _owner = UnixDatagram::bind(&path).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse)));
        assert!(path.exists());
    }

    /// Of those that start at once where a killed process has left its socket one has it, and keeps it.
    #[test]
    fn of_several_at_once_one_listens() {
        const AT_ONCE: usize = 4;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for round in 0..300 {
            drop(UnixListener::bind(&path).unwrap());
            let start = std::sync::Barrier::new(AT_ONCE);
            let listeners: Vec<_> = std::thread::scope(|scope| {
                let bind = || {
                    start.wait();
                    Listener::bind(&path)
                };
                let all: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(bind)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            let mut listening = Vec::new();
            for listener in listeners {
                match listener {
                    Ok(listener) => listening.push(listener),
                    Err(ListenError::InUse) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(listening.len(), 1, "{round}");
            let client = UnixStream::connect(&path).unwrap();
            listening[0].socket().accept().unwrap();
            drop((client, listening));
            assert!(!path.exists());
        }
    }

    #[test]
    fn what_another_has_put_in_its_place_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = Listener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = Listener::bind(&path).unwrap();
        drop(first);
        assert!(UnixStream::connect(&path).is_ok());
        drop(second);
        assert!(!path.exists());
    }

    /// Who locks the folder for something else does not keep anybody from listening in it.
    #[test]
    fn a_folder_that_is_locked_is_waited_for_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let lock = File::open(folder.path()).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let begun = Instant::now();
        let listener = Listener::bind(&folder.path().join("socket"));
        assert!(listener.is_ok() && begun.elapsed() >= PATIENCE);
    }

    /// One whose owner does not get to accepting is no less its owner's, and is not waited for.
    #[test]
    fn a_socket_at_which_many_wait_is_somebodys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let [owner, client] = [(); 2].map(|()| {
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap()
        });
        let address = SocketAddrUnix::new(path.as_os_str().as_bytes()).unwrap();
        rustix::net::bind(&owner, &address).unwrap();
        rustix::net::listen(&owner, 0).unwrap();
        rustix::net::connect(&client, &address).unwrap();
        assert!(matches!(Listener::bind(&path), Err(ListenError::InUse)));
        assert!(path.exists());
    }
}
