// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A socket at a path, for as long as a value lives.
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

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

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
}

impl Listener {
    /// Listens at `path`, in place of a socket that nobody listens at any more: one that a process left which was killed.
    ///
    /// # Errors
    ///
    /// [`ListenError::InUse`]: another's socket, or a file that is none, which stays as it is; and the host's.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
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
        // If it is gone already, that is as well.
        let _ = std::fs::remove_file(&self.path);
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
