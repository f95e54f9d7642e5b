// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Files that somebody else reads, or does not: how they are written to without waiting for him.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::Errno;
use rustix::termios::isatty;
use std::io;
use std::thread;
use std::time::Duration;

/// What a pipe that is ready takes without making us wait: PIPE_BUF of Linux.
pub(crate) const PIECE: usize = 4096;
/// After a file was ready, but not for what it was given: a terminal is with a byte of room.
const PAUSE: Duration = Duration::from_millis(10);

/// What `file` is, opened once more, so that writing to it never waits; if it is a terminal or a pipe, and may be opened.
///
/// That others have it, too, is why it is not just switched over: to a shell that writes to it afterwards, for one. It must
/// be called before the process gives up opening files.
pub(crate) fn anew(file: impl AsFd) -> Option<OwnedFd> {
    let file = file.as_fd();
    let kind = FileType::from_raw_mode(fstat(file).ok()?.st_mode);
    if kind != FileType::Fifo && !isatty(file) {
        return None;
    }
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    open(path, flags, Mode::empty()).ok()
}

/// Writes some of `bytes` if `file` takes any in the time of `slice`; nothing if it did not.
///
/// A file that could not be opened [`anew`] is asked first, which says enough of a pipe.
pub(crate) fn write(file: impl AsFd, bytes: &[u8], slice: &Timespec) -> io::Result<Option<usize>> {
    let mut files = [PollFd::new(&file, PollFlags::OUT)];
    match poll(&mut files, Some(slice)) {
        // Also one that nobody will ever read: writing to it says so.
        Ok(1..) => {}
        Ok(0) | Err(Errno::INTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let piece = bytes.get(..PIECE).unwrap_or(bytes);
    match rustix::io::write(&file, piece) {
        Ok(written) => Ok(Some(written)),
        Err(Errno::INTR) => Ok(None),
        Err(Errno::AGAIN) => {
            thread::sleep(PAUSE);
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };

    /// Fills `file`, and is back.
    fn fill(file: &OwnedFd) -> usize {
        let mut all = 0;
        // Nothing else that ends: neither has 16 MiB of room.
        while let Some(some) = write(file, &[b'\n'; 5000], &AT_ONCE).unwrap() {
            assert!(some <= PIECE);
            all += some;
            assert!(all < 16 << 20);
        }
        all
    }

    #[test]
    fn a_pipe_and_a_terminal_are_filled_without_waiting_and_stay_as_they_were() {
        let (mut reader, writer) = io::pipe().unwrap();
        let pipe = anew(&writer).unwrap();
        assert_eq!(fill(&pipe), 65536, "pipe(7), \"Pipe capacity\"");
        assert!(
            !rustix::fs::fcntl_getfl(&writer)
                .unwrap()
                .contains(OFlags::NONBLOCK)
        );
        reader.read_exact(&mut [0; 4096]).unwrap();
        assert_eq!(write(&pipe, b"more", &AT_ONCE).unwrap(), Some(4));

        let pty =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
                .unwrap();
        rustix::pty::grantpt(&pty).unwrap();
        rustix::pty::unlockpt(&pty).unwrap();
        let name = rustix::pty::ptsname(&pty, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        assert!(fill(&anew(&terminal).unwrap()) > 0);
    }

    #[test]
    fn what_nobody_reads_from_is_left_alone() {
        assert!(anew(tempfile::tempfile().unwrap()).is_none());
        assert!(anew(std::fs::File::open("/dev/null").unwrap()).is_none());
        assert!(anew(std::os::unix::net::UnixStream::pair().unwrap().0).is_none());
    }
}
