// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A socket on which nothing is waited for without end, and files that come by it: vhost-user's, and of protocols like it.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Files that come or go with one message at most; any more that come are closed by the kernel, and that is told.
pub const MOST_FILES: usize = 8;

/// A connected stream socket that does not block.
#[derive(Debug)]
pub struct Channel(UnixStream);

/// What has come without being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Nothing.
    Nothing,
    /// The beginning of a message.
    Something,
    /// The end.
    End,
}

impl Channel {
    /// The end of a connection that is `socket`.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        // As files are told it, which a confined process may: the standard library has a request of its own for sockets.
        let flags = fcntl_getfl(&socket)?;
        fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
        Ok(Self(socket))
    }

    /// Sends all of `bytes`, with `files` at their beginning, before `end`. What was sent of them before an error stays
    /// sent.
    ///
    /// # Errors
    ///
    /// `TimedOut`, `InvalidInput` for more than [`MOST_FILES`], and the host's.
    pub fn send(&self, mut bytes: &[u8], files: &[BorrowedFd<'_>], end: Instant) -> io::Result<()> {
        let mut files = files;
        while !bytes.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
            let mut beside = SendAncillaryBuffer::new(&mut space);
            if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(ErrorKind::InvalidInput.into());
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut beside, flags) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or_default();
                    files = &[];
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, end)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Fills `bytes` before `end`, and puts the files that come with them into `files`.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` at the end of the connection, `TimedOut`, and the host's.
    pub fn receive(
        &self,
        mut bytes: &mut [u8],
        files: &mut Vec<OwnedFd>,
        end: Instant,
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.receive_some(bytes, files) {
                Ok(got) => bytes = bytes.get_mut(got..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN, end)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes what has come of `bytes`, at least one, and the files that come with it.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where nothing has come, `UnexpectedEof` at the end of the connection, and the host's.
    pub(super) fn receive_some(
        &self,
        bytes: &mut [u8],
        files: &mut Vec<OwnedFd>,
    ) -> io::Result<usize> {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let got = recvmsg(&self.0, &mut [IoSliceMut::new(bytes)], &mut beside, flags);
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    files.extend(more);
                }
            }
            return match got {
                Ok(got) if got.flags.contains(ReturnFlags::CTRUNC) || files.len() > MOST_FILES => {
                    Err(ErrorKind::InvalidData.into())
                }
                Ok(got) if got.bytes == 0 => Err(ErrorKind::UnexpectedEof.into()),
                Ok(got) => Ok(got.bytes),
                Err(Errno::INTR) => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Waits until something comes, or the end: for whom it is somebody else's to say when.
    pub fn wait_for_more(&self) -> io::Result<()> {
        loop {
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                waited => return Ok(waited.map(drop)?),
            }
        }
    }

    /// Looks whether something has come, and leaves it there.
    pub fn look(&self) -> Waiting {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mut byte = [0u8];
        match rustix::net::recv(&self.0, &mut byte[..], flags) {
            Ok((_, 0)) => Waiting::End,
            Ok(_) => Waiting::Something,
            Err(Errno::AGAIN | Errno::INTR) => Waiting::Nothing,
            Err(_) => Waiting::End,
        }
    }

    /// Ends the connection, so that the other end sees it.
    pub fn end(&self) {
        // It may have ended already.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }

    fn wait(&self, what: PollFlags, end: Instant) -> io::Result<()> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let left = Timespec::try_from(left).map_err(|_| ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&self.0, what)], Some(&left)) {
            // The caller looks at the clock again.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
