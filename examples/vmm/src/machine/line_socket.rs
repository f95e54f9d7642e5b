// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A local socket at which a line asks and a line answers, one client after another.

use crate::confine::{Confiner, Kind};
use crate::wake::Wake;
use hvkit_virtio_devices::listener::{ListenError, Listener};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a client has for its line.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of the longest line.
const LINE: usize = 64;
/// How long we wait when the host cannot give us a client.
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The thread that answers at the socket; both end with the value.
#[derive(Debug)]
pub struct LineSocket {
    end: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
    /// Removed here, not by the thread, which could not.
    _listener: Arc<Listener>,
}

impl LineSocket {
    /// Listens at `path`, in place of a socket that a VMM left which was killed; `obey` makes an answer of a line, and waits
    /// for nothing any more once what it is given is signalled. The thread is called `name`, and confined by `confiner`.
    ///
    /// # Errors
    ///
    /// The host's, and [`io::ErrorKind::AddrInUse`]: somebody listens there, or it is no socket.
    pub fn listen(
        path: &Path,
        name: &'static str,
        confiner: Confiner,
        mut obey: impl FnMut(&str, &Wake) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let listener = Arc::new(Listener::bind(path).map_err(|error| match error {
            ListenError::InUse => io::Error::new(io::ErrorKind::AddrInUse, error),
            ListenError::Host(source) => source,
        })?);
        let end = Arc::new(Wake::new()?);
        let mut socket = LineSocket {
            end: Arc::clone(&end),
            thread: None,
            _listener: Arc::clone(&listener),
        };
        let serve = move || match confiner.enter(Kind::Control) {
            Ok(()) => serve(&listener, &end, &mut obey),
            Err(error) => log::error!("nobody answers at the socket of {name}: {error}"),
        };
        socket.thread = Some(thread::Builder::new().name(name.to_owned()).spawn(serve)?);
        Ok(socket)
    }
}

impl Drop for LineSocket {
    fn drop(&mut self) {
        self.end.signal();
        if let Some(thread) = self.thread.take() {
            // It has no way to panic; if it did, the machine is at its end here anyway.
            let _ = thread.join();
        }
    }
}

/// Answers one client after another until the end.
fn serve(listener: &Listener, end: &Wake, obey: &mut impl FnMut(&str, &Wake) -> String) {
    loop {
        let mut sources = [
            PollFd::new(end, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !sources[0].revents().is_empty() {
            return;
        }
        if sources[1].revents().is_empty() {
            continue;
        }
        match listener.socket().accept() {
            // A client that is gone, or says nothing for too long, is no trouble.
            Ok((client, _)) => drop(answer(&client, end, obey)),
            // No file descriptor is free, say: the client waits, and so do we, unless it is the end.
            Err(_) => drop(poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&PAUSE))),
        }
    }
}

/// Hears a line and answers it. The client has [`PATIENCE`] for its line and as long to read, however it cuts either; the end
/// does not wait for a line.
fn answer(
    client: &UnixStream,
    end: &Wake,
    obey: &mut impl FnMut(&str, &Wake) -> String,
) -> io::Result<()> {
    let line = hear(client, end)?;
    let answer = format!("{}\n", obey(String::from_utf8_lossy(&line).trim_end(), end));
    client.set_write_timeout(Some(PATIENCE))?;
    let (begun, mut left) = (Instant::now(), answer.as_bytes());
    while !left.is_empty() && begun.elapsed() < PATIENCE {
        let count = (&*client).write(left)?;
        left = left.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// A line of at most [`LINE`] bytes, with its end or the client's.
fn hear(client: &UnixStream, end: &Wake) -> io::Result<Vec<u8>> {
    let begun = Instant::now();
    let mut line = Vec::with_capacity(LINE);
    while line.len() < LINE && !line.contains(&b'\n') {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut sources = [
            PollFd::new(end, PollFlags::IN),
            PollFd::new(client, PollFlags::IN),
        ];
        match poll(&mut sources, Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) if sources[0].revents().is_empty() => {}
            Ok(_) => return Err(io::ErrorKind::Interrupted.into()),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let mut bytes = [0; LINE];
        let room = LINE.saturating_sub(line.len());
        let bytes = bytes.get_mut(..room).unwrap_or_default();
        let count = rustix::io::read(client, &mut *bytes)?;
        if count == 0 {
            break;
        }
        line.extend_from_slice(bytes.get(..count).unwrap_or_default());
    }
    Ok(line)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Read;

    /// What is answered at `path`.
    pub(crate) fn ask(path: &Path, line: &str) -> String {
        let mut client = UnixStream::connect(path).unwrap();
        client.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_client_that_says_nothing_holds_nobody_up_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut lines = Vec::new();
        let obey = move |line: &str, _: &Wake| {
            lines.push(line.to_owned());
            lines.join("+")
        };
        let socket = LineSocket::listen(&path, "test", Confiner::off(), obey).unwrap();
        assert_eq!(ask(&path, "one\n"), "one\n");
        let silent = UnixStream::connect(&path).unwrap();
        assert_eq!(ask(&path, "another\n"), "one+another\n");
        // Longer than any line: what fits is answered, or nothing is.
        let mut long = UnixStream::connect(&path).unwrap();
        let _ = long.write_all(&[b'x'; 4096]);
        let mut answer = Vec::new();
        let _ = long.read_to_end(&mut answer);
        assert!(answer.len() < 128, "{}", answer.len());
        let error = LineSocket::listen(&path, "test", Confiner::off(), |_: &str, _: &Wake| {
            String::new()
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop((silent, socket));
        assert!(!path.exists());
    }

    /// A byte at a time renews nobody's patience, and the end waits for no line.
    #[test]
    fn a_client_that_dawdles_has_no_longer_than_one_that_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let obey = |line: &str, _: &Wake| line.to_owned();
        let socket = LineSocket::listen(&path, "test", Confiner::off(), obey).unwrap();
        let mut slow = UnixStream::connect(&path).unwrap();
        let begun = Instant::now();
        let refused = (0..100).any(|_| {
            thread::sleep(PATIENCE / 8);
            slow.write_all(b"x").is_err()
        });
        assert!(refused && begun.elapsed() < 4 * PATIENCE);

        let _silent = UnixStream::connect(&path).unwrap();
        thread::sleep(PATIENCE / 8);
        let begun = Instant::now();
        drop(socket);
        assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_socket_of_a_vmm_that_was_killed_is_no_hindrance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        // Dropped and not removed.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listen = || {
            let obey = |line: &str, _: &Wake| line.to_owned();
            LineSocket::listen(&path, "test", Confiner::off(), obey)
        };
        let socket = listen().unwrap();
        assert_eq!(ask(&path, "one\n"), "one\n");
        // Not from one that lives.
        let error = listen().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(error.to_string(), "in use, or no socket");
        assert_eq!(ask(&path, "two\n"), "two\n");
        drop(socket);
        assert!(!path.exists());
    }
}
