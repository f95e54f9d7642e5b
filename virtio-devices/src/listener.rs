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
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why there is none.
#[derive(Debug)]
pub(crate) enum ListenError {
    /// Somebody listens there, or it is another kind of file.
    InUse,
    /// The host.
    Host(io::Error),
}

impl From<io::Error> for ListenError {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// A socket that does not block, removed with the value.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Listens at `path`, in place of a socket that nobody listens at any more.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let kind = path.symlink_metadata()?.file_type();
                // Never a file that is none of ours, and never another VMM's.
                if !kind.is_socket() || UnixStream::connect(path).is_ok() {
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
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &UnixListener {
        &self.socket
    }
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
