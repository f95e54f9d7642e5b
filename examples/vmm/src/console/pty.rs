// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A pseudo-terminal: this end is the machine's, the other anybody's.

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};

/// This end. Nobody at the other end is no end of input.
#[derive(Debug)]
pub struct PseudoTerminal {
    file: File,
    name: String,
}

impl PseudoTerminal {
    /// A pseudo-terminal that passes every byte as it is.
    pub fn open() -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let mut mode = tcgetattr(&master)?;
        mode.make_raw();
        tcsetattr(&master, OptionalActions::Now, &mode)?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        let name = ptsname(&master, Vec::new())?;
        Ok(PseudoTerminal {
            file: File::from(master),
            name: name.to_string_lossy().into_owned(),
        })
    }

    /// What the other end is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes to the other end. What nobody reads is lost when the kernel's buffer is full.
    pub fn output(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

impl Read for PseudoTerminal {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        match self.file.read(data) {
            // The other end is not open.
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
            result => result,
        }
    }
}

impl AsRawFd for PseudoTerminal {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn bytes_pass_as_they_are() {
        let mut terminal = PseudoTerminal::open().unwrap();
        let mut data = [0; 16];
        assert_eq!(terminal.read(&mut data).unwrap_or(0), 0);
        let mut options = File::options();
        let mut other = options
            .read(true)
            .write(true)
            .open(terminal.name())
            .unwrap();
        other.write_all(b"\x03\n\xff").unwrap();
        assert_eq!(terminal.read(&mut data).unwrap(), 3);
        assert_eq!(&data[..3], b"\x03\n\xff");
        terminal.output().unwrap().write_all(b"a\nb").unwrap();
        assert_eq!(other.read(&mut data).unwrap(), 3);
        assert_eq!(&data[..3], b"a\nb");
        drop(other);
        assert_eq!(terminal.read(&mut data).unwrap(), 0);
    }
}
