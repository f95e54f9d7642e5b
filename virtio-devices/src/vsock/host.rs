// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's side of a guest's sockets: files in a folder, as Firecracker and cloud-hypervisor have them.
//!
//! ```text
//!   guest connects to host port P     we connect to PATH_P
//!   host connects to PATH, and writes "CONNECT P\n"     we ask the guest's port P, and answer "OK N\n"
//! ```

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::VsockError;
use crate::listener::{ListenError, Listener};

/// Bytes of the longest greeting: `CONNECT 4294967295\n`.
const GREETING: usize = 19;

/// Listens at `path` for connections of the host's.
pub(super) fn listen(path: &Path) -> Result<Listener, VsockError> {
    Listener::bind(path).map_err(|error| {
        let path = path.to_path_buf();
        match error {
            ListenError::InUse => VsockError::InUse { path },
            ListenError::Host(source) => VsockError::Socket { path, source },
        }
    })
}

/// Who has connected, if somebody has.
pub(super) fn accept(listener: &Listener) -> io::Result<UnixStream> {
    let (stream, _) = listener.socket().accept()?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Connects to whoever serves `port` of the host, without waiting.
pub(super) fn connect(listener: &Listener, port: u32) -> io::Result<UnixStream> {
    let mut name = listener.path().as_os_str().as_bytes().to_vec();
    name.extend(format!("_{port}").bytes());
    let address = SocketAddrUnix::new(&*name)?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}

/// How far a greeting has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    /// It names this port of the guest.
    Connect(u32),
    /// There is more to come.
    Incomplete,
    /// It is none.
    Wrong,
}

/// Takes the first line from `stream`, and nothing behind it.
pub(super) fn greeting(stream: &UnixStream) -> Greeting {
    let mut raw = [0; GREETING];
    let peeked = rustix::net::recv(stream, &mut raw, RecvFlags::PEEK | RecvFlags::DONTWAIT);
    let count = match peeked {
        Ok((0, _)) => return Greeting::Wrong,
        Ok((count, _)) => count,
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {
            return Greeting::Incomplete;
        }
        Err(_) => return Greeting::Wrong,
    };
    let Some(end) = raw.iter().take(count).position(|byte| *byte == b'\n') else {
        return match count {
            GREETING => Greeting::Wrong,
            _ => Greeting::Incomplete,
        };
    };
    let port = raw.get(..end).and_then(parse);
    let line = raw.get_mut(..=end).unwrap_or_default();
    let length = line.len();
    let taken = rustix::net::recv(stream, line, RecvFlags::DONTWAIT);
    match (port, taken) {
        (Some(port), Ok((count, _))) if count == length => Greeting::Connect(port),
        _ => Greeting::Wrong,
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    // `parse` alone would take a sign.
    let number = digits.iter().all(u8::is_ascii_digit).then_some(digits)?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_greeting_is_one_line_and_what_follows_stays() {
        let (mut theirs, mut ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        assert_eq!(greeting(&ours), Greeting::Incomplete);
        theirs.write_all(b"CONNECT 52").unwrap();
        assert_eq!(greeting(&ours), Greeting::Incomplete);
        theirs.write_all(b"\nhello").unwrap();
        assert_eq!(greeting(&ours), Greeting::Connect(52));
        let mut rest = [0; 8];
        assert_eq!(ours.read(&mut rest).unwrap(), 5);
        assert_eq!(&rest[..5], b"hello");
    }

    #[test]
    fn what_is_no_greeting_is_wrong() {
        for wrong in [
            "CONNECT \n",
            "CONNECT -1\n",
            "CONNECT +1\n",
            "CONNECT 4294967296\n",
            "connect 1\n",
            "GET / HTTP/1.1\r\n",
            "CONNECT 1 \n",
            "0123456789012345678",
        ] {
            let (mut theirs, ours) = UnixStream::pair().unwrap();
            theirs.write_all(wrong.as_bytes()).unwrap();
            assert_eq!(greeting(&ours), Greeting::Wrong, "{wrong:?}");
        }
        let (theirs, ours) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(greeting(&ours), Greeting::Wrong);
    }
}
